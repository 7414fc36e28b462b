"""The device's folder as it is, for acme-fleet and transformers, described like other artifacts."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.deploy.base import Format, Inputs, Logits, Writing, Written, eager, script
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet.models.shipped import SHIPPED_FILES, SUMS
from acme_fleet.models.storage import WEIGHTS
from acme_fleet.seeding import threads as using
from acme_fleet_runtime.manifest import Port, Program


def _write(model: DeviceModel, folder: Path) -> Written:
    for name in sorted({*SHIPPED_FILES, SUMS}):
        if (model.folder / name).exists():
            shutil.copyfile(model.folder / name, folder / name)
    writes = isinstance(model.preprocessing, LanguagePreprocessing)
    shape = ("batch", "words", "tokens") if writes else ("batch", len(model.class_names))
    outputs = (Port("logits", "float32", shape),)
    if isinstance(model.preprocessing, TextPreprocessing):
        names = ("input_ids", "attention_mask")
        inputs = tuple(Port(name, "int64", ("batch", "tokens")) for name in names)
    else:
        rule = model.preprocessing
        inputs = (Port("pixel_values", "float32", ("batch", rule.channels, *rule.result)),)
    program = Program("pytorch", version("torch").partition("+")[0], None)
    return Written(program, WEIGHTS, script("writing" if writes else "pytorch"), inputs, outputs)


def _start(folder: Path, threads: int) -> Logits:
    logits = eager(DeviceModel.open(folder))

    def run(inputs: Inputs) -> np.ndarray:
        with using(threads):
            return logits(inputs)

    return run


def _begin(folder: Path, threads: int) -> Writing:
    return Writing(_start(folder, threads))


SAFETENSORS = Format("safetensors", "acme-fleet pillow", _write, _start, begin=_begin)
