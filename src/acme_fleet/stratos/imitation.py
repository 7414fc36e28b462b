"""Training a student: the next token of answers, a teacher's logits, the best one by validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from acme_fleet.config.training import Training
from acme_fleet.errors import FleetError
from acme_fleet.models.features import LanguageModel
from acme_fleet.models.storage import read_tensors, write_tensors
from acme_fleet.runs.notes import Progress
from acme_fleet.runs.sealed import STRICT, if_sound, typed
from acme_fleet.stratos.budget import BudgetSpentError, Meter
from acme_fleet.stratos.lessons import LEARNED, Lessons
from acme_fleet.stratos.request import Learning
from acme_fleet.tasks.base import Reduction
from acme_fleet.tasks.generation import GENERATION, Generation
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import Optimization, diverging, fit
from acme_fleet.training.precision import training_numbers
from acme_fleet.training.resume import EpochState

_MARGIN = 1.5  # a validation may take so many times as long as the longest before
_BACKWARD = 3.0  # times a forward pass that a training step takes


class Learner(nn.Module):
    """A student while it learns, with the teacher's logits beside its own where they are learned.

    Logits of tokens before the first one that is learned in a batch, of prompts, are not computed.
    """

    def __init__(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        super().__init__()
        self.student = student
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self._teacher = (teacher,)  # no part of what learns

    def forward(self, **inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch scores last"]:
        """The student's logits, and with a teacher its logits and 1 where they are learned below.

        They are of the last tokens, from the first one that is learned on.
        """
        learned, teacher = inputs.pop(LEARNED), self._teacher[0]
        first = int(learned.any(dim=0).int().argmax())
        own = self.student.logits_from(first, inputs)
        if teacher is None:
            return own
        taught = learned[:, first:] == 2
        rows = taught.any(dim=1)
        theirs = torch.zeros_like(own)
        if rows.any():
            with torch.no_grad():
                asked = {name: values[rows] for name, values in inputs.items()}
                theirs[rows.to(own.device)] = teacher.logits_from(first, asked).to(own.dtype)
        return torch.cat([own, theirs, taught[:, None].to(own)], dim=1)


class Imitation(Generation):
    """Cross-entropy of the next token, and with the teacher's probabilities where it is taught."""

    def __init__(self, words: int, weight: float) -> None:
        super().__init__()
        self._words, self._weight = words, weight

    def loss(
        self,
        outputs: Float[Tensor, "batch scores *positions"],
        labels: Int[Tensor, " batch *positions"],
        reduction: Reduction = "mean",
    ) -> Float[Tensor, ...]:
        """Of outputs of :class:`Learner`; both parts are means over their tokens."""
        labels = labels[:, -outputs.shape[2] :]
        if outputs.shape[1] == self._words:
            return super().loss(outputs, labels, reduction)
        own, theirs, taught = outputs.split([self._words, self._words, 1], dim=1)
        loss = super().loss(own, labels, reduction)
        places = taught[:, 0] > 0
        if not places.any():
            return loss
        mine, lesson = (each.movedim(1, -1)[places] for each in (own, theirs))
        return loss + self._weight * self.imitation(mine, lesson, "soft_cross_entropy")


@dataclass(frozen=True)
class Best:
    """The best student so far: the step that it is from, its loss, and the loss at the start."""

    __pydantic_config__ = STRICT

    step: int
    loss: float
    start: float


class BestStudent:
    """The state of an epoch, and the best student by validation; both are files.

    The student is judged before the epoch's state is written: whatever interrupts, an epoch whose
    student was not judged is trained again, to the same numbers.
    """

    def __init__(self, folder: Path, student: LanguageModel, lessons: Lessons, batch: int) -> None:
        self.path = folder / "best.safetensors"
        self.epochs = EpochState(folder / "epochs.safetensors")
        self.step, self.longest_s = 0, 0.0
        self._student, self._held, self._batch = student, lessons.validation, batch
        self._steps = math.ceil(len(lessons.train) / batch)
        stored = if_sound(self.path, self._read)
        self.best = None if stored is None else stored[1]
        if stored is None:  # lost: which epoch was the best is not known any more
            self.epochs.remove()

    def judge(self, meter: Meter) -> Best:
        """Compare the student as it is now with the best one, and keep the better."""
        before = meter.spent().training
        loss = evaluate(GENERATION, self._student, self._held, self._batch).loss
        if self.best is None or loss < self.best.loss:
            start = loss if self.best is None else self.best.start
            self.best = Best(self.step, loss, start)
            write_tensors(self.path, self._student.state_dict(), vars(self.best))
        self.longest_s = max(self.longest_s, meter.spent().training - before)
        return self.best

    def restore_best(self) -> Best:
        """Give the student the best weights."""
        tensors, best = self._read(self.path)
        self._student.load_state_dict(tensors)
        return best

    def _read(self, path: Path) -> tuple[dict[str, Tensor], Best]:
        tensors, about = read_tensors(path)
        return tensors, typed(path, Best, about)

    def metered(self, meter: Meter) -> _Metered:
        """As the training loop keeps it."""
        return _Metered(self, meter, self._steps)


