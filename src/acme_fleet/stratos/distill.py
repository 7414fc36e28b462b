"""A distillation from its data to a student's Hugging Face folder and its marks."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from acme_fleet.config.training import Training
from acme_fleet.data.checkpoint_files import located
from acme_fleet.models.backbone.elastic import with_vocabulary
from acme_fleet.models.features import LanguageModel
from acme_fleet.runs.atomic import remove, remove_partial
from acme_fleet.runs.locks import held
from acme_fleet.runs.progress import progress_file
from acme_fleet.runs.sealed import if_sound, read_sealed_json, write_sealed_json
from acme_fleet.seeding import derive_seed, generator
from acme_fleet.stratos.budget import Budget, Clock, Meter
from acme_fleet.stratos.checkers import right_replies, try_checker
from acme_fleet.stratos.chosen import keep_choice, kept_choice, pair_of
from acme_fleet.stratos.examination import Marks, examined
from acme_fleet.stratos.imitation import Trained, train_student
from acme_fleet.stratos.lessons import Lessons, check_on_policy, lessons_of, read_texts
from acme_fleet.stratos.on_policy import check_trl, learn_on_policy
from acme_fleet.stratos.pairs import Pair
from acme_fleet.stratos.questions import QuestionSets, read_questions
from acme_fleet.stratos.replies import read_replies
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.run_directory import (
    Answered,
    Chosen,
    DistillDirectory,
    DistillSummary,
    Example,
    Losses,
    Marked,
    Served,
)
from acme_fleet.stratos.serving import Latency, TorchGenerator, measure_latency
from acme_fleet.stratos.students import (
    cut_model,
    load_model,
    preprocessing_of,
    save_student,
)
from acme_fleet.stratos.teacher import LanguageTeacher, Writer, check_shape
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import steps_of

_TIMED, _SHOWN = 20, 5  # held-out questions whose answers are timed, and shown in the report
Stage = Callable[[str, str, int, int, str], None]
"""Told the actor, the name of a stage, how much is done, and of how much."""


class Distillation:
    """One run in its directory; what is finished there is not done again."""

    def __init__(
        self,
        request: Request,
        run: DistillDirectory,
        chosen: Chosen,
        device: torch.device,
        stage: Stage,
    ) -> None:
        """Read and check all data; no model is loaded.

        Raises:
            FleetError: if data, tokenizers or the pair cannot be used.
        """
        self._request, self._run, self._chosen = request, run, chosen
        self._device, self._stage = device, stage
        self._questions: QuestionSets = read_questions(request.data)
        try_checker(request.checker, self._questions.train)
        texts = read_texts(request, self._questions.test)
        self._pair: Pair = pair_of(request, chosen)
        check_shape(self._pair.teacher)
        logits = chosen.by == "logits"
        tokenizer = preprocessing_of(self._pair, logits=logits)
        context = min(self._pair.teacher_size.context, self._pair.student.size.context)
        check_on_policy(request, logits=logits)
        if request.learning.on_policy is not None:
            check_trl()
        self._texts = texts
        lessons: Lessons = lessons_of(request, texts, tokenizer, context, logits=logits)
        self._words: list[int] | None = None
        if (size := self._pair.student.vocabulary) is not None:
            self._words = tokenizer.kept_tokens([lessons.train, lessons.validation], size)
            tokenizer = tokenizer.cut(self._words)
            lessons = lessons_of(request, texts, tokenizer, context, logits=False)
        self._lessons, self._tokenizer = lessons, tokenizer
        workload, learning = request.workload, request.learning
        self._training = Training(
            epochs=workload.epochs,
            batch_size=workload.batch_size,
            learning_rate=learning.learning_rate,
            weight_decay=learning.weight_decay,
        )

    def finished(self, meter: Meter) -> DistillSummary:
        """Do all that is left.

        Args:
            meter: counts its time, and has the budget.

        Raises:
            FleetError: if the budget ends before anything could be learned, or a model fails.
            WriteError: if a file cannot be written.
        """
        trained = self._trained(meter)
        meter.spent()
        meter.work = "evaluation"
        return self._summary(trained, meter)

    def _started(self) -> str:
        """Folder of the student before training; that of a cut is made here."""
        student = self._pair.student
        if student.cut is None:
            return student.weights
        done = self._run.path / "start.json"
        if if_sound(done, lambda path: read_sealed_json(path, str)) is None:
            teacher, tokenizer = load_model(self._pair.teacher.weights), None
            if self._words is not None:
                teacher = LanguageModel(with_vocabulary(teacher.backbone, self._words))
                tokenizer = self._tokenizer
            draw = generator(self._request.seed, "importance")
            cut = cut_model(teacher, student.cut, self._lessons.train, draw)
            save_student(cut.backbone, student.weights, self._run.start, tokenizer=tokenizer)
            write_sealed_json(done, student.name)
        return str(self._run.start)

    def _trained(self, meter: Meter) -> Trained:
        """Train, or read how training ended."""
        run = self._run
        known = if_sound(run.trained, lambda path: read_sealed_json(path, Trained))
        if known is not None:
            return known
        student = load_model(self._started()).to(self._device)
        teacher = None
        if self._lessons.taught:
            teacher = load_model(self._pair.teacher.weights).to(self._device)
        trained, learner = self._learned(student, teacher, meter), student
        if self._request.learning.on_policy is not None and not trained.spent:
            trained, learner = self._on_policy(student, trained, meter)
        precision = self._request.workload.student_precision
        save_student(learner.cpu().backbone, self._started(), run.student, precision)
        write_sealed_json(run.trained, asdict(trained))
        for name in ("epochs", "best"):
            remove(run.path / f"{name}.safetensors")
        return trained

    def _learned(
        self, student: LanguageModel, teacher: LanguageModel | None, meter: Meter
    ) -> Trained:
        return train_student(
            student,
            teacher,
            self._lessons,
            self._training,
            self._request.learning,
            self._run.path,
            meter,
            generator(self._request.seed, "student"),
            lambda done, total, note="", _=None: self._stage(
                "student", "epochs", done, total, note
            ),
        )

    def _on_policy(
        self, student: LanguageModel, trained: Trained, meter: Meter
    ) -> tuple[Trained, LanguageModel]:
        """The student after learning from its own answers, if validation finds it better."""
        settings, folder = self._request.learning.on_policy, self._run.path / "on-policy"
        assert settings is not None
        save_student(student.cpu().backbone, self._pair.student.weights, folder)
        began = meter.spent().training
        again = evaluate(GENERATION, student, self._lessons.validation, self._training.batch_size)
        steps = learn_on_policy(
            folder,
            str(located(self._pair.teacher.weights)),
            [text.prompt for text in self._texts if text.kind == 0 and text.prompt is not None],
            settings,
            self._request.workload.answer_tokens,
            derive_seed(self._request.seed, "on-policy") % 2**32,
            self._device,
            meter,
            meter.spent().training - began,
            lambda done, total: self._stage("student", "on-policy steps", done, total, ""),
        )
        further = load_model(folder)
        found = evaluate(GENERATION, further, self._lessons.validation, self._training.batch_size)
        total = trained.steps + steps
        trained = replace(trained, spent=steps < settings.steps)
        if found.loss < again.loss:
            return replace(trained, steps=total, best=total, loss=found.loss), further
        return replace(trained, steps=total), student

    def _summary(self, trained: Trained, meter: Meter) -> DistillSummary:
        request, run, start = self._request, self._run, self._started()
        writers = {
            "student": lambda: Writer(run.student, "student", self._device),
            "start": lambda: Writer(start, "student before training", self._device),
            "teacher": lambda: LanguageTeacher(self._pair.teacher, self._device),
        }
        marks, latencies = dict[str, Marks](), dict[str, Latency]()
        for name, load in writers.items():
            writer = load()
            marks[name] = self._examined(name, writer)
            if name != "start":
                latencies[name] = self._latency(name, writer)
        replayed = None
        if self._lessons.replayed is not None:
            losses = [self._replay_loss(place) for place in (start, self._run.student)]
            replayed = Losses(start=losses[0], student=losses[1])
        spent, usd = meter.spent(), meter.budget.usd
        return DistillSummary(
            name=request.name,
            seed=request.seed,
            chosen=self._chosen,
            params=self._pair.student.size.parameters,
            texts=self._lessons.counts,
            steps=trained.steps,
            planned_steps=self._planned_steps,
            best_step=trained.best,
            ended_by="budget" if trained.spent else "epochs",
            validation=Losses(start=trained.start, student=trained.loss),
            replayed=replayed,
            **{name: _marked(found) for name, found in marks.items()},
            served=Served(**asdict(latencies["student"])),
            taught=Served(**asdict(latencies["teacher"])),
            examples=self._examples(),
            precision=request.workload.student_precision,
            min_accuracy=request.limits.min_accuracy,
            max_p95_latency_ms=request.limits.max_p95_latency_ms,
            training_s=spent.training,
            training_usd=usd(spent.training),
            evaluation_s=spent.evaluation,
            evaluation_usd=usd(spent.evaluation),
        )

    @property
    def _planned_steps(self) -> int:
        further = self._request.learning.on_policy
        return steps_of(self._lessons.train, self._training) + (further.steps if further else 0)

    def _examined(self, name: str, writer: Writer) -> Marks:
        request = self._request
        return examined(
            request if name == "teacher" else request.of_student,
            writer,
            self._questions.test,
            self._run.answers(name),
            lambda done, total: self._stage(name, "held-out questions", done, total, ""),
        )

    def _latency(self, name: str, writer: Writer) -> Latency:
        """Of answers to the first held-out questions, one at a time, on this machine."""
        request = self._request if name == "teacher" else self._request.of_student
        self._stage(name, "latency", 0, 1, "")
        asked = self._questions.test[:_TIMED]
        prompts = [writer.tokens(request.data.prompt_of(each.text)) for each in asked]
        most = request.workload.answer_tokens
        return measure_latency(TorchGenerator(writer.model), prompts, writer.end, most)

    def _examples(self) -> list[Example]:
        """The first held-out questions with all answers."""
        request, names = self._request, ("student", "start", "teacher")
        told = {
            name: read_replies(request, self._questions.test, self._run.answers(name))[0]
            for name in names
        }
        texts = {
            name: {reply.question.text: reply for reply in replies}
            for name, replies in told.items()
        }
        found = []
        for question in self._questions.test[:_SHOWN]:
            replies = [texts[name][question.text] for name in names]
            right = {id(reply) for reply in right_replies(request.checker, replies)}
            answers = {
                name: Answered(text=reply.text, right=id(reply) in right)
                for name, reply in zip(names, replies, strict=True)
            }
            found.append(Example(question=question.text, answer=question.answer, **answers))
        return found

    def _replay_loss(self, place: str | Path) -> float:
        assert self._lessons.replayed is not None
        model: LanguageModel = load_model(place).to(self._device).eval()
        batch = self._training.batch_size
        return evaluate(GENERATION, model, self._lessons.replayed, batch).loss


def _marked(marks: Marks) -> Marked:
    low, high = marks.interval
    return Marked(right=marks.right, asked=marks.asked, low=low, high=high)


def distil(
    request: Request,
    out: Path,
    *,
    pair: str | None = None,
    server: str | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    stage: Stage = lambda actor, name, done, total, note: None,
    clock: Clock = time.monotonic,
) -> DistillSummary:
    """Distil a student; interrupted and resumed, it is the same bit for bit.

    Args:
        request: the task. out: the run directory.
        pair, server: see :func:`~acme_fleet.stratos.chosen.choose_pair`.
        resume: go on with a run that was interrupted. device: trains and answers; the processor by
            default. stage: shows progress. clock: seconds, for the budget.

    Raises:
        FleetError: if the task, its data, the pair or the budget cannot be used.
        RunError: if the directory holds something else, or another process works in it.
    """
    began = clock()
    with held(out), ExitStack() as watched:
        run = DistillDirectory(out)
        if run.exists():
            DistillDirectory.create(out, request, resume=resume)
            if run.summary.exists():
                return DistillSummary.read(run.summary)
        chosen = kept_choice(run, request, pair, server)

        def told(actor: str, name: str, done: int, total: int, note: str) -> None:
            stage(actor, name, done, total, note)
            progress.stage(actor, name, done, total, note)

        lessons = Distillation(request, run, chosen, device or torch.device("cpu"), told)
        DistillDirectory.create(out, request, resume=resume)  # after all that can be refused
        keep_choice(run, chosen)
        remove_partial(out)
        progress = watched.enter_context(progress_file(out))
        meter = Meter(run.spent, Budget.of(request.limits, chosen.usd_per_hour), clock, began)
        try:
            summary = lessons.finished(meter)
        finally:
            meter.spent()
            meter.keep()
        summary.write(run.summary)
        return summary
