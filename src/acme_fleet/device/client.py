"""The device's role in Algorithm 2. Private data enters here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from acme_fleet.config.devices import Device
from acme_fleet.config.personalization import Personalization
from acme_fleet.data.datasets import Preprocessing
from acme_fleet.data.partition import raw_bytes
from acme_fleet.data.samples import Splits
from acme_fleet.device.memory import FeatureMemory
from acme_fleet.device.received import check_fits, coarse_header
from acme_fleet.device.refinement import (
    HeaderState,
    LocalTraining,
    Trained,
    linear_rival,
    lora_rival,
    prune_header,
    train_header,
)
from acme_fleet.device.state import Answers, DeviceFolder, changed_files
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import (
    DeviceProfile,
    DeviceReport,
    FeatureSample,
    HeaderAssignment,
    KeepRequest,
    ProfileRequest,
    ReportRequest,
    RoundReport,
    Start,
    Update,
)
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.features import CustomizedModel, judging
from acme_fleet.models.header.module import Header, LinearHeader
from acme_fleet.models.shipped import save_device_model, sent_preprocessing
from acme_fleet.models.storage import WEIGHTS
from acme_fleet.personalization.base import Own
from acme_fleet.personalization.rules import rule_of
from acme_fleet.privacy.protection import Protection
from acme_fleet.profiling.measure import measure_latency
from acme_fleet.runs.events import VALIDATION
from acme_fleet.runs.journal import Journal
from acme_fleet.seeding import generator
from acme_fleet.tasks.base import Task
from acme_fleet.training.answers import language_result, with_rival
from acme_fleet.training.evaluation import evaluate

Private = Callable[[Sequence[str], Preprocessing], Splits]
"""Reads a device's data, given the class names and the preprocessing that come with a model."""


