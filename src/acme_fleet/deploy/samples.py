"""Inputs to verify an artifact on: the device's own, some that are named, or random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.partition import HostData, load_world
from acme_fleet.data.samples import Samples
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.deploy.base import Inputs, preparation
from acme_fleet.errors import FleetError
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet_runtime.images import open_image
from acme_fleet_runtime.inputs import Skipped, find_inputs
from acme_fleet_runtime.manifest import ImagePreparation
from acme_fleet_runtime.texts import LEAST_TOKENS

_RANDOM = 32  # inputs, where there are no others


@dataclass(frozen=True)
class Judged:
    """Inputs, and the labels of those that have some."""

    inputs: Inputs
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Evidence:
    """Inputs that an artifact is verified on.

    Attributes:
        data: what the first part is.
        first: decides.
        test: reported alone, if the device's own data are there.
    """

    data: Literal["validation", "samples", "random"]
    first: Judged
    test: Judged | None = None


def of_run(model: DeviceModel, fleet: Fleet, device: str) -> Evidence:
    """The device's own validation and test data, read as the run read them.

    Raises:
        FleetError: if they cannot be read here.
    """
    try:
        if isinstance(model.preprocessing, LanguagePreprocessing):  # there are no classes to name
            splits = load_world(fleet, [device]).private[device]
        else:
            data = HostData.read(fleet, device)
            splits = data.splits(device, model.class_names, model.preprocessing)
    except FleetError as error:
        raise FleetError(
            f"{error}; the artifact is verified on the device's own data: bring them back, or name "
            f"inputs with --samples"
        ) from error
    parts = [_judged(model, part) for part in (splits.validation, splits.test)]
    return Evidence("validation", parts[0], parts[1])


def of_files(model: DeviceModel, paths: Sequence[Path]) -> Evidence:
    """Files and folders of images, or of one text each, that are named.

    Raises:
        FleetError: if one of them cannot be read, or there is none.
    """
    rule = model.preprocessing
    found = find_inputs(paths, (), Skipped(), images=model.takes_images, lines=False)
    places = [Path(one.file) for one in found]
    if not places:
        raise FleetError("--samples: there is no input")
    if isinstance(rule, ImagePreprocessing):
        images = [rule.form.pixels(open_image(place, str(place))) for place in places]
        return Evidence("samples", Judged({"pixels": np.stack(images)}, None))
    tokens = rule.inputs(rule.read(places))
    return Evidence("samples", Judged({name: x.numpy() for name, x in tokens.items()}, None))


def at_random(model: DeviceModel) -> Evidence:
    """Noise and smooth images, or random tokens: what a model of any kind can be asked."""
    draw, rule = np.random.default_rng(0), preparation(model)
    if not isinstance(rule, ImagePreparation):
        assert isinstance(model.preprocessing, TextPreprocessing)
        longest = max(LEAST_TOKENS, model.preprocessing.max_tokens)
        lengths = draw.integers(LEAST_TOKENS, longest, (_RANDOM, 1), endpoint=True)
        ids = draw.integers(0, rule.vocabulary, (_RANDOM, longest))
        mask = (np.arange(longest) < lengths).astype(np.int64)
        ids = np.where(mask == 1, ids, rule.pad_id)
        return Evidence("random", Judged({"input_ids": ids, "attention_mask": mask}, None))
    shape = rule.height, rule.width, rule.channels
    noise = draw.integers(0, 256, (_RANDOM // 2, *shape))
    rows, columns = np.mgrid[: rule.height, : rule.width] / max(rule.height, rule.width)
    waves = draw.normal(0, 4, (_RANDOM // 2, rule.channels, 2))
    smooth = [
        np.stack([np.sin(a * rows + b * columns + a) for a, b in wave], axis=2) for wave in waves
    ]
    pixels = np.concatenate([noise, 127.5 + 127.5 * np.stack(smooth)]).astype(np.uint8)
    return Evidence("random", Judged({"pixels": pixels}, None))


def _judged(model: DeviceModel, samples: Samples) -> Judged:
    labels = samples.labels.numpy() if samples.labelled else None
    if isinstance(model.preprocessing, TextPreprocessing):
        return Judged({name: x.numpy() for name, x in samples.inputs.items()}, labels)
    return Judged({"pixels": _as_bytes(model.preprocessing, samples)}, labels)


def _as_bytes(rule: ImagePreprocessing, samples: Samples) -> np.ndarray:
    """Images of 8 bits a channel from a model's inputs; finer ones are rounded."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (rule.image_mean, rule.image_std))
    values = (samples.inputs["pixel_values"] * std + mean) / rule.rescale_factor
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
