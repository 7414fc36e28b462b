"""The request: a task file with data, checker, limits, servers and pairs."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from acme_fleet.config.base import Settings
from acme_fleet.config.devices import Name, Precision
from acme_fleet.outside import one_line, reading, resolved
from acme_fleet.stratos.settings_file import read_as

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Contract = Literal["on demand", "spot", "reserved"]
_QUESTION, _ANSWER = "{question}", "{answer}"


class Questions(Settings):
    """Labelled questions in JSON Lines files, one object a line."""

    train: Path
    """Questions to learn from."""
    test: Path
    """Held-out questions: none of them may be among those to learn from."""
    question: str = "question"
    """Key of the question, a text."""
    answer: str = "answer"
    """Key of the right answer, a text or a number."""
    prompt: str = "{question}"
    """Text that a model reads, with its instructions; ``{question}`` stands for the question."""
    student_prompt: str | None = None
    """Text that the student reads in place of ``prompt``: rules that it learns can be left out."""
    explain: str = (
        "{question}\nThe answer is {answer}. Write the steps from the question to this answer, and "
        "end with the answer."
    )
    """Text for a teacher that is shown the answer and writes the steps; ``{answer}`` likewise."""

    @model_validator(mode="after")
    def _distinct(self) -> Questions:
        if len({self.question, self.answer, "reply"}) < 3:
            raise ValueError("question and answer must be two keys, and none of them reply")
        return self

    @field_validator("prompt", "student_prompt", "explain")
    @classmethod
    def _asks(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        places = [_QUESTION] + [_ANSWER] * (info.field_name == "explain")
        if wrong := [place for place in places if value.count(place) != 1]:
            raise ValueError(f"must contain {wrong[0]} once")
        return value

    def prompt_of(self, question: str) -> str:
        """The prompt with a question in it."""
        return self.prompt.replace(_QUESTION, question)

    def explanation_of(self, question: str, answer: str) -> str:
        """The prompt that shows the answer."""
        before, after = self.explain.split(_ANSWER)
        return answer.join(part.replace(_QUESTION, question) for part in (before, after))


class ExactChecker(Settings):
    """The reply is right if it is the answer."""

    kind: Literal["exact"] = "exact"
    """The reply is the answer."""
    ignore_case: bool = True
    """Upper and lower case are the same."""


class NumericChecker(Settings):
    """The reply is right if its last number is the answer's."""

    kind: Literal["numeric"]
    """The reply's last number is the answer."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest difference, as a share of the answer."""


class PatternChecker(Settings):
    """The reply is right if what a regular expression finds in it is the answer."""

    kind: Literal["pattern"]
    """A regular expression finds the answer in the reply."""
    pattern: str
    """Python's syntax, with one group; its last match counts."""
    ignore_case: bool = True
    """Upper and lower case are the same."""

    @field_validator("pattern")
    @classmethod
    def _compiled(cls, value: str) -> str:
        import re

        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"must have one group, what is in (…), and has {groups}")
        return value


class PythonChecker(Settings):
    """A function of the user decides, in a process of its own."""

    kind: Literal["python"]
    """A Python function decides."""
    file: Path
    """Python file; relative to the task file."""
    function: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "check"
    """Function of question, answer and reply, all texts; it returns a bool."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """Time limit of one reply."""


Checker = Annotated[
    ExactChecker | NumericChecker | PatternChecker | PythonChecker, Field(discriminator="kind")
]


class Limits(Settings):
    """Hard limits; one that is not given does not bind."""

    min_accuracy: Share | None = None
    """Smallest accuracy on the held-out questions."""
    max_p95_latency_ms: Positive | None = None
    """Largest time to a whole answer in milliseconds, for 95 of 100 questions."""
    max_training_usd: Positive | None = None
    """Most money for labels and training, in US dollars."""
    max_usd_per_hour: Positive | None = None
    """Largest price of the server in US dollars an hour."""
    max_training_hours: Positive | None = None
    """Deadline: most hours for labels and training."""


class Weights(Settings):
    """Weights of the deployment score; they are divided by their sum."""

    accuracy: Share = 0.4
    """Of the accuracy."""
    latency: Share = 0.2
    """Of the latency."""
    training_time: Share = 0.1
    """Of the time for labels and training."""
    cost: Share = 0.3
    """Of the cost: training, and ``workload.serving_hours`` of the server."""

    @model_validator(mode="after")
    def _some(self) -> Weights:
        # Without accuracy the others must still be comparable: it is not known before a pilot.
        if not self.latency + self.training_time + self.cost > 0:
            raise ValueError("one of latency, training_time and cost must be larger than 0")
        return self


class Workload(Settings):
    """Sizes of questions and answers, and what is done with them."""

    prompt_tokens: Count
    """Tokens of a question with its instructions, of 95 of 100 questions at most."""
    answer_tokens: Count
    """Tokens of an answer, of 95 of 100 answers at most."""
    training_questions: Count
    """Questions that the student learns from."""
    epochs: Count = 3
    """Passes over them."""
    batch_size: Count = 8
    """Questions of one training step."""
    label_batch: Count = 16
    """Questions that the teacher answers at once."""
    concurrency: Count = 1
    """Answers that the server generates at once; their KV caches must fit."""
    serving_hours: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Hours that the student is served, counted into the cost."""
    teacher_precision: Precision = "float16"
    """Numbers of the teacher's weights."""
    student_precision: Precision = "float16"
    """Numbers of the student's weights as it is served; it is trained in float32."""


