"""A device's header trained without Algorithm 2: alone, and by FedAvg (McMahan et al., 2017).

Both begin with the coarse header that the device received and train as many rounds of as many
epochs as the fleet, in the same orders; nothing is pruned. As in the fleet, a device ships the best
of its states by its validation data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from acme_fleet.config.personalization import Personalization
from acme_fleet.data.samples import Splits
from acme_fleet.device.refinement import HeaderState, train_header
from acme_fleet.device.state import DeviceFolder
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.features import judging
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.models.storage import sent_size
from acme_fleet.runs.notes import Progress
from acme_fleet.runs.summary import Rival
from acme_fleet.seeding import generator
from acme_fleet.simulation.whole_reference import rival_of
from acme_fleet.tasks.base import Task

ALONE, FEDAVG = "alone", "FedAvg"


@dataclass(frozen=True)
class _Member:
    """A device of a group, with what it received.

    Attributes:
        judge: the task, as it judges what headers of the received backbone give.
        size_bytes: of the model that was received.
    """

    name: str
    settings: Personalization
    seed: int
    folder: DeviceFolder
    private: Splits
    judge: Task
    coarse: Header
    size_bytes: int

    @staticmethod
    def of(
        name: str,
        task: Task,
        settings: Personalization,
        seed: int,
        folder: DeviceFolder,
        private: Splits,
    ) -> _Member:
        """From what lies in the device's folder."""
        received = folder.assignment()
        judge = judging(task, folder.backbone(received)) if task.per_token else task
        coarse = build_header(HeaderPlan.model_validate(received.plan), received.header)
        size_bytes = sent_size(received.backbone, received.header)
        return _Member(name, settings, seed, folder, private, judge, coarse, size_bytes)

    @property
    def features(self) -> Splits:
        """Of its data; computed again where there is no room for those of all."""
        budget = self.settings.feature_budget if self.judge.per_token else None
        return self.folder.features(self.private, budget)

    def start(self) -> HeaderState:
        """The state before the first round."""
        return HeaderState.start(self.judge, self.coarse, self.features)

    def trained(self, state: HeaderState, number: int, *, to_mix: bool) -> HeaderState:
        """The state after the training of a round."""
        features, training = self.features, self.settings.training(number)
        draw = generator(self.seed, self.name, "round", number)
        header, _ = train_header(self.judge, state.current, features, training, draw, to_mix=to_mix)
        return state.with_current(self.judge, header, features.validation)

    def received(self, state: HeaderState, header: Header) -> HeaderState:
        """The state with another header in the place of its own."""
        return state.with_current(self.judge, header, self.features.validation)

    def rival(self, state: HeaderState) -> Rival:
        """The best of its states on its test data."""
        return rival_of(self.judge, state.best, self.features.test, self.size_bytes)


def measure_headers(
    task: Task,
    settings: Personalization,
    group: Mapping[str, tuple[DeviceFolder, Splits]],
    seed: int,
    progress: Progress,
) -> dict[str, dict[str, Rival]]:
    """Train both rivals for a group of devices that received one coarse header.

    Args:
        task: judges and trains.
        settings: rounds and their training.
        group: by device, its folder and its data.
        seed: the fleet's, from which devices draw the order of their samples.
        progress: told of trainings.

    Returns:
        By device, its rivals by name.
    """
    members = [_Member.of(name, task, settings, seed, *of) for name, of in group.items()]
    starts = [member.start() for member in members]
    done, every = 0, 2 * len(members) * (settings.rounds + 1)
    found: dict[str, dict[str, Rival]] = {member.name: {} for member in members}
    for way in (ALONE, FEDAVG):
        states = list(starts)
        for number in range(settings.rounds + 1):
            mixes = way == FEDAVG and number < settings.rounds
            for place, member in enumerate(members):
                states[place] = member.trained(states[place], number, to_mix=mixes)
                done += 1
                progress(done, every, way)
            if mixes:
                mean = averaged([state.current for state in states])
                states = [m.received(state, mean) for m, state in zip(members, states, strict=True)]
        for member, state in zip(members, states, strict=True):
            found[member.name][way] = member.rival(state)
    for member in members:
        member.folder.forget_features()
    return found


def averaged(headers: Sequence[Header]) -> Header:
    """The mean of headers of one plan."""
    states = [header.state_dict() for header in headers]
    mean = {name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]}
    return build_header(headers[0].plan, mean)
