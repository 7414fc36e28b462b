"""Artifacts made by hand in milliseconds: images by their brightest quadrant, texts by words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from acme_fleet_runtime.manifest import (
    Accuracy,
    File,
    ImagePreparation,
    LanguagePreparation,
    Latency,
    Limit,
    Manifest,
    Port,
    Program,
    TextPreparation,
    Verification,
)

SIDE = 4
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
WORDS = {"[PAD]": 0, "[UNK]": 1, "light": 2, "lamp": 3, "rain": 4, "sun": 5}
TOPICS = ("house", "weather")
_OUTPUTS = ("logits", "probabilities")
_NODE = helper.make_node


def _graph(nodes: list[Any], inputs: list[Any], classes: int, constants: dict[str, Any]) -> bytes:
    nodes = [*nodes, _NODE("Softmax", ["logits"], ["probabilities"], axis=1)]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes])
        for name in _OUTPUTS
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def _image_graph(channels: int) -> bytes:
    where = np.zeros((SIDE, SIDE, channels, 4), np.float32)
    half = SIDE // 2
    for number in range(4):
        rows, columns = half * (number // 2), half * (number % 2)
        where[rows : rows + half, columns : columns + half, :, number] = 0.02
    nodes = [
        _NODE("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        _NODE("Reshape", ["real", "shape"], ["flat"]),
        _NODE("MatMul", ["flat", "where"], ["logits"]),
    ]
    shape = ["batch", SIDE, SIDE, channels]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)]
    shape = np.array([-1, where.size // 4], np.int64)
    return _graph(nodes, inputs, 4, {"where": where.reshape(-1, 4), "shape": shape})


def _text_graph() -> bytes:
    table = np.zeros((len(WORDS), 2), np.float32)
    table[2:4, 0], table[4:6, 1] = 3.0, 3.0
    table[0] = 100.0  # padding counts for nothing, or spoils everything
    nodes = [
        _NODE("Gather", ["table", "input_ids"], ["rows"]),
        _NODE("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        _NODE("Unsqueeze", ["real", "last"], ["column"]),
        _NODE("Mul", ["rows", "column"], ["kept"]),
        _NODE("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    axes = {"last": np.array([2], np.int64), "tokens": np.array([1], np.int64)}
    return _graph(nodes, inputs, 2, {"table": table, **axes})


def _tokenizer() -> bytes:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]"])
    return tokenizer.to_str().encode()


def _file(content: bytes) -> File:
    return File(len(content), hashlib.sha256(content).hexdigest())


def write_artifact(
    folder: Path, kind: Literal["images", "texts"], channels: Literal[1, 3] = 1, **changes: Any
) -> Manifest:
    """Write an artifact; ``changes`` are other values of its manifest's fields."""
    folder.mkdir(parents=True, exist_ok=True)
    images = kind == "images"
    contents = {"model.onnx": _image_graph(channels) if images else _text_graph()}
    if images:
        rule: Any = ImagePreparation(
            channels,
            (SIDE, SIDE),
            2,
            SIDE,
            SIDE,
            False,
            1 / 255,
            (0.5,) * channels,
            (0.5,) * channels,
        )
        inputs = (Port("pixels", "uint8", ("batch", SIDE, SIDE, channels)),)
    else:
        contents["tokenizer.json"] = _tokenizer()
        rule = TextPreparation(8, 0, len(WORDS))
        inputs = tuple(
            Port(n, "int64", ("batch", "tokens")) for n in ("input_ids", "attention_mask")
        )
    labels = QUADRANTS if images else TOPICS
    manifest = Manifest(
        format="acme-artifact",
        version=1,
        name="tiny",
        task="classification",
        precision="float32",
        program=Program("onnxruntime", "1.17", 18),
        files={name: _file(content) for name, content in contents.items()},
        inputs=inputs,
        outputs=tuple(
            Port(n, "float32", ("batch", len(labels))) for n in ("logits", "probabilities")
        ),
        preparation=rule,
        labels=labels,
        trained_labels=labels[:2],
        reference=None,
        verification=Verification("validation", 5, 1e-6, 1e-3, 1.0, False),
        accuracy=(Accuracy("validation", 5, 1.0, 1.0, (0.5, 1.0)),),
        latency=Latency(0.1, 1.0, 1, 1, "a machine"),
        limit=Limit(10_000, len(contents["model.onnx"]), True),
        versions={"acme-fleet": "0.1.0"},
    )
    manifest = replace(manifest, **changes)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(manifest.written(), encoding="utf-8")
    return manifest


