"""``model.onnx`` for ONNX Runtime, and ``tokenizer.json`` of models of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acme_fleet.data.text import TextPreprocessing
from acme_fleet.deploy.base import Format, Inputs, Logits, Written, script
from acme_fleet.deploy.graph import OPSET, build_graph
from acme_fleet.deploy.whole import INPUTS, OUTPUTS
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet_runtime.manifest import GRAPH, TOKENIZER, Port, Program
from acme_fleet_runtime.runner import PROGRAM, start

MINIMUM = "1.23"  # the first with all operations of the opset that the graphs use


def _write(model: DeviceModel, folder: Path) -> Written:
    (folder / GRAPH).write_bytes(build_graph(model.model, model.preprocessing))
    program = Program(PROGRAM, MINIMUM, OPSET)
    outputs = tuple(Port(name, "float32", ("batch", len(model.class_names))) for name in OUTPUTS)
    if isinstance(model.preprocessing, TextPreprocessing):
        tokenizer = model.preprocessing.ready().to_str()
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        inputs = tuple(Port(name, "int64", ("batch", "tokens")) for name in INPUTS["texts"])
        return Written(program, GRAPH, script("texts"), inputs, outputs)
    shape = ("batch", *model.preprocessing.result, model.preprocessing.channels)
    inputs = tuple(Port(name, "uint8", shape) for name in INPUTS["images"])
    return Written(program, GRAPH, script("images"), inputs, outputs)


def _start(folder: Path, threads: int) -> Logits:
    session = start((folder / GRAPH).read_bytes(), MINIMUM, threads)

    def run(inputs: Inputs) -> np.ndarray:
        return session.run(["logits"], dict(inputs))[0]

    return run


ONNX = Format("onnx", "onnxruntime numpy", _write, _start)
