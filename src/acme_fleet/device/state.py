"""A device's state on its own disk: it can be stopped at any time, and repeats nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.data.samples import Samples, Splits
from acme_fleet.device.memory import SPLITS, FeatureMemory, Made
from acme_fleet.device.refinement import HeaderState
from acme_fleet.errors import DamagedError, ProtocolError
from acme_fleet.links.wire import encode, read_message
from acme_fleet.messages.edge_device import DeviceReport, HeaderAssignment
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.features import feature_samples, language_bytes
from acme_fleet.models.header.module import Header
from acme_fleet.models.parts import Part, Parts
from acme_fleet.models.storage import backbone_from, read_tensors, without_prefix, write_tensors
from acme_fleet.outside import reading
from acme_fleet.runs.atomic import remove
from acme_fleet.runs.notes import Progress
from acme_fleet.runs.sealed import (
    STRICT,
    checksum,
    if_sound,
    read_sealed,
    read_sealed_json,
    typed,
    write_sealed,
)
from acme_fleet.training.evaluation import answers

TrainedState = tuple[HeaderState, ImportanceSet]
"""The state after a round's training, and its neurons' importance."""
Stage = Callable[[], AbstractContextManager[Progress]]
"""Begins a stage of a device's work in its journal."""
_STATE, _OLDER = "state", "finished.json"
_START, _END, _PRUNED, _TRAINED = "start", "finished", "pruned-", "trained-"
"""Parts of the file of a device's own work; two of them have a round's number."""


@dataclass(frozen=True)
class Answers:
    """A device's classes: its training samples, and the shipped model's answers on its test set.

    Attributes:
        train: training samples by class.
        test: for each class of the test set, by class, how often the model answered what.
    """

    __pydantic_config__ = STRICT

    train: dict[str, int]
    test: dict[str, dict[str, int]]

    @staticmethod
    def of(header: Header, features: Splits, names: Sequence[str]) -> Answers:
        """Count samples and answers; ``names`` are the classes' in the order of the outputs."""
        labels: list[int] = features.test.labels.tolist()
        given: list[int] = answers(header, features.test).tolist()
        test: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for label, answer in zip(labels, given, strict=True):
            test[names[label]][names[answer]] += 1
        trained: list[int] = features.train.labels.tolist()
        train = Counter(names[label] for label in trained)
        return Answers(dict(train), {name: dict(counts) for name, counts in test.items()})


@dataclass(frozen=True)
class Finished:
    """The end of a device's work.

    Attributes:
        report: to the edge server.
        shipped: checksums of the files that ship, by path in the device's folder.
        answers: what only the device knows of its data; no message has a field for it.
    """

    __pydantic_config__ = STRICT

    report: DeviceReport
    shipped: dict[str, str]
    answers: Answers | None = None


def _untold() -> AbstractContextManager[Progress]:
    return nullcontext(lambda *_: None)


