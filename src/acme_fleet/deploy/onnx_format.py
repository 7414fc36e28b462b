"""``model.onnx`` for ONNX Runtime, and ``tokenizer.json`` of models of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.deploy.base import Format, Inputs, Logits, Writing, Written, script
from acme_fleet.deploy.graph import OPSET, build_graph, build_language_graph
from acme_fleet.deploy.whole import INPUTS, OUTPUTS
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet_runtime.manifest import CHAT_TEMPLATE, GRAPH, TOKENIZER, Port, Program
from acme_fleet_runtime.runner import PROGRAM, start
from acme_fleet_runtime.steps import Steps, most_probable

_GROWN: dict[str | int, str | int] = {"past": "past and tokens"}
MINIMUM = "1.24.1"  # the first that has all operations of all precisions, and computes them right


def _write(model: DeviceModel, folder: Path) -> Written:
    if isinstance(model.preprocessing, LanguagePreprocessing):
        return _write_language(model, model.preprocessing, folder)
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


def _write_language(model: DeviceModel, rule: LanguagePreprocessing, folder: Path) -> Written:
    content, memory = build_language_graph(model.model)
    (folder / GRAPH).write_bytes(content)
    (folder / TOKENIZER).write_text(rule.ready().to_str(), encoding="utf-8")
    if rule.chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(rule.chat_template, encoding="utf-8")
    words = len(model.model.backbone.get_input_embeddings().get_parameter("weight"))
    tokens = Port("input_ids", "int64", ("batch", "tokens"))
    mask = Port("attention_mask", "int64", ("batch", "past and tokens"))
    logits = Port("logits", "float32", ("batch", "tokens", words))
    inputs = tuple(Port(f"past.{name}", "float32", shape) for name, shape in memory.items())
    outputs = tuple(
        Port(f"present.{name}", "float32", tuple(_GROWN.get(side, side) for side in shape))
        for name, shape in memory.items()
    )
    program = Program(PROGRAM, MINIMUM, OPSET)
    return Written(
        program, GRAPH, script("completion"), (tokens, mask, *inputs), (logits, *outputs)
    )


def _start(folder: Path, threads: int) -> Logits:
    session = start((folder / GRAPH).read_bytes(), MINIMUM, threads)

    def run(inputs: Inputs) -> np.ndarray:
        return session.run(["logits"], dict(inputs))[0]

    return run


def _begin(folder: Path, threads: int) -> Writing:
    session = start((folder / GRAPH).read_bytes(), MINIMUM, threads)
    steps = Steps(session, str(folder / GRAPH))

    def at_once(inputs: Inputs) -> np.ndarray:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return steps.step(ids, steps.empty(len(ids)), mask).transpose(0, 2, 1)

    def in_parts(inputs: Inputs) -> np.ndarray:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        memory = steps.empty(len(ids))
        rows = [
            steps.step(ids[:, place : place + 1], memory, mask[:, place : place + 1])
            for place in range(ids.shape[1])
        ]
        return np.concatenate(rows, axis=1).transpose(0, 2, 1)

    return Writing(at_once, in_parts, lambda prompt: steps.go_on(prompt, most_probable))


ONNX = Format("onnx", "onnxruntime numpy", _write, _start, begin=_begin)
