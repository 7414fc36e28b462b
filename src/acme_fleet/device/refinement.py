"""A device's work on its header: train it, prune it, and keep the best so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.device.importance import ImportanceAccumulator, neurons_to_keep
from acme_fleet.errors import DamagedError
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import (
    Header,
    LinearHeader,
    answering_as,
    build_header,
    linear_header,
    prune,
)
from acme_fleet.models.lora import with_lora
from acme_fleet.models.parts import Part
from acme_fleet.models.probe import refit
from acme_fleet.models.storage import with_prefix, without_prefix
from acme_fleet.outside import listed
from acme_fleet.runs.notes import Progress
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.training.evaluation import evaluate, first_best
from acme_fleet.training.loop import fit
from acme_fleet.training.start import changed


@dataclass(frozen=True)
class LocalTraining:
    """One device's work: its header, its features, and the generator of its samples' order."""

    header: Header
    features: Splits
    generator: torch.Generator


_LORA_LAYERS = 2
_STATE_ENTRIES = ("current", "best", "evaluation")
"""Beside the tensors of a :class:`HeaderState`."""
Trained = tuple[Header, ImportanceSet]
"""A trained header and its neurons' importance, as ``train_header`` returns them."""


@dataclass(frozen=True)
class HeaderState:
    """The header as it is, and the best one so far by the device's validation split.

    The coarse header is the first best: by the device's validation data it never ships a worse one
    than it received. Its test data may say otherwise, above all where validation data are few.
    """

    current: Header
    best: Header
    best_evaluation: Evaluation

    @staticmethod
    def start(task: Task, coarse: Header, features: Splits) -> HeaderState:
        """The state on arrival: the best by validation data of the coarse header, and others.

        Those are that header with its linear part changed as the device's samples say, a little or
        more, and the task's probe in place of that part, without what its layers find. A task
        without a probe starts with the coarse header.
        """
        headers = [coarse]
        if task.probe is not None:
            tensors = coarse.state_dict()
            linear = without_prefix("classifier.pooled", tensors)
            starts = [
                tensors | with_prefix("classifier.pooled", own)
                for own in changed(task, coarse, linear, features.train)
            ]
            probe = refit(task.probe, linear, features.train, features.validation)
            starts.append(answering_as(tensors, probe))
            headers += [build_header(coarse.plan, start) for start in starts]
        best, evaluation = first_best(task, headers, features.validation)
        return HeaderState(headers[best], headers[best], evaluation)

    def with_current(self, task: Task, header: Header, validation: Samples) -> HeaderState:
        """The state after a change of the header."""
        evaluation = evaluate(task, header, validation)
        # At an equal score the later header wins: it is never larger.
        if evaluation.scores_at_least(self.best_evaluation):
            return HeaderState(header, header, evaluation)
        return HeaderState(header, self.best, self.best_evaluation)

    def part(self, beside: Mapping[str, Tensor] | None = None) -> Part:
        """Both headers for a file; ``beside`` are further tensors, under ``beside.``."""
        tensors = with_prefix("beside", beside or {})
        tensors |= with_prefix("current", self.current.state_dict())
        tensors |= with_prefix("best", self.best.state_dict())
        return tensors, {
            "current": self.current.plan.model_dump(mode="json"),
            "best": self.best.plan.model_dump(mode="json"),
            "evaluation": asdict(self.best_evaluation),
        }

    @staticmethod
    def of(part: Part, path: Path) -> HeaderState:
        """The state that :meth:`part` gave, from a file.

        Raises:
            DamagedError: naming the file, if it is something else.
        """
        tensors, about = part
        if absent := [name for name in _STATE_ENTRIES if name not in about]:
            raise DamagedError(
                f"cannot read {path}: it has no {listed(absent)}: an older version of acme-fleet "
                f"wrote it, or it is damaged"
            )

        def header(which: str) -> Header:
            plan = HeaderPlan.model_validate(about[which])
            return build_header(plan, without_prefix(which, tensors))

        try:
            evaluation = Evaluation(**about["evaluation"])
            return HeaderState(header("current"), header("best"), evaluation)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedError(f"{path} is damaged: {error}") from error


def train_header(
    task: Task,
    header: Header,
    features: Splits,
    training: Training,
    generator: torch.Generator,
    *,
    to_mix: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train a copy on private features.

    The best epoch by validation is kept, those before the first included. A header whose weights
    are mixed with others' (``to_mix``) keeps its last epoch: what a device has learned can lower
    its own accuracy and still raise that of the mixture. A training that diverges ends with the
    best epoch so far, or with the header as it was.

    Returns:
        The trained header, and the importance of its neurons, mean over all iterations
        (Eq. 17-18).
    """
    trained = build_header(header.plan, header.state_dict())
    accumulator = ImportanceAccumulator(trained)
    fit(
        task,
        trained,
        features.train,
        training,
        generator,
        validation=None if to_mix else features.validation,
        after_backward=accumulator.add,
        on_epoch=lambda epoch, note: progress(epoch, training.epochs, note) if progress else None,
        tolerant=True,
    )
    return trained, accumulator.result(header.plan.genotype.channels)


def prune_header(header: Header, importance: ImportanceSet, share: float) -> Header:
    """Physically remove the least important share of the neurons (METHOD 8)."""
    left = {name: layer.outputs for name, layer in header.plan.layers.items()}
    return prune(header, neurons_to_keep(importance, left, share))


def lora_rival(
    task: Task,
    backbone: PreTrainedModel,
    rank: int,
    private: Splits,
    training: Training,
    generator: torch.Generator,
) -> tuple[Evaluation, int]:
    """A LoRA on the frozen backbone, without a header, trained on the same data as the header.

    Args:
        task: on logits.
        backbone: a language model's.
        rank: of the changes.
        private: the device's data as tokens.
        training: with as many epochs in all as the header has had.
        generator: draws the first weights and the order.

    Returns:
        Its evaluation on the test data, and its numbers.
    """
    model = with_lora(backbone, rank, _LORA_LAYERS, generator)
    validation = private.validation
    fit(task, model, private.train, training, generator, validation=validation, tolerant=True)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return evaluate(task, model, private.test), count


def linear_rival(
    task: Task,
    tensors: Mapping[str, Tensor],
    features: Splits,
    training: Training,
    generator: torch.Generator,
    *,
    causal: bool = False,
) -> LinearHeader:
    """A linear header from its coarse weights, trained on the same data as the header."""
    rival = linear_header(tensors, causal=causal)
    validation = features.validation
    fit(task, rival, features.train, training, generator, validation=validation, tolerant=True)
    return rival
