"""Teachers and students from a table, and the pairs that are possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from acme_fleet.config.backbone import Width
from acme_fleet.config.base import Settings, chosen
from acme_fleet.config.devices import Name, Precision
from acme_fleet.cost.variant import Variant
from acme_fleet.errors import FleetError
from acme_fleet.stratos.cuts import Shape, cut_sizes, model_size
from acme_fleet.stratos.predictors.size import ModelSize, weights_bytes
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.settings_file import read_as

Count = Annotated[int, Field(ge=1, le=2**53)]
Kind = TypeVar("Kind", bound="Model")


class Pilot(Settings):
    """Accuracy of a student that was distilled for this very task, on held-out questions."""

    correct: Annotated[int, Field(ge=0)]
    """Questions that it answered right."""
    asked: Count
    """Questions that it was asked."""

    @model_validator(mode="after")
    def _part(self) -> Pilot:
        if self.correct > self.asked:
            raise ValueError(f"correct {self.correct} is more than asked {self.asked}")
        return self


class Model(Settings):
    """A language model."""

    name: Name
    """Name of the model, unique in the table."""
    weights: str
    """Place of the weights: a folder, relative to the table, or a name on the Hugging Face hub."""
    licence: str
    """SPDX name of the licence, such as ``apache-2.0``."""
    tokenizer: Name
    """Name of the tokenizer; models with the same one share a vocabulary."""
    shape: Shape
    """Sizes of the model."""


class Teacher(Model):
    """A model that students learn from."""

    may_teach: bool
    """If the licence allows other models to learn from its answers; read it."""


class Student(Model):
    """A model that learns."""

    pilot: Pilot | None = None
    """Measured accuracy on this task; none: it is not known, and no formula guesses it."""


class Cuts(Settings):
    """Students that ACME cuts from a teacher."""

    teacher: Name
    """Name of the teacher."""
    widths: Annotated[list[Width], Field(min_length=1, max_length=16)] = [1.0]
    """Shares w of heads and neurons."""
    hidden: Annotated[list[Width], Field(min_length=1, max_length=16)] = [1.0]
    """Shares of the hidden size."""
    depths: Annotated[list[Count], Field(min_length=1, max_length=64)]
    """Numbers of layers d."""
    vocabulary: Count | None = None
    """Tokens that students keep, those that the texts to learn use most; none keeps all, and so
    the teacher's logits can be learned."""
    pilots: dict[str, Pilot] = {}
    """Measured accuracies on this task, by the names that ``acme distill plan`` shows."""


class PairTable(Settings):
    """A table of teachers and students. Every teacher is tried with every student."""

    teachers: Annotated[list[Teacher], Field(min_length=1, max_length=100)]
    """Models to learn from."""
    students: Annotated[list[Student], Field(max_length=1000)] = []
    """Independent models that learn."""
    cuts: Annotated[list[Cuts], Field(max_length=100)] = []
    """Students that are cut from teachers."""

    @model_validator(mode="after")
    def _consistent(self) -> PairTable:
        for models in (self.teachers, self.students):
            names = [model.name for model in models]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{', '.join(twice)} stands twice; names are unique")
        if not self.students and not self.cuts:
            raise ValueError("there is no student: give students, or cuts of a teacher")
        sizes: dict[str, Model] = {}
        for model in (*self.teachers, *self.students):
            first = sizes.setdefault(model.tokenizer, model)
            if first.shape.vocabulary != model.shape.vocabulary:
                raise ValueError(
                    f"{first.name} and {model.name} have the tokenizer {model.tokenizer}, and "
                    f"vocabularies of {first.shape.vocabulary} and {model.shape.vocabulary}"
                )
        known = {teacher.name for teacher in self.teachers}
        if unknown := sorted({cut.teacher for cut in self.cuts} - known):
            raise ValueError(f"cuts: there is no teacher {', '.join(unknown)}")
        return self


