"""A format of artifacts: how a device's model is written, and how it is run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet.models.features import CustomizedModel
from acme_fleet_runtime.manifest import ImagePreparation, Port, Program, TextPreparation

Inputs = Mapping[str, np.ndarray]
"""A batch: ``pixels``, bytes of shape ``(batch, height, width, channels)``, or ``input_ids`` and
``attention_mask``, both int64 of shape ``(batch, tokens)``."""
Logits = Callable[[Inputs], np.ndarray]


@dataclass(frozen=True)
class Written:
    """The files of a format in a folder.

    Attributes:
        program: what runs them.
        model: the file that counts against a device's storage.
        script: content of ``run.py``.
        inputs, outputs: of the model.
    """

    program: Program
    model: str
    script: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def preparation(model: DeviceModel) -> ImagePreparation | TextPreparation:
    """From an image or text to a batch, as the manifest describes it."""
    rule = model.preprocessing
    if isinstance(rule, TextPreprocessing):
        known = len(model.model.backbone.get_input_embeddings().get_parameter("weight"))
        return TextPreparation(rule.max_tokens, rule.pad_id, min(known, rule.vocabulary or known))
    form = rule.form
    return ImagePreparation(
        channels=1 if form.channels == 1 else 3,
        size=form.size,
        resample=rule.resample,
        height=form.result[0],
        width=form.result[1],
        crop=form.crops,
        factor=rule.rescale_factor,
        mean=rule.image_mean,
        std=rule.image_std,
    )


def tensors(model: DeviceModel, inputs: Inputs) -> dict[str, Tensor]:
    """A batch as the PyTorch model takes it, by the arithmetic that it was trained with."""
    found = {name: torch.from_numpy(values) for name, values in inputs.items()}
    rule = model.preprocessing
    if not isinstance(rule, ImagePreprocessing):
        return found
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (rule.image_mean, rule.image_std))
    values = found["pixels"].permute(0, 3, 1, 2).float().mul_(rule.rescale_factor)
    return {"pixel_values": values.sub_(mean).div_(std)}


def eager(model: DeviceModel) -> Logits:
    """The logits of the PyTorch model."""
    return logits_of(model.model, model)


def logits_of(module: CustomizedModel, model: DeviceModel) -> Logits:
    """The logits of a variant of a device's model."""

    def run(inputs: Inputs) -> np.ndarray:
        with torch.no_grad():
            return module(**tensors(model, inputs)).numpy()

    return run


@dataclass(frozen=True)
class Format:
    """A format of artifacts.

    Attributes:
        name: as ``--format`` has it.
        needs: what ``run.py`` needs of an environment, for ``pip install``.
        write: writes a device's model into a folder.
        start: from that folder, logits of a batch as the format's own program computes them, on a
            number of threads.
        pytorch: logits that PyTorch gives by the format's arithmetic. That is the device's model
            itself, unless a runtime rounds in another way.
    """

    name: str
    needs: str
    write: Callable[[DeviceModel, Path], Written]
    start: Callable[[Path, int], Logits]
    pytorch: Callable[[DeviceModel], Logits] = eager


def script(name: str) -> str:
    """A script that goes into artifacts."""
    return (Path(__file__).parent / "scripts" / f"{name}.py").read_text(encoding="utf-8")