class PriceList(Settings):
    """A file of servers."""

    kind: Literal["skypilot", "aws", "machines"]
    """SkyPilot's CSV, a CSV price list of AWS accelerators, or a YAML file of own machines."""
    path: Path
    """The file; relative to the task file."""
    provider: Name | None = None
    """Name of the cloud, for CSV files."""
    date: datetime.date | None = None
    """Day of the prices, for CSV files, which do not tell it."""

    @model_validator(mode="after")
    def _dated(self) -> PriceList:
        own = self.kind == "machines"
        if own == (self.provider is not None) or own == (self.date is not None):
            raise ValueError(
                "a file of machines tells provider and date itself; leave them out"
                if own
                else "a CSV file tells neither provider nor date of its prices; give both"
            )
        return self


class Coverage(Settings):
    """Thresholds on the share of questions that the teacher answers right (ours)."""

    questions: Count = 100
    """Labelled questions that the teacher answers before a strategy is chosen."""
    alignment_from: Share = 0.6
    """τ_high: alignment if the lower end of the interval reaches it."""
    injection_to: Share = 0.2
    """τ_low: injection if the upper end of the interval does not exceed it."""

    @model_validator(mode="after")
    def _ordered(self) -> Coverage:
        if self.injection_to >= self.alignment_from:
            raise ValueError(
                f"injection_to {self.injection_to:g} must be smaller than alignment_from "
                f"{self.alignment_from:g}"
            )
        return self


class Program(Settings):
    """A function of the user that makes questions with known answers, in a process of its own."""

    file: Path
    """Python file; relative to the task file."""
    function: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "make"
    """Function of a seed; it returns ``question``, ``answer``, and the ``reply`` to learn."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """Time limit of one question."""


class OnPolicy(Settings):
    """Learning from what the student itself writes, by TRL, behind all else that it learns."""

    steps: Count = 200
    """Steps of optimisation."""
    batch_size: Count = 8
    """Questions of one step."""
    learning_rate: Positive = 1e-5
    """Learning rate of TRL's AdamW."""
    beta: Share = 0.5
    """Of the generalised Jensen-Shannon divergence: 0 forward, 1 reverse Kullback-Leibler."""


class Learning(Settings):
    """Data that the student learns from, and how; epochs and batches are the workload's."""

    replies: Path | None = None
    """Right replies of the teacher, from ``acme distill keep``; relative to the task file."""
    made: Path | None = None
    """Data from known answers, from ``acme distill inject``; likewise."""
    replay: Path | None = None
    """Covered texts that are not to be forgotten: JSON Lines of text, prompt and answer, or
    messages."""
    replay_share: Annotated[float, Field(gt=0, le=0.9)] = 0.2
    """Share of what is learned that is drawn from ``replay``."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the data that chooses the best student and is not learned."""
    on_policy: OnPolicy | None = None
    """Further learning from the student's own answers to the questions of ``replies``; one
    vocabulary."""
    learning_rate: Positive = 1e-3
    """Learning rate of AdamW after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Weight decay of AdamW."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of matrix products in training; auto takes bfloat16 where it is measured faster."""
    logits_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Weight of the teacher's logits beside the next token, where logits are learned."""


class Request(Settings):
    """A task file."""

    name: Name
    """Name of the task."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Decides all draws."""
    data: Questions
    """Labelled questions."""
    checker: Checker = ExactChecker()
    """Decides if a reply is right."""
    limits: Limits = Limits()
    """Hard limits."""
    weights: Weights = Weights()
    """Weights of the deployment score."""
    workload: Workload
    """Sizes of questions and answers."""
    servers: Annotated[list[PriceList], Field(min_length=1, max_length=1000)]
    """Files of servers."""
    hardware: Path | None = None
    """YAML table of accelerators beside the one that is shipped."""
    calibrations: list[Path] = []
    """Files that ``acme distill probe`` wrote on machines with the same accelerators."""
    usd_per: dict[str, Positive] = {}
    """US dollars for one unit of other currencies, such as ``{EUR: 1.1}``."""
    regions: list[str] = []
    """Patterns of regions, such as ``eu-*``; none allows all."""
    billing: Annotated[list[Contract], Field(min_length=1)] = ["on demand"]
    """Kinds of contract: ``on demand``, ``spot``, ``reserved``; own machines always count."""
    pairs: Path
    """YAML table of teachers and students."""
    licences: list[str] = []
    """Licences that models may have, by SPDX names; none allows all."""
    distillation: Literal["auto", "logits", "answers"] = "auto"
    """Learn from logits, which needs one vocabulary, or from answers; auto takes what fits."""
    coverage: Coverage = Coverage()
    """Thresholds of the strategy."""
    program: Program | None = None
    """Makes data from known answers, for injection."""
    learning: Learning = Learning()
    """What the student learns from."""

    @property
    def of_student(self) -> Request:
        """The same task with the student's prompt."""
        prompt = self.data.student_prompt or self.data.prompt
        return self.model_copy(update={"data": self.data.model_copy(update={"prompt": prompt})})

    @staticmethod
    def from_yaml(path: str | Path) -> Request:
        """Read and check a task file. Relative paths in it are relative to the file.

        Raises:
            FleetError: naming the key, its value and what would be right.
        """
        path = Path(path)
        example = "`acme distill init NEW.yaml` writes an example"
        return _resolved(read_as(Request, path, "task file", example), path.parent)

    def to_yaml(self) -> str:
        """The task with every default written out; reading it back gives an equal task."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _resolved(value: Any, folder: Path) -> Any:
    """The same settings with relative paths made absolute, taken from ``folder``."""
    match value:
        case Path():
            with reading(f"cannot use the path {one_line(str(value))}"):
                return resolved(folder / value)
        case list():
            return [_resolved(item, folder) for item in value]
        case Settings():
            fields = {name: _resolved(own, folder) for name, own in value}
            return value.model_copy(update=fields)
    return value
