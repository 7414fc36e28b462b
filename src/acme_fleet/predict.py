"""Use a device's shipped model, loaded from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import distribute
from acme_fleet.data.preprocessing import ImagePreprocessing, read_images
from acme_fleet.errors import RunError
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.io import CLASS_NAMES, PREPROCESSING, load_device_model, read_document
from acme_fleet.models.training import Evaluation, evaluate
from acme_fleet.run_directory import RunDirectory


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one file."""

    file: Path
    class_name: str
    probability: float


def predict_files(run_dir: Path, device: str, files: list[Path]) -> list[Prediction]:
    """Classify image files.

    Raises:
        RunError: if the run or the device does not exist, or has no finished model.
        FleetError: if a file cannot be read as an image.
    """
    folder, model = _load(RunDirectory.open(run_dir), device)
    class_names = read_document(folder, CLASS_NAMES)
    pixels = _preprocessing(folder).pixel_values(read_images(files))
    with torch.no_grad():
        best = model(pixel_values=pixels).softmax(dim=1).max(dim=1)
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
    source = load_source(run.fleet.data, _preprocessing(folder).normalization)
    test = distribute(run.fleet, source).private[device].test
    return evaluate(model, test), len(test)


def _preprocessing(folder: Path) -> ImagePreprocessing:
    try:
        return ImagePreprocessing.model_validate(read_document(folder, PREPROCESSING))
    except ValueError as error:
        raise RunError(f"{folder / PREPROCESSING} is damaged: {error}") from error


def _load(run: RunDirectory, device: str) -> tuple[Path, CustomizedModel]:
    names = [d.name for d in run.fleet.devices]
    if device not in names:
        raise RunError(f"the run has no device {device!r}; it has {', '.join(names)}")
    folder = run.device(device)
    return folder, load_device_model(folder)
