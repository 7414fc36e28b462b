"""One training loop for everything in the project that learns from labels."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from acme_fleet.config.data import ABSENT
from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError
from acme_fleet.models.padding import shuffled, without_padding
from acme_fleet.runs.notes import training_note
from acme_fleet.seeding import derive_seed, seeded
from acme_fleet.tasks.base import Task
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.group import ALONE, Group
from acme_fleet.training.precision import Numbers, mixed_precision


class Diverged(FleetError):
    """A training whose loss is no number any more."""


@contextmanager
def diverging(stage: str, setting: str) -> Iterator[None]:
    """Name the stage whose training diverges, and the setting that should be lower.

    Raises:
        Diverged: with both in its message.
    """
    try:
        yield
    except Diverged as error:
        raise Diverged(f"{stage}: {error}; set a lower {setting} and start anew") from error


def diverged(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """True if a loss or a weight is not finite."""
    if loss.is_meta:  # a dry run: shapes without numbers
        return False
    return not all(bool(each.isfinite().all()) for each in (loss, *parameters))


def check_converging(
    loss: Tensor, parameters: Iterable[Tensor], epoch: int, training: Training
) -> None:
    """Stop a training after the first epoch that ends without numbers.

    Args:
        loss: the sum of the epoch's losses.
        parameters: as the epoch leaves them.
        epoch: counted from 0.
        training: of the stage.

    Raises:
        Diverged: naming the epoch and the learning rate.
    """
    if diverged(loss, parameters):
        raise Diverged(
            f"training diverged in epoch {epoch + 1} of {training.epochs}: at a learning rate of "
            f"{training.learning_rate:g} loss and weights are no finite numbers any more"
        )


def steps_of(samples: Samples, training: Training) -> int:
    """Number of optimisation steps that ``training`` takes on ``samples``."""
    return training.epochs * math.ceil(len(samples) / training.batch_size)


def learning_rate_scale(step: int, steps: int, warmup_share: float = 0.1) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warmup_share: float = 0.1
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate by :func:`learning_rate_scale`."""

    def scale(step: int) -> float:
        return learning_rate_scale(step, steps, warmup_share)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments and step counts, by parameter and name."""
    by_parameter = optimizer.state_dict()["state"]
    return {f"{i}.{k}": value for i, of in by_parameter.items() for k, value in of.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Go on from what :func:`optimizer_tensors` returned."""
    by_parameter: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        by_parameter[int(index)][key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})