class DeviceFolder:
    """A device's folder: the model that ships is in it, its own checkpoints under ``state``.

    Args:
        path: the folder.
        memory: holds the features that were used last; shared among the devices of a process.
    """

    def __init__(self, path: Path, memory: FeatureMemory | None = None) -> None:
        self.path = path
        self.secret = path / _STATE / "secret"
        self._memory = memory or FeatureMemory()

    # --- what was received ---

    def accept(self, assignment: HeaderAssignment) -> None:
        """Keep what was received; all that belonged to another assignment is removed.

        Raises:
            DamagedError: if it was received before, and the work on it is not there any more.
        """
        sent, stored = encode(assignment), self._file("assignment")
        if if_sound(stored, read_sealed) == sent:
            self._require_work()
            return
        self._memory.drop(self.path)
        for outdated in (*stored.parent.glob("*.safetensors"), stored.parent / _OLDER):
            remove(outdated)
        self._work.write({})  # before the assignment: where that is, this was
        write_sealed(stored, sent)

    def assignment(self) -> HeaderAssignment:
        """The assignment that was received.

        Raises:
            ProtocolError: if nothing was.
            DamagedError: if it is not on the disk any more as it was.
        """
        path = self._file("assignment")
        if not path.exists() and not self._work.names():
            raise ProtocolError(f"{self.path.name} has received no model yet")
        return read_message(path, HeaderAssignment)

    def _require_work(self) -> None:
        """Refuse to begin anew where work was lost."""
        if not self._work.path.exists():
            raise DamagedError(
                f"cannot read {self._work.path}: it was written once, and is not there any more, "
                f"or an older version of acme-fleet began this run"
            )

    # --- features of the frozen backbone ---

    def features(
        self, private: Splits, most_bytes: int | None = None, stage: Stage = _untold
    ) -> Splits:
        """Features of all private data, computed once for an assignment, as a stage.

        They are on disk too, for a process that is started again. While that file is there they
        are taken from memory. Those that would be more than ``most_bytes`` are not kept, see
        :func:`~acme_fleet.models.features.feature_samples`.
        """
        path = self._file("features")
        held = self._memory.get(self.path)
        if held and (path.exists() or held.train.computed is not None):
            return held
        parts = {split: getattr(private, split) for split in SPLITS}
        if most_bytes is not None and not path.exists():
            backbone = self.backbone(self.assignment())
            if sum(language_bytes(backbone, part) for part in parts.values()) > most_bytes:
                anew = (feature_samples(backbone, part, most_bytes=0) for part in parts.values())
                features = Splits(*anew)
                self._memory.put(self.path, features)
                return features
        stored = if_sound(path, read_tensors)
        if stored is None:
            with stage() as progress:
                tensors = self._computed(parts, progress)
                write_tensors(path, tensors, {}, private=True)
            # As a process that is started again has them: strides decide how sums are rounded.
            stored = read_tensors(path)
        found = (p.with_inputs(without_prefix(name, stored[0])) for name, p in parts.items())
        features = Splits(*found)
        self._memory.put(self.path, features)
        return features

    def _computed(self, parts: dict[str, Samples], progress: Progress) -> dict[str, Tensor]:
        backbone, tensors = self.backbone(self.assignment()), {}
        done, total = 0, sum(len(part) for part in parts.values())

        def count(samples: int) -> None:
            nonlocal done
            done += samples
            progress(done, total, f"{done} of {total} samples")

        for name, part in parts.items():
            inputs = feature_samples(backbone, part, done=count).inputs
            tensors |= {f"{name}.{key}": values for key, values in inputs.items()}
        return tensors

    def backbone(self, assignment: HeaderAssignment) -> PreTrainedModel:
        """The backbone of an assignment; devices of a process with the same one share it."""
        return self.once(
            assignment,
            "backbone",
            lambda: backbone_from(assignment.config, assignment.backbone),
        )

    def once(self, assignment: HeaderAssignment, part: str, make: Callable[[], Made]) -> Made:
        """See :meth:`FeatureMemory.once`."""
        return self._memory.once(checksum(encode(assignment)), part, make)

    def forget_features(self) -> None:
        """Give their storage back; they are large, and can be computed again."""
        self._memory.drop(self.path)
        remove(self._file("features"))

    # --- the header, round by round ---

    def begin(self, state: HeaderState) -> HeaderState:
        """Keep the state before the first round."""
        self._work.write({_START: state.part()})
        return state

    def before(self, number: int, start: Callable[[], HeaderState]) -> HeaderState:
        """The last state before a round; a device may have missed rounds in between.

        Args:
            number: of the round.
            start: makes the state before the first round, should it be damaged.

        Raises:
            DamagedError: if a later state, which depends on what peers have sent, is damaged or
                missing.
        """
        if self._file("assignment").exists():
            self._require_work()
        names = self._work.names()
        if earlier := _pruned_before(number, names):
            return self._state(self._work.read(earlier[-1]))
        if number and _START not in names and any(name.startswith(_PRUNED) for name in names):
            raise DamagedError(f"cannot read {self._work.path}: its states begin later")
        return self._work.if_sound(_START, self._state) or self.begin(start())

    def has_trained(self, number: int) -> bool:
        """True if the training of a round is done, and what it made is undamaged."""
        return self.if_trained(number) is not None

    def if_trained(self, number: int) -> TrainedState | None:
        """As :meth:`trained`; none if the training is not done, or what it made is damaged."""
        return self._work.if_sound(f"{_TRAINED}{number}", self._trained)

    def keep_trained(self, number: int, state: HeaderState, importance: ImportanceSet) -> None:
        """Keep what the training of a round has made, and nothing of the rounds behind it.

        The last state before the round stays: the training can be done again from it.
        """
        behind = set[str]()
        if pruned := _pruned_before(number, self._work.names()):
            behind = {_START, *pruned[:-1]} | {f"{_TRAINED}{n}" for n in range(number)}
        self._work.write({f"{_TRAINED}{number}": state.part(importance.by_layer())}, gone=behind)

    def trained(self, number: int) -> TrainedState:
        """The state after a round's training, and its neurons' importance.

        Raises:
            DamagedError: if there was none, or it is damaged.
        """
        return self._trained(self._work.read(f"{_TRAINED}{number}"))

    def keep_pruned(self, number: int, state: HeaderState) -> None:
        """Keep the state at the end of a round."""
        self._work.write({f"{_PRUNED}{number}": state.part()})

    def _state(self, part: Part) -> HeaderState:
        return HeaderState.of(part, self._work.path)

    def _trained(self, part: Part) -> TrainedState:
        state = self._state(part)
        with reading(f"cannot read {self._work.path}", DamagedError):
            importance = without_prefix("beside", part[0])
            return state, ImportanceSet.of(importance, state.current.plan.layers)

    # --- the end ---

    def report(self) -> DeviceReport | None:
        """The report, if there is one."""
        found = _finished(self.path)
        return found.report if found else None

    def finish(self, report: DeviceReport, answers: Answers | None) -> None:
        """Keep the report and what ships as it is: the work for this assignment is over."""
        found = Finished(report, _digests(self.path), answers)
        content = TypeAdapter(Finished).dump_python(found, mode="json")
        self._work.write({_END: ({}, content)})

    @property
    def _work(self) -> Parts:
        return _work(self.path)

    def _file(self, name: str) -> Path:
        return self.path / _STATE / f"{name}.safetensors"


