"""A device's model as one ONNX graph, from pixels or tokens to answers, for ONNX Runtime."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from acme_fleet.config.devices import Precision
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.deploy.rounded import Exact, Numbers, language_head, with_whole_numbers
from acme_fleet.deploy.whole import (
    INPUTS,
    OUTPUTS,
    OfImages,
    OfLanguage,
    OfTexts,
    grouped_queries,
    silent,
)
from acme_fleet.errors import FleetError
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import CustomizedModel, language_weight
from acme_fleet.outside import one_line
from acme_fleet_runtime.engine import onnx_runtime

if TYPE_CHECKING:
    import onnx

OPSET = 23  # with attention as one operation
_IR = 10
_LARGEST = 2**31 - 2**24  # bytes; protobuf's limit, less the rest of the graph
_LEAST_HALF = 16  # numbers; a Cast takes about as many bytes as fewer would save
_BACKBONE = "model.backbone."
_LEAST_SHARED = 1024  # bytes
_NEW, _PAST = 5, 3  # tokens of the example that is traced


def build_graph(
    model: CustomizedModel, preprocessing: ImagePreprocessing | TextPreprocessing
) -> bytes:
    """An ONNX file with everything from pixels or tokens to ``logits`` and ``probabilities``.

    Weights are stored, and computed with, at the precision of the backbone. Batches are of any
    size, and texts of any length from two tokens on.

    Raises:
        FleetError: if what builds graphs is not installed, or the model cannot be one.
    """
    precision: Precision = model.backbone.config.precision
    changed = copy.deepcopy(model).eval()
    bytewise = with_whole_numbers(changed.backbone, precision)
    if isinstance(preprocessing, ImagePreprocessing):
        whole = OfImages(changed, preprocessing)
        shape = (2, *preprocessing.result, preprocessing.channels)
        inputs = {name: torch.zeros(shape, dtype=torch.uint8) for name in INPUTS["images"]}
        free = dict.fromkeys(inputs, (0,))
    else:
        whole = OfTexts(changed)
        tokens = max(2, min(preprocessing.max_tokens, 7))
        inputs = {name: torch.ones(2, tokens, dtype=torch.int64) for name in INPUTS["texts"]}
        free = dict.fromkeys(inputs, (0, 1))
    if precision == "int8":
        whole.checked = Exact()
    graph = export_module(whole, inputs, free, OUTPUTS)
    names = {_BACKBONE + name: numbers for name, numbers in bytewise.items()}
    return _as_file(graph, names, precision)


def build_language_graph(
    model: CustomizedModel,
) -> tuple[bytes, dict[str, tuple[str | int, ...]]]:
    """An ONNX file of a language model that goes on, see :class:`OfLanguage`.

    Returns:
        The file, and the memory's tensors with their shapes. At the inputs their names begin with
        ``past``, at the outputs, in the same order, with ``present``.

    Raises:
        FleetError: as :func:`build_graph`.
    """
    config = model.backbone.config
    precision: Precision = config.precision
    changed = copy.deepcopy(model).eval()
    head = language_head(changed.backbone, language_weight(config), precision)
    bytewise = with_whole_numbers(changed.backbone, precision)
    whole, sizes = OfLanguage(changed, head), dimensions(config)
    if precision == "int8":
        whole.checked = Exact()
    inputs = {
        "input_ids": torch.ones(2, _NEW, dtype=torch.int64),
        "attention_mask": torch.ones(2, _PAST + _NEW, dtype=torch.int64),
    }
    free: dict[str, tuple[int, ...]] = dict.fromkeys(inputs, (0, 1))
    memory: dict[str, tuple[str | int, ...]] = {
        f"{layer}.{part}": ("batch", heads, "past", sizes.head_dim)
        for layer, heads in enumerate(config.heads_per_layer)
        for part in ("key", "value")
    }
    if whole.header is not None and whole.room:
        memory["header"] = ("batch", whole.header.channels, whole.room)
    example = {"batch": 2, "past": _PAST}
    for name, shape in memory.items():
        sides = [example[side] if isinstance(side, str) else side for side in shape]
        inputs[f"past.{name}"] = torch.zeros(sides)
        named = (axis for axis, side in enumerate(shape) if isinstance(side, str))
        free[f"past.{name}"] = tuple(named)
    with grouped_queries():
        graph = export_module(whole, inputs, free, ["logits", *(f"present.{n}" for n in memory)])
    graph = _folded(_fused(graph))
    names = {f"backbone.{name}": numbers for name, numbers in bytewise.items()}
    return _as_file(graph, names, precision), memory


def _as_file(graph: onnx.ModelProto, weights: Mapping[str, Numbers], precision: Precision) -> bytes:
    _share(graph)
    _store_bytes(graph, weights)
    if precision in ("float16", "int4"):  # at int4, scales of groups have two bytes
        _store_halves(graph)
    shorten(graph)
    return graph.SerializeToString()


def _share(model: onnx.ModelProto) -> None:
    """Keep one of tensors that are alike: of a table of words that is the language head too."""
    graph, first, names = model.graph, {}, {}
    for tensor in list(graph.initializer):
        content = tensor.raw_data
        if len(content) < _LEAST_SHARED:
            continue
        key = tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest()
        if key in first:
            names[tensor.name] = first[key]
            graph.initializer.remove(tensor)
        else:
            first[key] = tensor.name
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def export_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    free: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """A module as a graph, with constants computed and all names as PyTorch gave them.

    Args:
        module: its arguments are the ``inputs``, in their order.
        inputs: an example.
        free: axes of the inputs that may have any size from two on, or one where it is the batch.
        outputs: names of what it returns.

    Raises:
        FleetError: if what builds graphs is not installed, or the module cannot be one.
    """
    _need_exporter()
    tensors = (*module.parameters(), *module.buffers())
    size = sum(tensor.nbytes for tensor in tensors)
    if size > _LARGEST:
        raise FleetError(
            f"{size:,} bytes of weights are too many for one ONNX file, which holds {_LARGEST:,}; "
            f"choose a smaller precision, or --format safetensors"
        )
    return _folded(_traced(module, inputs, free, outputs))


def _need_exporter() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise FleetError(
            f'exporting to ONNX needs {", ".join(missing)}: pip install "acme-fleet[export]"'
        )
    onnx_runtime()  # before PyTorch's exporter may import it


def _traced(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    free: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """By PyTorch's exporter without its optimiser, which has dropped summands without a word."""
    axes: Any = tuple(dict.fromkeys(free.get(name, ()), Dim.DYNAMIC) for name in inputs)
    kinds = [each.kind for each in signature(module.forward).parameters.values()]
    if Parameter.VAR_POSITIONAL in kinds:
        named = kinds.index(Parameter.VAR_POSITIONAL)
        axes = (*axes[:named], axes[named:])
    try:
        with silent(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=axes if free else None,
                input_names=list(inputs),
                output_names=list(outputs),
            )
        assert program is not None
        return program.model_proto
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise FleetError(
            f"PyTorch cannot export this model to ONNX, which --format safetensors does not need; "
            f"please report it: {one_line(str(cause), 1000)}"
        ) from error