@dataclass(frozen=True)
class Candidate:
    """A student, independent or cut.

    Attributes:
        name: as in the table; of a cut the teacher's name with width and depth.
        size: its sizes.
        licence, tokenizer: as in the table.
        served_bytes: of its weights as served; exact for cuts.
        cut_from: name of the teacher; none for an independent student.
        pilot: its measured accuracy.
        weights: place of the weights; of a cut the teacher's.
        cut: shares and depth of a cut.
        vocabulary: tokens that a cut keeps; none keeps all.
    """

    name: str
    size: ModelSize
    licence: str
    tokenizer: str
    served_bytes: float
    cut_from: str | None
    pilot: Pilot | None
    weights: str
    cut: Variant | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    Attributes:
        teacher, teacher_size: from the table.
        student: independent, or a cut of this teacher.
        by: what is learned from.
        excluded: the reason why the pair is impossible; none if it is possible.
    """

    teacher: Teacher
    teacher_size: ModelSize
    student: Candidate
    by: Literal["logits", "answers"]
    excluded: str | None

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.teacher.name} → {self.student.name}"


def read_pairs(path: Path) -> PairTable:
    """Read and check a table of pairs.

    Raises:
        FleetError: naming the key that is wrong.
    """
    table = read_as(PairTable, path, "table of pairs", "`acme distill init` writes an example")

    def placed(model: Kind) -> Kind:
        folder = path.parent / model.weights
        return model.model_copy(update={"weights": str(folder)}) if folder.is_dir() else model

    return table.model_copy(
        update={
            "teachers": [placed(model) for model in table.teachers],
            "students": [placed(model) for model in table.students],
        }
    )


def teacher_named(table: PairTable, name: str | None) -> Teacher:
    """A teacher of a table; without a name the only one.

    Raises:
        FleetError: if there is none of this name, or several without a name.
    """
    names = {teacher.name: teacher for teacher in table.teachers}
    if name is None and len(names) > 1:
        raise FleetError(f"--teacher: name one of {', '.join(names)}")
    return table.teachers[0] if name is None else chosen(names, name, "--teacher")


def pairs_of(request: Request) -> list[Pair]:
    """All pairs of a request's table, also impossible ones with the reason; sorted by name.

    Raises:
        FleetError: if the table is wrong, see :func:`read_pairs` and :func:`make_pairs`.
    """
    workload = request.workload
    return make_pairs(
        read_pairs(request.pairs),
        precision=workload.student_precision,
        tokens=workload.prompt_tokens + workload.answer_tokens,
        licences=request.licences,
        distillation=request.distillation,
    )


def make_pairs(
    table: PairTable,
    *,
    precision: Precision,
    tokens: int,
    licences: Sequence[str] = (),
    distillation: Literal["auto", "logits", "answers"] = "auto",
) -> list[Pair]:
    """All pairs, also impossible ones with the reason; sorted by name.

    Args:
        table: teachers and students.
        precision: of the student's weights as served.
        tokens: of a question with its answer, which both contexts must hold.
        licences: allowed ones; none allows all.
        distillation: what is learned from.

    Raises:
        FleetError: if a shape is impossible, a pilot is of no cut, or no pair is possible.
    """
    cuts = {teacher.name: list[Candidate]() for teacher in table.teachers}
    teachers = {teacher.name: teacher for teacher in table.teachers}
    for cut in table.cuts:
        cuts[cut.teacher] += _cut_candidates(cut, teachers[cut.teacher], precision)
    independent = [_candidate(student, precision) for student in table.students]
    pairs = []
    for teacher in table.teachers:
        size = model_size(teacher.shape, teacher.name)
        for student in (*independent, *cuts[teacher.name]):
            shared = teacher.tokenizer == student.tokenizer
            by = "logits" if shared and distillation != "answers" else "answers"
            why = _excluded(teacher, size, student, tokens, licences)
            if distillation == "logits" and not shared:
                why = why or (
                    f"logits need one vocabulary: {teacher.tokenizer} is not {student.tokenizer}"
                )
            pairs.append(Pair(teacher, size, student, by, why))
    if all(pair.excluded for pair in pairs):
        told = "; ".join(f"{pair.name}: {pair.excluded}" for pair in pairs[:5])
        raise FleetError(f"no pair of teacher and student is possible: {told}")
    return sorted(pairs, key=lambda pair: pair.name)


def _excluded(
    teacher: Teacher, size: ModelSize, student: Candidate, tokens: int, licences: Sequence[str]
) -> str | None:
    if not teacher.may_teach:
        return f"the licence {teacher.licence} of {teacher.name} forbids distillation"
    for name, licence in ((teacher.name, teacher.licence), (student.name, student.licence)):
        if licences and licence not in licences:
            return f"the licence {licence} of {name} is not among licences"
    for name, context in ((teacher.name, size.context), (student.name, student.size.context)):
        if context < tokens:
            return f"the context of {name} is {context} tokens, question and answer have {tokens}"
    return None


def _candidate(student: Student, precision: Precision) -> Candidate:
    size = model_size(student.shape, student.name)
    return Candidate(
        name=student.name,
        size=size,
        licence=student.licence,
        tokenizer=student.tokenizer,
        served_bytes=weights_bytes(size, precision),
        cut_from=None,
        pilot=student.pilot,
        weights=student.weights,
    )


def _cut_candidates(cut: Cuts, teacher: Teacher, precision: Precision) -> list[Candidate]:
    grid = [(w, h, d) for w in cut.widths for h in cut.hidden for d in cut.depths]
    found, shape, words, smaller = [], teacher.shape, cut.vocabulary, ""
    if words is not None:
        if words >= shape.vocabulary:
            raise FleetError(
                f"cuts: vocabulary: {teacher.name} has {shape.vocabulary} tokens, and a cut of it "
                f"has fewer, not {words}"
            )
        shape, smaller = shape.model_copy(update={"vocabulary": words}), f"-v{words}"
    for variant, size, served in cut_sizes(shape, teacher.name, grid, precision):
        name, tokenizer = f"{teacher.name}/{variant.trained.name}{smaller}", teacher.tokenizer
        found.append(
            Candidate(
                *(name, size, teacher.licence, tokenizer + smaller, served, teacher.name),
                *(cut.pilots.get(name), teacher.weights, variant.trained, words),
            )
        )
    if unknown := sorted(set(cut.pilots) - {candidate.name for candidate in found}):
        names = ", ".join(candidate.name for candidate in found[:5])
        raise FleetError(f"cuts: pilots: there is no cut {unknown[0]}; there are {names}")
    return found