@dataclass
class _Metered:
    """State of an epoch that judges the student, and a step that looks at the budget."""

    of: BestStudent
    meter: Meter
    steps: int
    longest_s: float = 0.0
    last_s: float | None = None

    def save(
        self, epochs: int, module: nn.Module, optimization: Optimization, generator: torch.Generator
    ) -> None:
        self.of.step = epochs * self.steps
        self.of.judge(self.meter)
        self.of.epochs.save(epochs, module, optimization, generator)
        self.last_s = None

    def restore(
        self, module: nn.Module, optimization: Optimization, generator: torch.Generator
    ) -> int:
        finished = self.of.epochs.restore(module, optimization, generator)
        self.of.step = finished * self.steps
        return finished

    def step(self) -> None:
        """Before a step's gradients are applied: leave time for one more, and for a validation."""
        spent = self.meter.spent().training
        if self.last_s is not None:
            self.longest_s = max(self.longest_s, spent - self.last_s)
            self.of.step += 1
        self.last_s = spent
        if self.meter.left < _MARGIN * self.of.longest_s + self.longest_s:
            raise BudgetSpentError


@dataclass(frozen=True)
class Trained:
    """A training that is over.

    Attributes:
        steps: of optimisation. best: of them, up to the best student; 0: as it began.
        spent: true if the budget ended it. start, loss: per token of an answer, on validation
            texts, before training and of the best student.
    """

    __pydantic_config__ = STRICT

    steps: int
    best: int
    spent: bool
    start: float
    loss: float


def train_student(
    student: LanguageModel,
    teacher: LanguageModel | None,
    lessons: Lessons,
    training: Training,
    learning: Learning,
    folder: Path,
    meter: Meter,
    draw: torch.Generator,
    progress: Progress,
) -> Trained:
    """Train in place to the best student by validation, until the epochs or the budget end.

    Args:
        student: on its device. teacher: of the same vocabulary; none where no logits are learned.
        lessons: texts. training: epochs, batches, learning rate.
        learning: weight of the teacher's logits, and numbers of matrix products.
        folder: keeps what is finished; the same call goes on. meter: counts, with the budget.
        draw: decides the order. progress: called with finished and all epochs.

    Raises:
        FleetError: if the budget ends before anything could be learned, or training diverges.
    """
    state = BestStudent(folder, student.eval(), lessons, training.batch_size)
    task = Imitation(student.backbone.config.vocab_size, learning.logits_weight)
    learner = Learner(student, teacher)
    first = lessons.train[: training.batch_size]

    def loss() -> Tensor:
        return task.loss(learner(**first.inputs), first.labels.to(student.backbone.device))

    numbers = training_numbers(learning.compute, learner, loss, folder / "compute.json")
    _check_budget(state, lessons, training, meter, taught=teacher is not None)
    kept, spent = state.metered(meter), False
    try:
        with diverging("training the student", "learning.learning_rate"):
            fit(
                task,
                learner,
                lessons.train,
                training,
                draw,
                after_backward=kept.step,
                on_epoch=lambda epoch, note: progress(epoch, training.epochs, note),
                state=kept,
                numbers=numbers,
            )
    except BudgetSpentError:
        spent = True
        learner.eval()
        state.judge(meter)
    steps, best = state.step, state.restore_best()
    return Trained(steps, best.step, spent, best.start, best.loss)


def _check_budget(
    state: BestStudent, lessons: Lessons, training: Training, meter: Meter, *, taught: bool
) -> None:
    """Judge the start, and refuse a budget that pays for no step with its validation."""
    best = state.judge(meter)  # also where training goes on: it tells how long a validation takes
    share = training.batch_size / len(lessons.validation)
    step_s = (_BACKWARD + taught) * state.longest_s * share
    need, left = _MARGIN * state.longest_s + step_s, meter.left
    if best.step == 0 and left < need:
        raise FleetError(
            f"{meter.budget} pays for {meter.budget.seconds:.3g} s; {meter.spent().training:.3g} s "
            f"are spent, and one step with its validation takes about {need:.3g} s: nothing can be "
            f"learned; raise the limit, or take a cheaper server"
        )