class Optimization:
    """AdamW with warm-up, cosine decay and gradient clipping over a known number of steps."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        training: Training,
        steps: int,
        scales: Mapping[Tensor, float] | None = None,
        group: Group = ALONE,
    ) -> None:
        """Some parameters may learn ``scales`` times as fast as the settings say.

        The gradients of a ``group`` add up.
        """
        self._group = group
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            _groups(self.parameters, training.learning_rate, scales or {}),
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            # In place of some operations for each tensor, of which there are hundreds.
            fused={p.device.type for p in self.parameters} <= {"cpu", "cuda"},
        )
        self.schedule = warmup_cosine(self.optimizer, steps)

    def step(self) -> None:
        """Apply the gradients that have gathered, then clear them."""
        self._group.add_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Moments and step counts by parameter, and the schedule's state as JSON has it."""
        return optimizer_tensors(self.optimizer), self.schedule.state_dict()

    def restore(self, tensors: Mapping[str, Tensor], schedule: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        restore_optimizer(self.optimizer, tensors)
        self.schedule.load_state_dict(schedule)
        for group, rate in zip(self.optimizer.param_groups, schedule["_last_lr"], strict=True):
            group["lr"] = rate


def _groups(
    parameters: Sequence[Tensor], rate: float, scales: Mapping[Tensor, float]
) -> list[dict[str, Any]]:
    """One group for each learning rate, in the order of the parameters."""
    groups: dict[float, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault(rate * scales.get(parameter, 1.0), []).append(parameter)
    return [{"params": members, "lr": own} for own, members in groups.items()]


@runtime_checkable
class Resumable(Protocol):
    """A training stage's state on disk: :class:`acme_fleet.training.resume.EpochState`."""

    def save(
        self, epochs: int, module: nn.Module, optimization: Optimization, generator: torch.Generator
    ) -> None:
        """Keep the state after ``epochs`` epochs."""
        ...

    def restore(
        self, module: nn.Module, optimization: Optimization, generator: torch.Generator
    ) -> int:
        """Go back to the state kept; returns the epochs that are finished."""
        ...


def fit(
    task: Task,
    module: nn.Module,
    samples: Samples,
    training: Training,
    generator: torch.Generator,
    *,
    validation: Samples | None = None,
    augment: Callable[[Samples, torch.Generator], Samples] | None = None,
    after_backward: Callable[[], None] | None = None,
    on_epoch: Callable[[int, str], None] | None = None,
    state: Resumable | None = None,
    tolerant: bool = False,
    scales: Mapping[Tensor, float] | None = None,
    patience: int | None = None,
    numbers: Numbers | None = None,
    group: Group = ALONE,
) -> None:
    """Train with the task's loss, in place, where the module's parameters are.

    With ``validation`` the best epoch's weights are kept, those before the first epoch included.

    Args:
        task: its loss is learned, and its evaluations choose the epoch.
        module: takes the samples' inputs by name and returns the task's outputs.
        samples: the training data, and nothing else.
        training: epochs, batch size, learning rate, weight decay.
        generator: decides the order of the samples, the augmentation and dropout.
        validation: chooses the epoch; without it the last epoch's weights stay.
        augment: changes each batch before it is used.
        after_backward: called while the gradients of a step are present.
        on_epoch: called with the number of finished epochs, and loss and validation in words.
        state: written after each epoch; if it holds something, training goes on from there. It
            does not hold the best epoch, so it cannot be combined with ``validation``.
        tolerant: a training that diverges ends early with the best epoch's weights, or without
            ``validation`` with those before the first epoch, in place of an error.
        scales: of the learning rates of some parameters.
        patience: with ``validation``, epochs after which training ends if none of them was better
            than an epoch before. The start does not count: training often falls below it first.
        numbers: of matrix products, see :func:`~acme_fleet.training.precision.mixed_precision`.
        group: processes that do the same, each with its parts of every batch.

    Raises:
        Diverged: after the first epoch whose loss is no number.
    """
    if state and validation is not None:
        raise ValueError("the best epoch so far is not kept in the state of an epoch")
    steps = steps_of(samples, training)
    optimization = Optimization(module.parameters(), training, steps, scales, group)
    device = optimization.parameters[0].device
    waited, latest = 0, None
    module.eval()
    best = None if validation is None else group.told(evaluate(task, module, validation))
    goes_back = validation is not None
    kept = copy.deepcopy(module.state_dict()) if goes_back or tolerant else {}
    finished = state.restore(module, optimization, generator) if state else 0
    for epoch in range(finished, training.epochs):
        module.train()
        with seeded(derive_seed(generator.initial_seed(), "dropout", epoch), device):
            batches = shuffled(samples, training.batch_size, generator)
            augmented = (augment(each, generator) if augment else each for each in batches)
            mixed = partial(mixed_precision, device, numbers)
            parted = (in_parts(each, training.parts * group.size) for each in augmented)
            own = map(group.own, parted)
            loss = group.total(_epoch(task, module, own, optimization, mixed, after_backward))
        module.eval()
        if tolerant and diverged(loss, optimization.parameters):
            goes_back = True
            break
        check_converging(loss, optimization.parameters, epoch, training)
        result = None
        if validation is not None:
            result = group.told(evaluate(task, module, validation))
            waited += 1
            if latest is None or result.better_than(latest):
                latest, waited = result, 0
            if best is not None and result.better_than(best):
                best, kept = result, copy.deepcopy(module.state_dict())
        if state and group.rank == 0:
            state.save(epoch + 1, module, optimization, generator)
        if on_epoch:
            mean = float(loss) / math.ceil(len(samples) / training.batch_size)
            judged = None if result is None else task.written(result)
            on_epoch(epoch + 1, training_note(mean, judged))
        if patience is not None and waited >= patience:
            break
    if goes_back:
        module.load_state_dict(kept)


def _epoch(
    task: Task,
    module: nn.Module,
    batches: Iterable[Sequence[tuple[Samples, float]]],
    optimization: Optimization,
    mixed: Callable[[], AbstractContextManager[object]],
    after_backward: Callable[[], None] | None,
) -> Tensor:
    """A step for each batch; the sum of their losses."""
    device = optimization.parameters[0].device
    total = torch.zeros((), device=device)
    for batch in batches:
        for part, share in batch:
            with mixed():
                loss = share * task.loss(module(**part.inputs), part.labels.to(device))
            loss.backward()
            total += loss.detach()
        if after_backward:
            after_backward()
        optimization.step()
    return total


def in_parts(batch: Samples, parts: int) -> list[tuple[Samples, float]]:
    """Parts of a batch, each with its share of what a mean is over.

    That is labels, of texts without any their real tokens, and otherwise samples. The gradients of
    the parts' means, weighted by their shares, add up to that of the batch's mean.
    """
    if parts == 1:
        return [(batch, 1.0)]
    split = list(batch.batches(math.ceil(len(batch) / parts)))
    counts = [_means_over(part) for part in split]
    whole = sum(counts)
    return [(without_padding(p), n / whole) for p, n in zip(split, counts, strict=True) if n]


def _means_over(batch: Samples) -> int:
    if batch.labelled:
        return int((batch.labels != ABSENT).sum())
    mask = batch.inputs.get("attention_mask")
    return len(batch) if mask is None else int((mask != 0).sum())