class DeviceClient:
    """Device n. Its state lives in its own folder, so that it can be stopped at any time."""

    def __init__(
        self,
        settings: Device,
        task: Task,
        personalization: Personalization,
        private: Private,
        folder: Path,
        seed: int,
        journal: Journal,
        memory: FeatureMemory | None = None,
        keep: Callable[[str], None] | None = None,
    ) -> None:
        """``memory`` is that of its process's devices; ``keep`` takes over its work of a run."""
        self._settings = settings
        self._task = task
        self._personalization = personalization
        self._rule = rule_of(personalization)
        self._private_by = private
        self._folder = DeviceFolder(folder, memory)
        self._seed = seed
        self._journal = journal
        self._keep = keep
        secret = self._folder.secret
        self._protection = Protection(settings.name, personalization.privacy, seed, secret)
        self._round: int | None = None  # that was last asked for, since this process began
        self._own: Splits | None = None  # once a model has told how to read them
        self._begun: HeaderState | None = None  # the state that a training has begun with
        self._judged: Task | None = None  # the task by the backbone that was received

    def handle(self, message: Message) -> Message:
        """Answer the edge server.

        Raises:
            ProtocolError: if the message is not one that a device answers, or does not fit.
        """
        match message:
            case ProfileRequest():
                return DeviceProfile(
                    name=self._settings.name,
                    storage_bytes=self._settings.storage,
                    energy=self._settings.energy,
                    precisions=self._settings.precisions,
                )
            case HeaderAssignment():
                return self._receive(message)
            case Start() if isinstance(message, self._rule.start_type):
                return self._train(message)
            case Update() if isinstance(message, self._rule.update_type):
                return self._prune(message)
            case ReportRequest():
                return self._report()
            case KeepRequest() if self._keep:
                self._keep(message.run)
                return self._report()
        raise ProtocolError(f"a device does not answer {type(message).__name__}")

    # --- training, which many devices of one process may do together ---

    def pending(self, message: Message) -> int | None:
        """The round whose training must be done before a message can be answered, if it is not."""
        match message:
            case Start():
                number = message.round
            case ReportRequest() if self._folder.report() is None:
                number = self._personalization.rounds
            case _:
                return None
        return None if self._folder.has_trained(number) else number

    def training(self, number: int) -> LocalTraining:
        """The work of a round, whose result :meth:`keep` takes."""
        self._begun, draw = self._before(number), self._generator("round", number)
        return LocalTraining(self._begun.current, self._features(), draw)

    def keep(self, number: int, trained: Trained) -> None:
        """Take the result of a round's training."""
        header, importance = trained
        validation = self._features().validation
        begun, self._begun = self._begun or self._before(number), None
        state = begun.with_current(self._judging, header, validation)
        self._folder.keep_trained(number, state, importance)
        best, name = state.best_evaluation, self._settings.name
        self._journal.figure(name, "device", VALIDATION, number + 1, best.score)

    # --- the steps, in the order of Algorithm 2 ---

    def _receive(self, assignment: HeaderAssignment) -> FeatureSample:
        """Take the coarse model, compute the frozen backbone's features, send a small sample."""
        coarse, self._judged = self._received(assignment), None
        check_fits(self._settings, assignment)
        self._own = self._read_own(assignment)
        self._folder.accept(assignment)
        features = self._features()
        self._folder.begin(HeaderState.start(self._judging, coarse, features))
        order = torch.randperm(len(features.train), generator=self._generator("sample"))
        chosen = order[: self._personalization.rows_sent]
        rows = features.train[chosen].ready().inputs["pooled"]
        sent = self._protection.features(rows)
        key = self._protection.public_key()
        return FeatureSample(features=sent.values, scale=sent.scale, public_key=key)

    def _train(self, start: Start) -> Message:
        """Train the header on private data and upload what the rule asks for."""
        if start.round >= self._personalization.rounds:
            raise ProtocolError(
                f"round {start.round} was asked for, of {self._personalization.rounds}"
            )
        state, importance = self._trained(start.round)
        self._round = start.round
        own = Own(
            state.current,
            self._protection.importance(importance),
            self._train_classes,
            self._protection,
        )
        return self._rule.upload(start, own)

    def _prune(self, update: Update) -> RoundReport:
        """Remove the neurons that matter least to this device and its peers."""
        self._check_round(update.round)
        state, own = self._folder.trained(update.round)
        plan = state.current.plan
        importance = self._rule.received(update, plan, self._protection)
        if importance is None:
            name, told = self._settings.name, "the masked sum was refused, its own set is used"
            self._journal.fault(name, "device", name, told)
            importance = own
        validation = self._features().validation
        mixed = self._rule.received_header(update, plan)
        if mixed is not None:
            state = state.with_current(self._judging, mixed, validation)
        smaller = prune_header(state.current, importance, self._personalization.prune_share)
        pruned = state.with_current(self._judging, smaller, validation)
        self._folder.keep_pruned(update.round, pruned)
        return RoundReport(
            round=update.round,
            neurons=smaller.plan.neurons,
            changed=mixed is not None or smaller.plan.neurons < plan.neurons,
        )

    def _report(self) -> DeviceReport:
        """Fine-tune once more, save the best model of all, and test it; once only."""
        report = self._folder.report()
        if report is None or changed_files(self._folder.path) != []:
            made, answers = self._finish()
            report = report or made  # a damaged model is saved again; figures stay as measured
            self._folder.finish(report, answers)
            self._folder.forget_features()
        return report

    def _finish(self) -> tuple[DeviceReport, Answers | None]:
        state, _ = self._trained(self._personalization.rounds)
        task, assignment, features = self._judging, self._folder.assignment(), self._features()
        with self._journal.stage(self._settings.name, "final model", "device") as progress:
            best = "least loss" if (found := state.best_evaluation).by_loss else "best"
            progress(1, 1, f"validation {task.written(found)}, the {best} of all its states")
            backbone = self._folder.backbone(assignment)
            model = CustomizedModel(backbone, state.best).eval()
            save_device_model(
                self._folder.path,
                model,
                state.best,
                assignment.class_names,
                sent_preprocessing(assignment.preprocessing),
                [assignment.class_names[number] for number in sorted(self._train_classes())],
            )
            coarse, test = self._received(assignment), features.test
            linear = self._linear_rival(assignment, features)
            headers = {"coarse": coarse, "best": state.best, "linear": linear}
            one, language, answers = self._private.test[:1].inputs, None, None
            if not task.per_token:
                found = {name: evaluate(task, header, test) for name, header in headers.items()}
                answers = Answers.of(state.best, features, assignment.class_names)
            else:
                shipped, tokens = AcmeForCausalLM.of(backbone, state.best), self._private.test
                language, found = language_result(task, shipped, headers, test, tokens)
                if (rank := self._personalization.lora_rank) is not None:
                    training, draw = self._personalization.training_in_all, self._generator("lora")
                    rival = lora_rival(self._task, backbone, rank, self._private, training, draw)
                    language = with_rival(language, *rival)
            report = DeviceReport(
                name=self._settings.name,
                size_bytes=(self._folder.path / WEIGHTS).stat().st_size,
                params=sum(p.numel() for p in model.parameters()),
                accuracy_coarse=found["coarse"].score,
                accuracy=found["best"].score,
                accuracy_linear=found["linear"].score,
                test_samples=len(test),
                latency_s=self._folder.once(
                    assignment,
                    f"latency of {state.best.plan.shapes()}",  # and of inputs of one size
                    lambda: measure_latency(model, one),
                ),
                neurons_coarse=coarse.plan.neurons,
                neurons=state.best.plan.neurons,
                raw_data_bytes=raw_bytes(self._private),
                language=language,
            )
            return report, answers

    # --- parts ---

    def _check_round(self, number: int) -> None:
        """The mixture must be of the round that this device has trained for."""
        if self._round is not None:
            trained = self._round
        else:  # the process was started again in between
            rounds = range(self._personalization.rounds)
            trained = max((n for n in rounds if self._folder.has_trained(n)), default=-1)
        if number != trained:
            told = f"has trained for round {trained}" if trained >= 0 else "has trained for none"
            raise ProtocolError(
                f"a mixture of round {number} was sent, {self._settings.name} {told}"
            )

    def _trained(self, number: int) -> tuple[HeaderState, ImportanceSet]:
        """The state after the training of a round, which is done once."""
        found = self._folder.if_trained(number)
        if found is None:
            work, asked = self.training(number), self._personalization
            stage = self._journal.stage(self._settings.name, stage_of(number, asked), "device")
            with stage as progress:
                trained = train_header(
                    self._judging,
                    work.header,
                    work.features,
                    asked.training(number),
                    work.generator,
                    to_mix=asked.mixes_after(number),
                    progress=progress,
                )
            self.keep(number, trained)
            found = self._folder.trained(number)
        return found

    def _before(self, number: int) -> HeaderState:
        """The last state before a round."""

        def start() -> HeaderState:
            coarse = self._received(self._folder.assignment())
            return HeaderState.start(self._judging, coarse, self._features())

        return self._folder.before(number, start)

    @property
    def _judging(self) -> Task:
        """The task as it judges what headers of the received backbone give."""
        if not self._task.per_token:
            return self._task
        if self._judged is None:
            backbone = self._folder.backbone(self._folder.assignment())
            self._judged = judging(self._task, backbone)
        return self._judged

    def _train_classes(self) -> list[int]:
        """None where tokens, and no samples, have labels."""
        labels = self._private.train.labels
        return labels.unique().tolist() if labels.ndim == 1 else []

    def _linear_rival(self, assignment: HeaderAssignment, features: Splits) -> LinearHeader:
        """With as many epochs in all as the header has had."""
        training, draw = self._personalization.training_in_all, self._generator("linear")
        causal = self._received(assignment).plan.causal
        return linear_rival(
            self._judging, assignment.linear, features, training, draw, causal=causal
        )

    @property
    def _private(self) -> Splits:
        """The device's own data, read as the model that was received takes them."""
        if self._own is None:
            self._own = self._read_own(self._folder.assignment())
        return self._own

    def _read_own(self, assignment: HeaderAssignment) -> Splits:
        """Read the device's own data as a model takes them."""
        preprocessing = sent_preprocessing(assignment.preprocessing)
        return self._private_by(assignment.class_names, preprocessing)

    def _received(self, assignment: HeaderAssignment) -> Header:
        """The coarse header, checked and built."""
        return self._folder.once(
            assignment, "header", lambda: coarse_header(self._task, assignment)
        )

    def _features(self) -> Splits:
        most = self._personalization.feature_budget if self._task.per_token else None
        name = self._settings.name
        return self._folder.features(
            self._private, most, lambda: self._journal.stage(name, "features", "device")
        )

    def _generator(self, *purpose: str | int) -> torch.Generator:
        return generator(self._seed, self._settings.name, *purpose)


def stage_of(number: int, personalization: Personalization) -> str:
    """The name of a round's training in the journal."""
    return "fine-tuning" if number == personalization.rounds else f"round {number + 1}"
