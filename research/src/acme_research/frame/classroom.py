"""One seed of a story of Stratos: teacher, task files and students by ``acme distill``'s code."""

import json
import runpy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from acme_fleet.config.training import Training
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import read_checkpoint
from acme_fleet.seeding import derive_seed
from acme_fleet.stratos.calibration import write_calibration
from acme_fleet.stratos.checkers import right_replies
from acme_fleet.stratos.distill import distil
from acme_fleet.stratos.examination import Marks, examined
from acme_fleet.stratos.injection import make_data, write_data
from acme_fleet.stratos.probe import probe
from acme_fleet.stratos.questions import normalised, read_questions
from acme_fleet.stratos.replies import learnable, read_replies
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.run_directory import DistillDirectory, DistillSummary
from acme_fleet.stratos.strategy import Covered, measure_coverage
from acme_fleet.stratos.teacher import Writer, ask, drawn_questions
from acme_fleet.training.language_pretraining import LanguageRecipe, pretrain_language
from acme_fleet.training.pretraining import finished
from acme_research.frame.bench import Bench
from acme_research.frame.parallel import Part, Stage
from acme_research.frame.places import EXAMPLES
from acme_research.frame.settings import changed, digest

Row = dict[str, str]
_PROGRAMS = Path(__file__).parents[1] / "programs"
_FEWEST = 8  # texts to learn and validate on
_SHAPE = {  # entries of a teacher's shape, and the names that transformers have for them
    "family": "model_type",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "neurons": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
}
_MACHINE = {"vcpus": 2, "memory_gib": 16, "per_hour": 0.12, "date": "2026-01-01"}


@dataclass(frozen=True)
class Program:
    """A function of a seed that makes questions, as a task file names it."""

    file: str
    function: str

    @property
    def path(self) -> Path:
        """Its file, among this package's programs or the clone's examples."""
        own = _PROGRAMS / self.file
        return own if own.exists() else EXAMPLES / self.file

    def different(self, seed: int) -> Iterator[Row]:
        """Question, answer and reply, no question twice; the first of a million seeds."""
        make, seen = runpy.run_path(str(self.path))[self.function], set[str]()
        for number in range(1_000_000):
            made = make(derive_seed(seed, "questions", number))
            if (key := normalised(made["question"])) not in seen:
                seen.add(key)
                yield made

    def take(self, seed: int, *counts: int) -> list[list[Row]]:
        """Lists of so many questions, none of them in two lists."""
        rows = self.different(seed)
        return [[next(rows) for _ in range(count)] for count in counts]