def _pruned_before(number: int, names: Sequence[str]) -> list[str]:
    """Those parts that are ends of rounds before this one, the last one last."""
    return [name for n in range(number) if (name := f"{_PRUNED}{n}") in names]


def _work(folder: Path) -> Parts:
    """The file of a device's own work."""
    return Parts(folder / _STATE / "work.safetensors")


def _finished(folder: Path) -> Finished | None:
    """The end of a device's work, also one that an older version kept in a file of its own."""
    work = _work(folder)
    found = work.if_sound(_END, lambda part: typed(work.path, Finished, part[1]))
    older = folder / _STATE / _OLDER
    return found or if_sound(older, lambda path: read_sealed_json(path, Finished))


def kept_answers(folder: Path) -> Answers | None:
    """The answers that a device has noted; none of an older version's device."""
    found = _finished(folder)
    return found.answers if found else None


def changed_files(folder: Path) -> list[str] | None:
    """Files that a device ships and that :meth:`DeviceFolder.finish` saw otherwise.

    None, if what it saw is not known.
    """
    kept = _finished(folder)
    if kept is None:
        return None
    found = _digests(folder)
    return [name for name, digest in kept.shipped.items() if found.get(name) != digest]


def _digests(folder: Path) -> dict[str, str]:
    """Checksums of the files outside the device's own state."""
    with reading(f"cannot read {folder}", DamagedError):
        paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        return {
            name.as_posix(): checksum(path.read_bytes())
            for name, path in sorted(paths.items())
            if name.parts[0] != _STATE
        }
