"""The search for a header: shared weights and a strategy that learn in turn (Eq. 15)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from acme_fleet.config.header import Search
from acme_fleet.data.samples import Samples
from acme_fleet.edge.search_space import SearchSpace
from acme_fleet.edge.shared_weights import SharedWeights
from acme_fleet.edge.strategies import Fits, make_strategy
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.features import feature_maps, feature_samples
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.models.storage import read_tensors, with_prefix, without_prefix, write_tensors
from acme_fleet.runs.notes import Progress
from acme_fleet.runs.sealed import if_sound
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import Diverged, diverged, optimizer_tensors, restore_optimizer

_SAVE_EVERY_S = 20.0


@dataclass(frozen=True)
class SearchData:
    """The edge's shared data, cut in three: ω's training, reward, final choice."""

    weights: Samples
    reward: Samples
    choice: Samples


def split_shared_data(samples: Samples, generator: torch.Generator) -> SearchData:
    """Half for the shared weights, a quarter each for the reward and the final choice."""
    order = torch.randperm(len(samples), generator=generator)
    quarter = len(samples) // 4
    reward, choice, weights = order.split([quarter, quarter, len(samples) - 2 * quarter])
    return SearchData(samples[weights], samples[reward], samples[choice])


@dataclass(frozen=True)
class SearchResult:
    """The chosen header with its weights, how it fared, and what was seen on the way.

    Attributes:
        plan, header: not fine-tuned yet.
        choice: of the header on the samples for the final choice.
        rewards: mean reward of the children of each step.
        evaluated: how many children were evaluated, the finalists included.
    """

    plan: HeaderPlan
    header: Header
    choice: Evaluation
    rewards: list[float]
    evaluated: int


def search_header(
    task: Task,
    backbone: PreTrainedModel,
    classifier: Mapping[str, Tensor],
    space: SearchSpace,
    fits: Fits,
    data: SearchData,
    settings: Search,
    generator: torch.Generator,
    progress: Progress,
    state: Path | None = None,
) -> SearchResult:
    """Search a header for a backbone. The backbone is trained along, in place.

    Args:
        task: its loss trains ω, and its score is the reward.
        backbone: θ^B_s, small, as it came from the cloud.
        classifier: θ0^H, ``weight`` and ``bias``.
        space: the headers that may be proposed.
        fits: whether a header and this backbone are within the storage limit; children that do
            not fit are never built.
        data: three disjoint parts of the edge's shared data.
        settings: strategy and budget. A backbone learning rate of 0 freezes the backbone, and its
            features are then computed once.
        generator: decides the run.
        progress: called after each step, and at the end without a reward.
        state: a file that keeps an unfinished search, which goes on from there bit for bit; if
            it is damaged, from the beginning.

    Raises:
        Diverged: if the loss is no number any more.
    """
    search = HeaderSearch(task, backbone, classifier, space, fits, data, settings, generator)
    if state and (stored := if_sound(state, read_tensors)):
        search.restore(*stored)
    saved = time.monotonic()
    while len(search.rewards) < settings.steps and not search.out_of_time():
        search.step()
        rewards = search.rewards
        progress(len(rewards), settings.steps, search.describe(), rewards[-1])
        if state and time.monotonic() - saved >= _SAVE_EVERY_S:
            search.save(state)
            saved = time.monotonic()
    progress(settings.steps, settings.steps, search.describe())
    backbone.requires_grad_(False)
    return search.choose()


class HeaderSearch:
    """Learns in turn: ω (and θ^B) by gradients, and the strategy by rewards.

    See :func:`search_header` for the arguments.
    """

    def __init__(
        self,
        task: Task,
        backbone: PreTrainedModel,
        classifier: Mapping[str, Tensor],
        space: SearchSpace,
        fits: Fits,
        data: SearchData,
        settings: Search,
        generator: torch.Generator,
    ) -> None:
        self.task, self.backbone, self.space, self.data = task, backbone, space, data
        self.settings, self.generator = settings, generator
        self.shared = SharedWeights(space, classifier, generator)
        self.strategy = make_strategy(settings, space, fits, generator)
        self.joint = settings.backbone_learning_rate > 0
        self.rewards: list[float] = []
        self.best, self.seconds_before, self.started = 0.0, 0.0, time.monotonic()
        backbone.requires_grad_(self.joint)
        groups = [{"params": list(self.shared.tensors.values()), "lr": settings.learning_rate}]
        if self.joint:
            rate = settings.backbone_learning_rate
            groups.append({"params": list(backbone.parameters()), "lr": rate})
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups)
        self.training = data.weights if self.joint else feature_samples(backbone, data.weights)
        self.reward_data = feature_samples(backbone, data.reward)
        self.order = torch.empty(0, dtype=torch.int64)

    def step(self) -> None:
        """Some steps on ω with the strategy fixed, then one of the strategy with ω fixed."""
        for _ in range(self.settings.weight_updates_per_step):
            self.update_weights(self.next_batch())
        if self.joint:
            self.reward_data = feature_samples(self.backbone, self.data.reward)
        self.update_strategy()

    def update_strategy(self) -> None:
        """Tell the strategy how children of its choice fare."""
        children = self.strategy.propose(self.settings.children_per_step)
        rewards = [
            evaluate(self.task, self.shared.child(self.space.plan(child)), self.reward_data).reward
            for child in children
        ]
        self.strategy.learn(children, rewards)
        self.rewards.append(sum(rewards) / len(rewards))
        self.best = max(self.best, *rewards)

    def update_weights(self, batch: Samples) -> None:
        """One step on the mean loss of M proposed children (Eq. 15)."""
        features = feature_maps(self.backbone, batch.inputs) if self.joint else batch.inputs
        losses = [
            self.task.loss(self.shared.child(self.space.plan(child))(**features), batch.labels)
            for child in self.strategy.propose(self.settings.children_per_step)
        ]
        loss = torch.stack(losses).mean()
        if diverged(loss.detach(), []):
            raise Diverged(
                f"training diverged in step {len(self.rewards) + 1} of {self.settings.steps}: at "
                f"learning rates of {self.settings.learning_rate:g} and, for the backbone, "
                f"{self.settings.backbone_learning_rate:g} the loss is no finite number any more"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def next_batch(self) -> Samples:
        """Each sample once, in random order, and again."""
        if not len(self.order):
            self.order = torch.randperm(len(self.training), generator=self.generator)
        size = self.settings.batch_size
        index, self.order = self.order[:size], self.order[size:]
        return self.training[index].ready()

    @torch.no_grad()
    def choose(self) -> SearchResult:
        """The best of the finalists on samples that were not used before."""
        choice = feature_samples(self.backbone, self.data.choice)
        finalists = self.strategy.finalists(self.settings.final_samples)
        best: tuple[HeaderPlan, Evaluation] | None = None
        for decisions in finalists:
            plan = self.space.plan(decisions)
            result = evaluate(self.task, self.shared.child(plan), choice)
            if best is None or result.better_than(best[1]):
                best = plan, result
        assert best is not None
        evaluated = len(self.rewards) * self.settings.children_per_step + len(finalists)
        header = build_header(best[0], self.shared.tensors)
        return SearchResult(best[0], header, best[1], self.rewards, evaluated)

    # --- where it stands ---

    def describe(self) -> str:
        """In words, for whoever watches."""
        last = self.rewards[-1] if self.rewards else 0.0
        return f"reward {last:.3f}, best {self.best:.3f}, {self.strategy.describe()}"

    def out_of_time(self) -> bool:
        """True if the time limit is over; there is always one step."""
        limit = self.settings.time_limit_s
        return limit is not None and bool(self.rewards) and self._seconds() >= limit

    def save(self, path: Path) -> None:
        """Write all that decides the rest of the search."""
        tensors, document = self.strategy.state()
        named = {
            **with_prefix("omega", self.shared.tensors),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
            **with_prefix("strategy", tensors),
            "order": self.order,
            "generator": self.generator.get_state(),
        }
        if self.joint:
            named |= with_prefix("backbone", self.backbone.state_dict())
        about = {"rewards": self.rewards, "best": self.best, "seconds": self._seconds()}
        write_tensors(path, named, {**about, "strategy": document})

    def restore(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Go on from what :meth:`save` wrote."""
        for name, value in without_prefix("omega", tensors).items():
            self.shared.tensors[name].data.copy_(value)
        if self.joint:
            self.backbone.load_state_dict(without_prefix("backbone", tensors))
        restore_optimizer(self.optimizer, without_prefix("optimizer", tensors))
        self.strategy.restore(without_prefix("strategy", tensors), about["strategy"])
        self.order = tensors["order"]
        self.generator.set_state(tensors["generator"])
        self.rewards, self.best = about["rewards"], about["best"]
        self.seconds_before = about["seconds"]

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started