class Classroom:
    """A teacher with its tasks and students of one seed; what is finished stays on disk."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.settings, self.folder = bench, bench.content, bench.folder.resolve()
        self.device = torch.device(bench.options.device)

    # --- the teacher ---

    @cached_property
    def teacher(self) -> str:
        """Its folder, pre-trained here where the scale says so, or its name on the hub."""
        settings = self.settings["teacher"]
        if self.bench.options.checkpoint:
            return str(Path(self.bench.options.checkpoint).resolve())
        if "weights" in settings:
            return settings["weights"]
        own = settings["pretrained"]
        folder = (self.bench.options.out / f"teacher-{digest(own)}").resolve()
        if not finished(folder / "model"):
            texts = folder / "texts.jsonl"
            items = []
            for file, function, count in own["texts"]:
                rows = Program(file, function).take(derive_seed(0, "teacher", function), count)[0]
                items += [_item(own["prompt"], row) for row in rows]
            items += [{"text": text} for text in own.get("words", [])]
            _lines(items, texts)
            recipe = LanguageRecipe(own["model"], Training(**own["training"]), own["max_tokens"])
            pretrain_language(texts, "text", recipe, folder / "model")
        return str(folder / "model")

    @cached_property
    def machine(self) -> dict[str, Any]:
        """The machine that trains: this one, calibrated, or one of a data sheet."""
        if not self.settings.get("calibrated"):
            return {**_MACHINE, "name": "here", "accelerator": "A10", "accelerators": 1}
        path = (self.bench.options.out / f"calibration-{self.device.type}.yaml").resolve()
        if not path.exists():
            write_calibration(probe(None), path)
        return {**_MACHINE, "name": "here", "calibration": str(path)}

    def _tables(self) -> dict[str, str]:
        """Files of the pair and of the machine."""
        config = read_checkpoint(self.teacher).config
        shape = {key: getattr(config, name) for key, name in _SHAPE.items()} | {"tied": True}
        model = {"name": "teacher", "weights": self.teacher, "licence": "apache-2.0"}
        model |= {"may_teach": True, "tokenizer": "own", "shape": shape}
        cuts = [{"teacher": "teacher", **self.settings["cut"]}]
        self.folder.mkdir(parents=True, exist_ok=True)
        pairs, machines = {"teachers": [model], "cuts": cuts}, {"machines": [self.machine]}
        paths = {}
        for name, table in (("pairs", pairs), ("machines", machines)):
            path = self.folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(table, sort_keys=False))
            paths[name] = str(path)
        return paths

    # --- tasks ---

    def task(
        self, name: str, train: Sequence[Row], test: Sequence[Row], program: Program, **changes: Any
    ) -> Request:
        """A task of labelled questions, with the story's settings and changes of them."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for part, rows in (("train", train), ("test", test)):
            _lines([{k: row[k] for k in ("question", "answer")} for row in rows], folder / part)
        tables = self._tables()
        content = changed(self.settings["task"], changes)
        if content.get("checker", {}).get("kind") == "python":
            content["checker"]["file"] = str(program.path)
        own = {
            "name": name,
            "seed": self.bench.seed,
            "data": {"train": str(folder / "train"), "test": str(folder / "test")},
            "program": {"file": str(program.path), "function": program.function},
            "pairs": tables["pairs"],
        }
        path = folder / "task.yaml"
        servers = [{"kind": "machines", "path": tables["machines"]}]
        path.write_text(yaml.safe_dump(changed(content, own) | {"servers": servers}))
        return Request.from_yaml(path)

    def _writer(self, weights: str | Path) -> Writer:
        return Writer(weights, "model", self.device)

    def asked(self, request: Request, count: int | None = None) -> Path:
        """The teacher's replies to questions of ``train``; ``coverage.questions`` by default."""
        out = request.data.train.with_name("replies.jsonl")
        questions = drawn_questions(request, read_questions(request.data).train, count)
        ask(request, self._writer(self.teacher), questions, out)
        return out

    def covered(self, request: Request) -> Covered:
        """The teacher's coverage of a task, by its replies so far."""
        return measure_coverage(request, read_questions(request.data).train, self.asked(request))

    def kept(self, request: Request, most: int) -> Path | None:
        """Right replies of the teacher to questions of ``train``; none if too few to learn from."""
        out = request.data.train.with_name(f"kept-{most}.jsonl")
        if not out.exists():
            questions = read_questions(request.data).train
            replies, _ = read_replies(request, questions, self.asked(request, len(questions)))
            if len(right_replies(request.checker, replies)) < _FEWEST:
                return None
            write_data(learnable(request, replies)[:most], out)
        return out

    def replay(self, request: Request, most: int) -> Path:
        """Right replies of the teacher to a task that it covers, as texts to replay."""
        kept = self.kept(request, most)
        if kept is None:
            raise FleetError(f"the teacher covers nothing of {request.name}: nothing to replay")
        chat = self._writer(self.teacher).chats
        out = kept.with_name("replay.jsonl")
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
        _lines([_item(request.of_student.data.prompt, row, chat=chat) for row in rows], out)
        return out

    def made(self, request: Request, count: int) -> Path:
        """Data from known answers, by the task's program."""
        out = request.data.train.with_name(f"made-{count}.jsonl")
        if not out.exists():
            made = make_data(request, count, read_questions(request.data).test)
            write_data(made.rows, out)
        return out

    # --- students ---

    def student(self, name: str, request: Request) -> DistillSummary:
        """The student of a task in ``name``; it goes on where it was interrupted."""
        run = DistillDirectory(self.folder / name)
        run.path.parent.mkdir(parents=True, exist_ok=True)
        return distil(request, run.path, resume=run.exists(), device=self.device)

    def taught(self, name: str, request: Request, **learning: Path | None) -> DistillSummary:
        """The student of a task that learns from these files."""
        own = request.learning.model_copy(update=learning)
        return self.student(name, request.model_copy(update={"learning": own}))

    def weights(self, name: str) -> Path:
        """The student's folder."""
        return DistillDirectory(self.folder / name).student

    def start(self, name: str) -> Path:
        """The student before training."""
        return DistillDirectory(self.folder / name).start

    def marks(self, name: str, request: Request, weights: str | Path) -> Marks:
        """Right answers of any model to the held-out questions of a task, by its own prompt."""
        out = request.data.test.with_name(f"answers-{name}.jsonl")
        return examined(request, self._writer(weights), read_questions(request.data).test, out)

    def marked(
        self, name: str, tasks: Mapping[str, Request], weights: str | Path
    ) -> dict[str, dict[str, Any]]:
        """Marks in several tasks, as JSON has them."""
        found = {of: self.marks(name, each, weights) for of, each in tasks.items()}
        return {
            of: {"right": m.right, "asked": m.asked, "share": m.share, "interval": [*m.interval]}
            for of, m in found.items()
        }


def shares(rows: Sequence[dict[str, Any]], name: str, task: str) -> list[float]:
    """Right answers of the teacher or a student in a task, by seed."""
    marks = [r["teacher"] if name == "teacher" else r["students"][name]["marks"] for r in rows]
    return [each[task]["share"] for each in marks]


def _shared(bench: Bench) -> object:
    room = Classroom(bench)
    return room.teacher, room.machine


def _once(benches: Sequence[Bench]) -> list[tuple[Bench, Part]]:
    return [(benches[0], _shared)]


SHARED: Sequence[Stage] = (_once,)
"""The stage that leaves on disk what all seeds share: a teacher, and this machine's calibration."""


def _item(prompt: str, row: Row, *, chat: bool = False) -> dict[str, Any]:
    """A question with its reply, as a model reads it."""
    asked = prompt.replace("{question}", row["question"])
    if not chat:
        return {"prompt": asked, "answer": row["reply"]}
    said = [("user", asked), ("assistant", row["reply"])]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def _lines(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
