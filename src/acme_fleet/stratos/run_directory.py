"""The directory of a distillation: its task, what was chosen, and ``summary.json``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from acme_fleet.config.devices import Precision
from acme_fleet.failures import called
from acme_fleet.runs.directory import Directory
from acme_fleet.runs.sealed import read_marked_json, typed, write_marked_json
from acme_fleet.stratos.request import Request

Count = Annotated[int, Field(ge=0, le=2**63)]
Amount = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Prediction(_Record):
    """A plan's value with the ends of its error bar."""

    value: Amount
    low: Amount
    high: Amount
    source: str


class Considered(_Record):
    """A pair on a server that stood on the front, or that a simpler rule would have taken.

    ``words`` say which: ``chosen``, ``front``, ``cost first`` and so on. ``accuracy`` is a pilot's
    measured share; ``cost_usd`` is that of labels, training and the hours of serving.
    """

    words: list[str]
    pair: str
    server: str
    region: str
    billing: str
    usd_per_hour: Amount
    accuracy: Annotated[float, Field(ge=0, le=1)] | None
    latency_s: Amount
    training_s: Amount
    cost_usd: Amount
    score: float


class Excluded(_Record):
    """Candidates that miss a limit; one may miss several."""

    limit: str
    bound: float | None
    unit: str
    candidates: Count


class PlanKept(_Record):
    """The plan behind a choice.

    ``impossible`` pairs have their reasons; ``candidates`` counts possible pairs × servers.
    """

    impossible: dict[str, str]
    candidates: Count
    feasible: Count
    excluded: list[Excluded]
    considered: list[Considered]
    objectives: list[str]


class Chosen(_Record):
    """A pair on a server, as the plan had it when the run began.

    ``accelerators`` are name and number, as ``L4:1``; ``data`` are checksums of the files that are
    learned from and tested on; ``plan`` is missing in runs of older versions.
    """

    pair: str
    teacher: str
    student: str
    by: Literal["logits", "answers"]
    server: str
    provider: str
    region: str
    zone: str | None
    billing: Literal["on demand", "spot", "reserved", "owned"]
    accelerators: str | None
    usd_per_hour: Amount
    training_s: Prediction
    training_usd: Prediction
    latency_s: Prediction
    pilot: tuple[Count, Count] | None
    data: dict[str, str]
    plan: PlanKept | None = None


class Marked(_Record):
    """Right answers of ``asked``, and Wilson's 95 % interval of the share."""

    right: Count
    asked: Count
    low: Amount
    high: Amount


class Losses(_Record):
    """Loss per token of an answer on validation texts, before training and of the student."""

    start: Amount
    student: Amount


class Served(_Record):
    """Seconds of answers that were written one at a time, see :class:`.serving.Latency`."""

    answers: Count
    tokens: Count
    mean_s: Amount
    p50_s: Amount
    p95_s: Amount
    first_p50_s: Amount
    first_p95_s: Amount

    def usd_per_thousand(self, usd_per_hour: float) -> float:
        """Price of a thousand answers, one after the other, on a server of a price."""
        return 1000 * self.mean_s / 3600 * usd_per_hour


class Answered(_Record):
    """A reply, and the checker's decision."""

    text: str
    right: bool


class Example(_Record):
    """A held-out question with its answer, and the replies to it."""

    question: str
    answer: str
    student: Answered
    start: Answered
    teacher: Answered


class DistillSummary(_Record):
    """The whole run.

    ``texts`` by kind, validation included; ``steps`` of optimisation, of ``planned_steps``;
    ``best_step`` is the student's, 0 as it began; ``ended_by`` the epochs or the budget.
    ``served`` is the student's latency on the machine of the run, ``taught`` the teacher's;
    the student's weights, and so its marks, are of ``precision``, losses are of float32.
    """

    name: str
    seed: int
    chosen: Chosen
    params: Count
    texts: dict[str, Count]
    steps: Count
    planned_steps: Count
    best_step: Count
    ended_by: Literal["epochs", "budget"]
    validation: Losses
    replayed: Losses | None
    student: Marked
    start: Marked
    teacher: Marked
    served: Served
    taught: Served
    examples: list[Example]
    precision: Precision
    min_accuracy: float | None
    max_p95_latency_ms: float | None
    training_s: Amount
    training_usd: Amount
    evaluation_s: Amount
    evaluation_usd: Amount

    def write(self, path: Path) -> None:
        """Write as indented JSON with a checksum, atomically.

        Raises:
            WriteError: if it cannot be written.
        """
        write_marked_json(path, self.model_dump(mode="json"))

    @staticmethod
    def read(path: Path) -> DistillSummary:
        """Read what :meth:`write` wrote.

        Raises:
            DamagedError: if it is missing or damaged.
        """
        return typed(path, DistillSummary, read_marked_json(path))


class DistillDirectory(Directory[Request]):
    """``task.yaml``, ``choice.json``, ``summary.json``, ``student/``, and the state of a run.

    ``student/`` and ``start/``, the student before training, are Hugging Face folders;
    ``answers/`` has what models answered to held-out questions.
    """

    document = "task.yaml"
    holds = "task"

    @staticmethod
    def read(path: Path) -> Request:
        """See the base class."""
        return Request.from_yaml(path)

    @property
    def resume_command(self) -> str:
        """See the base class."""
        of = "distill", "run", str(self.path / self.document), "--out", str(self.path)
        return f"{called()} {shlex.join([*of, '--resume'])}"

    @property
    def choice(self) -> Path:
        """The pair and the server."""
        return self.path / "choice.json"

    @property
    def spent(self) -> Path:
        """Seconds until now."""
        return self.path / "spent.json"

    @property
    def trained(self) -> Path:
        """The end of training."""
        return self.path / "trained.json"

    @property
    def start(self) -> Path:
        """The student before training, of a cut."""
        return self.path / "start"

    @property
    def page(self) -> Path:
        """The report for a browser."""
        return self.path / "report.html"

    @property
    def student(self) -> Path:
        """The student."""
        return self.path / "student"

    def answers(self, name: str) -> Path:
        """Answers of a model to held-out questions."""
        return self.path / "answers" / f"{name}.jsonl"