def _folded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Constants computed, copies and what nobody reads removed, by ONNX Runtime's basic level.

    That keeps to operations of the standard, for any processor.
    """
    import onnx

    onnxruntime = onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=_CPU)
        folded = onnx.load(path)
    _drop_defaults(folded, graph)
    return folded


def _drop_defaults(folded: onnx.ModelProto, graph: onnx.ModelProto) -> None:
    """Leave out what ONNX Runtime adds to its own operations: older ones do not know all of it."""
    asked = {
        (node.op_type, attribute.name) for node in graph.graph.node for attribute in node.attribute
    }
    for node in folded.graph.node:
        if node.domain and any(op_type == node.op_type for op_type, _ in asked):
            kept = [each for each in node.attribute if (node.op_type, each.name) in asked]
            del node.attribute[:]
            node.attribute.extend(kept)


_CPU = ["CPUExecutionProvider"]


def _fused(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Norms and rotary positions as one operation of the standard each.

    With a token at a time a decoder spends as long between its dozens of small ones as in them.
    """
    import onnx
    from onnxscript import ir
    from onnxscript.rewriter.onnx_fusions import fuse

    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(graph))
    fuse(model)
    return ir.serde.serialize_model(model)


def _store_bytes(model: onnx.ModelProto, weights: Mapping[str, Numbers]) -> None:
    """Put whole numbers and scales in the place of weights; they are multiplied when it starts."""
    from onnx import TensorProto, helper, numpy_helper

    graph, decoding = model.graph, []
    found = {tensor.name: tensor for tensor in graph.initializer}
    for name in weights.keys() & found.keys():
        numbers, scale = weights[name]
        if tuple(found[name].dims) != tuple(numbers.shape):
            continue  # turned around by the exporter: it stays in float32
        graph.initializer.remove(found[name])
        rows = scale.reshape(-1, *[1] * (numbers.ndim - 1))
        for part, tensor in (("bytes", numbers), ("scale", rows)):
            graph.initializer.append(numpy_helper.from_array(tensor.numpy(), f"{name}.{part}"))
        decoding += [
            helper.make_node("Cast", [f"{name}.bytes"], [f"{name}.real"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}.real", f"{name}.scale"], [name]),
        ]
    _put_first(graph, decoding)


def _store_halves(model: onnx.ModelProto) -> None:
    """Store numbers in two bytes where that is exact; they are widened when it starts."""
    from onnx import TensorProto, helper, numpy_helper

    graph, decoding = model.graph, []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _LEAST_HALF:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(half, f"{tensor.name}.half"))
        node = helper.make_node(
            "Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT
        )
        decoding.append(node)
    _put_first(graph, decoding)


def _put_first(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def shorten(model: onnx.ModelProto) -> None:
    """Leave out what a runtime does not read; names would take as many bytes as small models."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        if not name or name in kept:
            return name
        return names.setdefault(name, f"{len(names):x}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
        tensor.ClearField("doc_string")
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise FleetError(f"the graph has {node.op_type}, whose names cannot be shortened")
        node.input[:], node.output[:] = map(short, node.input), map(short, node.output)
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    for field in ("value_info", "metadata_props", "doc_string", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "acme"
    for field in ("metadata_props", "doc_string", "producer_version", "functions"):
        model.ClearField(field)
    model.producer_name, model.ir_version = "acme-fleet", _IR
    used = {node.domain for node in graph.node}
    domains = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(domains)
