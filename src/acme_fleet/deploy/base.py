"""A format of artifacts: how a device's model is written, and how it is run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet.models.families import most_tokens
from acme_fleet.models.features import CustomizedModel
from acme_fleet_runtime.manifest import (
    ImagePreparation,
    LanguagePreparation,
    Port,
    Program,
    TextPreparation,
)

Inputs = Mapping[str, np.ndarray]
"""A batch: ``pixels``, bytes of shape ``(batch, height, width, channels)``, or ``input_ids`` and
``attention_mask``, both int64 of shape ``(batch, tokens)``."""
Logits = Callable[[Inputs], np.ndarray]
"""Of a batch: ``(batch, classes)``, or of a language model ``(batch, words, tokens)``."""


@dataclass(frozen=True)
class Written:
    """The files of a format in a folder.

    Attributes:
        program: what runs them.
        model: the file that counts against a device's storage.
        script: content of ``run.py``.
        inputs, outputs: of the model.
        notes: what differs from the device's model.
    """

    program: Program
    model: str
    script: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writing:
    """A language model in a format's own program.

    Attributes:
        logits: of all tokens of a batch at once.
        in_parts: the same by one token after the other, with what the program remembers; none where
            that is the program's own affair.
        go_on: the most probable tokens behind a prompt, endless; none where the program is missing.
    """

    logits: Logits
    in_parts: Logits | None = None
    go_on: Callable[[Sequence[int]], Iterator[int]] | None = None


def preparation(model: DeviceModel) -> ImagePreparation | TextPreparation | LanguagePreparation:
    """From an image or text to a batch, as the manifest describes it."""
    rule, backbone = model.preprocessing, model.model.backbone
    if isinstance(rule, TextPreprocessing):
        known = len(backbone.get_input_embeddings().get_parameter("weight"))
        known = min(known, rule.vocabulary or known)
        if not isinstance(rule, LanguagePreprocessing):
            return TextPreparation(rule.max_tokens, rule.pad_id, known)
        ends = () if rule.end is None else (rule.end,)
        room = most_tokens(backbone.config)
        return LanguagePreparation(room, rule.pad_id, known, ends, rule.special_tokens)
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
            number of threads; none of a format that takes no classifiers.
        pytorch: logits that PyTorch gives by the format's arithmetic. That is the device's model
            itself, unless a runtime rounds in another way.
        begin: as ``start``, of a language model; none of a format that takes none.
    """

    name: str
    needs: str
    write: Callable[[DeviceModel, Path], Written]
    start: Callable[[Path, int], Logits] | None = None
    pytorch: Callable[[DeviceModel], Logits] = eager
    begin: Callable[[Path, int], Writing] | None = None


def script(name: str) -> str:
    """A script that goes into artifacts."""
    return (Path(__file__).parent / "scripts" / f"{name}.py").read_text(encoding="utf-8")
