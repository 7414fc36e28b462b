"""Use a device's shipped model, loaded from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import distribute
from acme_fleet.data.preprocessing import ImagePreprocessing
from acme_fleet.errors import RunError
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.io import WEIGHTS
from acme_fleet.models.shipped import load_device_model, read_class_names, read_preprocessing
from acme_fleet.models.training import Evaluation, evaluate
from acme_fleet.run_directory import RunDirectory
from acme_fleet.seeding import threads


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one file."""

    file: Path
    class_name: str
    probability: float


def predict_files(run_dir: Path, device: str, files: list[Path]) -> list[Prediction]:
    """Classify image files, or text files of one text each.

    Raises:
        RunError: if the run or the device does not exist, or has no finished model.
        FleetError: if a file cannot be read as what the model takes.
    """
    folder, model = _load(RunDirectory.open(run_dir), device)
    class_names = read_class_names(folder)
    preprocessing = read_preprocessing(folder)
    inputs = preprocessing.inputs(preprocessing.read(files))
    with torch.no_grad():
        best = model(**inputs).softmax(dim=1).max(dim=1)
    return [
        Prediction(file, class_names[int(index)], float(probability))
        for file, probability, index in zip(files, best.values, best.indices, strict=True)
    ]


def predict_test_data(run_dir: Path, device: str) -> tuple[Evaluation, int]:
    """Evaluate on the device's own full test set; returns the result and the number of samples.

    Raises:
        RunError: if the run or the device does not exist, or has no finished model.
    """
    run = RunDirectory.open(run_dir)
    folder, model = _load(run, device)
    preprocessing = read_preprocessing(folder)
    images = isinstance(preprocessing, ImagePreprocessing)
    source = load_source(run.fleet.data, preprocessing.normalization if images else preprocessing)
    test = distribute(run.fleet, source).private[device].test
    with threads(run.fleet.threads):
        return evaluate(model, test), len(test)


def _load(run: RunDirectory, device: str) -> tuple[Path, CustomizedModel]:
    names = [d.name for d in run.fleet.devices]
    if device not in names:
        raise RunError(f"the run has no device {device!r}; it has {', '.join(names)}")
    folder = run.device(device)
    if not (folder / WEIGHTS).exists():
        run.finished()  # raises, if the device may still get its model
    return folder, load_device_model(folder)
