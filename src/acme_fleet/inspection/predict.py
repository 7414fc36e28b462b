"""Use a device's shipped model, loaded from its folder alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from acme_fleet.data.datasets import Preprocessing
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.partition import HostData, load_world
from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError, RunError
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.shipped import load_device_model, read_class_names, read_preprocessing
from acme_fleet.models.storage import CLASS_NAMES, CONFIG, HEADER, PREPROCESSING, WEIGHTS
from acme_fleet.outside import listed, reading
from acme_fleet.runs.directory import FLEET, RunDirectory
from acme_fleet.seeding import threads
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.evaluation import evaluate
from acme_fleet_runtime.answers import Classifier, Refused
from acme_fleet_runtime.inputs import Input

_FILES = (WEIGHTS, CONFIG, HEADER, CLASS_NAMES, PREPROCESSING)


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one file."""

    file: Path
    class_name: str
    probability: float


@dataclass(frozen=True)
class DeviceModel(Classifier[dict[str, Tensor]]):
    """A shipped model with all that it needs to answer.

    Attributes:
        folder: of the device.
        model: in eval mode.
        class_names: in the order of the model's outputs.
        preprocessing: from a file's content to the model's inputs.
    """

    folder: Path
    model: CustomizedModel
    class_names: list[str]
    preprocessing: Preprocessing

    @staticmethod
    def open(folder: Path) -> DeviceModel:
        """The model in a device's folder.

        Raises:
            RunError: naming the file that is missing or damaged.
        """
        model, names = load_device_model(folder), read_class_names(folder)
        return DeviceModel(folder, model, names, read_preprocessing(folder))

    @property
    def labels(self) -> list[str]:
        """See the base class."""
        return self.class_names

    @property
    def takes_images(self) -> bool:
        """See the base class."""
        return isinstance(self.preprocessing, ImagePreprocessing)

    def prepared(self, one: Input) -> dict[str, Tensor]:
        """The model's inputs for one sample, each of shape ``(1, …)``; see the base class."""
        content = None if one.text is None else [one.text]
        tensors = self.preprocessing.inputs(content or self.preprocessing.read([Path(one.file)]))
        if "input_ids" in tensors:
            embeddings = self.model.backbone.get_input_embeddings()
            known = len(embeddings.get_parameter("weight"))
            largest = int(tensors["input_ids"].max())
            if largest >= known:
                raise FleetError(
                    f"{one.label} has the token number {largest}; the model has embeddings of the "
                    f"tokens 0 to {known - 1}"
                )
        return tensors

    def probabilities(self, samples: Sequence[dict[str, Tensor]]) -> list[list[float]]:
        """See the base class.

        Raises:
            RunError: if the files of the folder do not fit together.
        """
        with reading(f"{self.folder}: the model cannot be used", RunError), torch.no_grad():
            joined = {name: torch.cat([s[name] for s in samples]) for name in samples[0]}
            rows: list[list[float]] = self.model(**joined).softmax(dim=1).tolist()
        if len(rows[0]) != len(self.class_names):
            raise RunError(
                f"{self.folder / CLASS_NAMES} names {len(self.class_names)} classes, the model "
                f"has {len(rows[0])}"
            )
        if not all(math.isfinite(value) for row in rows for value in row):
            raise RunError(f"{self.folder / WEIGHTS}: the model's answers are no finite numbers")
        return rows


def open_model(place: Path, device: str | None) -> DeviceModel:
    """The model of a device.

    Args:
        place: a run directory, or a device's folder.
        device: its name, which a run directory needs.

    Raises:
        RunError: if there is no finished model, or it is damaged.
    """
    return DeviceModel.open(device_folder(place, device))


def device_folder(place: Path, device: str | None) -> Path:
    """The folder of a device that has a model; see :func:`open_model`.

    Raises:
        RunError: if there is no finished model.
    """
    if device is not None or (place / FLEET).exists():
        run = RunDirectory.open(place)
        if device is None:
            raise RunError(f"name a device with --device: {listed(_names(run), 10)}")
        return _folder(run, device)
    if not place.is_dir():
        raise RunError(f"{place}: {'it is a file' if place.exists() else 'no such folder'}")
    if not any((place / name).exists() for name in _FILES):
        raise RunError(
            f"{place} is neither a run directory (it has no {FLEET}) nor a device's folder with a "
            f"finished model (it has no {WEIGHTS})"
        )
    return place


def predict_files(run_dir: Path, device: str, files: list[Path]) -> list[Prediction]:
    """Classify image files, or text files of one text each.

    Raises:
        RunError: if the run or the device does not exist, or has no finished model.
        FleetError: if a file cannot be read as what the model takes.
    """
    predictions = []
    inputs = (Input(str(file)) for file in files)
    for file, answer in zip(files, open_model(run_dir, device).classify(inputs), strict=True):
        if isinstance(answer, Refused):
            raise FleetError(answer.reason)
        name, probability = next(iter(answer.probabilities.items()))
        predictions.append(Prediction(file, name, probability))
    return predictions


@dataclass(frozen=True)
class Tested:
    """A device's model on its own full test set: the task, which judged, and the result."""

    task: Task
    evaluation: Evaluation
    model: DeviceModel
    samples: Samples


def predict_test_data(run_dir: Path, device: str) -> Tested:
    """Evaluate a device's model on its own full test set.

    Raises:
        RunError: if the run or the device does not exist, or has no finished model.
    """
    run = RunDirectory.open(run_dir)
    own = DeviceModel.open(_folder(run, device))
    if task_of(run.fleet.task).per_token:  # its folder names no classes to read the data by
        test = load_world(run.fleet, [device]).private[device].test
    else:
        data = HostData.read(run.fleet, device)
        test = data.splits(device, own.class_names, own.preprocessing).test
    with threads(run.fleet.threads):
        task = task_of(run.fleet.task)
        return Tested(task, evaluate(task, own.model, test), own, test)


def _folder(run: RunDirectory, device: str) -> Path:
    names = _names(run)
    if device not in names:
        raise RunError(f"the run has no device {device!r}; it has {listed(names, 10)}")
    folder = run.device(device)
    if not (folder / WEIGHTS).exists():
        run.finished()  # raises, if the device may still get its model
    return folder


def _names(run: RunDirectory) -> list[str]:
    return [device.name for device in run.fleet.devices]