def change_manifest(folder: Path, change: Any) -> None:
    """Give the manifest's JSON to a function, and write what that leaves or returns."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(document) or document), encoding="utf-8")


def quadrant(number: int, side: int = 8, mode: str = "L") -> Image.Image:
    """A dark image with one bright quadrant."""
    pixels = np.full((side, side), 20, np.uint8)
    half = side // 2
    rows, columns = half * (number // 2), half * (number % 2)
    pixels[rows : rows + half, columns : columns + half] = 230
    return Image.fromarray(pixels).convert(mode)


SPOKEN = {"<s>": 0, "</s>": 1, "light": 2, "lamp": 3, "rain": 4, "sun": 5, "user": 6, "says": 7}
NEXT = {0: 2, 2: 3, 3: 4, 4: 5, 5: 1, 6: 7, 7: 2, 1: 6}
SPOKEN_TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}says"


def _speaking_graph() -> bytes:
    """After each word the next of a circle; it remembers two numbers of each, and does not care."""
    table = np.zeros((len(SPOKEN), len(SPOKEN)), np.float32)
    for word, following in NEXT.items():
        table[word, following] = 2.0
    nodes = [
        _NODE("Gather", ["table", "input_ids"], ["logits"]),
        _NODE("Gather", ["pairs", "input_ids"], ["rows"]),
        _NODE("Unsqueeze", ["rows", "one"], ["new"]),
        _NODE("Concat", ["past.0.key", "new"], ["present.0.key"], axis=2),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", side])
        for name, side in (("input_ids", "tokens"), ("attention_mask", "past and tokens"))
    ]
    shape = ["batch", 1, "past", 2]
    inputs.append(helper.make_tensor_value_info("past.0.key", TensorProto.FLOAT, shape))
    shapes = {
        "logits": ["batch", "tokens", len(SPOKEN)],
        "present.0.key": ["batch", 1, "past and tokens", 2],
    }
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    constants = {
        "table": table,
        "pairs": np.ones((len(SPOKEN), 2), np.float32),
        "one": np.array([1], np.int64),
    }
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "speaks", inputs, outputs, tensors)
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def write_speaker(folder: Path, context: int = 64, template: str | None = SPOKEN_TEMPLATE) -> None:
    """Write the artifact of a language model that says: light lamp rain sun."""
    plain = write_artifact(folder, "texts")
    tokenizer = Tokenizer(models.WordLevel(SPOKEN, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    contents = {"model.onnx": _speaking_graph(), "tokenizer.json": tokenizer.to_str().encode()}
    if template is not None:
        contents["chat_template.jinja"] = template.encode()
    words, grown = len(SPOKEN), "past and tokens"
    manifest = replace(
        plain,
        task="generation",
        files={name: _file(content) for name, content in contents.items()},
        inputs=(
            Port("input_ids", "int64", ("batch", "tokens")),
            Port("attention_mask", "int64", ("batch", grown)),
            Port("past.0.key", "float32", ("batch", 1, "past", 2)),
        ),
        outputs=(
            Port("logits", "float32", ("batch", "tokens", words)),
            Port("present.0.key", "float32", ("batch", 1, grown, 2)),
        ),
        preparation=LanguagePreparation(context, 0, words, (1,), {"eos_token": "</s>"}),
        labels=(),
        trained_labels=(),
        accuracy=(),
        latency=None,
    )
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(manifest.written(), encoding="utf-8")
