"""``model.gguf`` for llama.cpp: a language model's backbone with its tokenizer and chat template.

llama.cpp runs the graph of a family, and no other. It has no convolutions over hidden states, so a
header is written only if it is folded into the language head without changing what it computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import GROUP, SCALE
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.deploy.base import Format, Inputs, Logits, Writing, Written, logits_of, script
from acme_fleet.deploy.gguf_tokenizer import add_tokenizer
from acme_fleet.errors import FleetError
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet.models.backbone.elastic import build
from acme_fleet.models.backbone.precision import Int8Linear, pack
from acme_fleet.models.families import ELASTIC, dimensions, most_tokens
from acme_fleet.models.family import LM_HEAD
from acme_fleet.models.features import CustomizedModel, language_weight
from acme_fleet.models.header.module import Header, NoHeader
from acme_fleet.seeding import threads as using
from acme_fleet_runtime.manifest import Port, Program

PROGRAM, MODEL = "llama.cpp", "model.gguf"
_MINIMUM = "b4000"  # a build that knows all that is written here
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's graph by family."""
_TURNED = ("q_proj", "k_proj")
"""Rotary positions of llama.cpp's ``llama`` turn neighbours; transformers' turn halves."""
_FILE_TYPES = {"float32": 0, "float16": 1, "int4": 2, "int8": 7}


def _gguf() -> Any:
    if find_spec("gguf") is None:
        raise FleetError('exporting to GGUF needs gguf: pip install "acme-fleet[gguf]"')
    return import_module("gguf")


# --- writing ----------------------------------------------------------------------------------


def _write(model: DeviceModel, folder: Path) -> Written:
    gguf, rule = _gguf(), model.preprocessing
    backbone = model.model.backbone
    config, precision = backbone.config, backbone.config.precision
    architecture = _check_family(config, model.folder)
    assert isinstance(rule, LanguagePreprocessing)  # by the caller
    head = folded(model.model.header, backbone, model.folder)
    writer = gguf.GGUFWriter(folder / MODEL, architecture)
    _add_sizes(writer, config)
    add_tokenizer(writer, rule, len(backbone.get_input_embeddings().get_parameter("weight")))
    notes = _notes(precision, head)
    kinds = gguf.GGMLQuantizationType
    for name, weight in _named(gguf, backbone, head):
        part = _stored(weight, precision, exact=not (head is not None and name == "output.weight"))
        if part.rounded:
            notes.append(f"{name} was rounded to {part.kind}")
        writer.add_tensor(name, part.content, raw_dtype=kinds[part.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    inputs = (Port("tokens", "int64", (1, "tokens")),)
    outputs = (Port("logits", "float32", (1, "tokens", _words(config))),)
    program = Program(PROGRAM, _MINIMUM, None)
    return Written(program, MODEL, script("gguf"), inputs, outputs, _short(notes))


def _check_family(config: PreTrainedConfig, folder: Path) -> str:
    """llama.cpp's name of a family whose graph it has, at these sizes."""
    family = config.model_type.removeprefix("acme_")
    rope = getattr(config, "rope_parameters", None) or {}
    wrong = None
    if family not in _ARCHITECTURES:
        wrong = f"{family} models are not written; {', '.join(_ARCHITECTURES)} are"
    elif rope.get("rope_type", "default") != "default":
        wrong = f"rotary positions of the kind {rope['rope_type']} are not written"
    elif any(len(set(kept)) > 1 for kept in (config.heads_per_layer, config.neurons_per_layer)):
        wrong = "llama.cpp wants as many heads and neurons in each layer, and they differ"
    elif family != "mistral" and "sliding_attention" in (
        getattr(config, "layer_types", None) or ()
    ):
        wrong = "layers with a sliding window are not written"
    if wrong:
        raise FleetError(f"{folder}: {wrong}; use --format onnx or safetensors")
    return _ARCHITECTURES[family]


def _add_sizes(writer: Any, config: PreTrainedConfig) -> None:
    sizes, groups = dimensions(config), config.heads_per_layer[0]
    window = getattr(config, "sliding_window", None) or most_tokens(config)
    writer.add_context_length(min(most_tokens(config), window))  # within it, no token is unseen
    writer.add_embedding_length(sizes.hidden)
    writer.add_block_count(sizes.layers)
    writer.add_feed_forward_length(config.neurons_per_layer[0])
    writer.add_head_count(groups * sizes.queries_per_head)
    writer.add_head_count_kv(groups)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(_words(config))
    writer.add_file_type(_FILE_TYPES[config.precision])
    writer.add_quantization_version(2)


def _words(config: PreTrainedConfig) -> int:
    return config.vocab_size


def folded(header: nn.Module, backbone: PreTrainedModel, folder: Path) -> Tensor | None:
    """The language head with a header's change in it: E(I + A), where the header adds A·h.

    Returns:
        The matrix ``(words, hidden)``; none if the header adds nothing.

    Raises:
        FleetError: if the header is no linear map of the last hidden state.
    """
    if isinstance(header, NoHeader):
        return None
    assert isinstance(header, Header)
    change = _linear_change(header)
    if change is None:
        raise FleetError(
            f"{folder}: GGUF holds the graph of a model family, and llama.cpp has none for the "
            f"device's header, {header.plan.genotype.describe()}; use --format onnx, or write the "
            f"backbone alone with --without-header, and look at its loss"
        )
    if not change.any():
        return None
    weight = backbone.get_parameter(language_weight(backbone.config))
    return (weight.double() + weight.double() @ change.double()).float()


@torch.no_grad()
def _linear_change(header: Header) -> Float[Tensor, "hidden hidden"] | None:
    """A, where the header adds A·h to the last hidden state h; none if it adds anything else."""
    plan, hidden = header.plan, header.plan.hidden
    if not any(end.get_parameter("weight").any() for end in header.classifier.children()):
        return torch.zeros(hidden, hidden)
    plain = {"identity", "conv1"}
    pointwise = all(t.operation in plain and not t.align for n in plan.nodes for t in n.terms)
    # Convolutions of features are not rectified; those of what comes after are.
    linear = all(
        t.source == "last" or not (t.layer or t.source == "penultimate")
        for node in plan.nodes
        for t in node.terms
    )
    if not (pointwise and linear):
        return None
    none = torch.zeros(1, hidden, 1)
    states = torch.cat([none, torch.eye(hidden)[..., None]])
    found = header(states, torch.zeros_like(states), torch.empty(hidden + 1, 0))[..., 0]
    if found[0].any():  # a constant: llama.cpp's language head has no bias
        return None
    return (found[1:] - torch.eye(hidden)).T


def _named(
    gguf: Any, backbone: PreTrainedModel, head: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """All tensors, with GGUF's names and in its order of rotary positions."""
    names = _names(gguf, backbone)
    for name, weight in backbone.state_dict().items():
        if not (name.startswith(LM_HEAD) and head is not None):
            yield names[name], _turned(backbone.config, name, weight.detach(), back=False)
    if head is not None:
        yield "output.weight", head


def _names(gguf: Any, backbone: PreTrainedModel) -> dict[str, str]:
    config = backbone.config
    architecture = _ARCHITECTURES[config.model_type.removeprefix("acme_")]
    known = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    found = {}
    for name in backbone.state_dict():
        full = name if name.startswith(LM_HEAD) else f"model.{name}"
        module, _, leaf = full.rpartition(".")
        place = table.get_name(module)
        assert place is not None, name
        found[name] = f"{place}.{leaf}"
    return found


def _turned(config: PreTrainedConfig, name: str, weight: Tensor, *, back: bool) -> Tensor:
    """Rows of queries and keys, from halves of a head to neighbours, or back."""
    graph = _ARCHITECTURES[config.model_type.removeprefix("acme_")]
    if graph != "llama" or name.rpartition(".")[0].rpartition(".")[2] not in _TURNED:
        return weight
    half = dimensions(config).head_dim // 2
    parts = (half, 2) if back else (2, half)
    return weight.unflatten(0, (-1, *parts)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class _Part:
    """A tensor as the file holds it."""

    content: np.ndarray
    kind: str
    rounded: bool = False


def _stored(weight: Tensor, precision: Precision, *, exact: bool) -> _Part:
    """A tensor at a precision. Vectors stay in float32, as llama.cpp wants them.

    Whole numbers and scales of groups of 32 are those of the device's file at int4. At int8 the
    numbers are, and the scale of a row is that of each of its groups, rounded to float16.

    Args:
        weight: of the model.
        precision: of the file.
        exact: true if the weight is a product of whole numbers and scales.
    """
    if precision == "float32" or weight.ndim < 2:
        return _Part(weight.float().numpy(), "F32")
    groups, odd = divmod(weight.shape[1], GROUP)
    if precision == "float16" or odd or not exact:
        half = weight.to(torch.float16)
        changed = not torch.equal(half.float(), weight.float())
        return _Part(half.numpy(), "F16", rounded=changed)
    tensors = pack({"of.weight": weight}, precision)
    numbers, scale = tensors["of.weight"], tensors["of.weight" + SCALE]
    rows = len(numbers)
    if precision == "int8":
        half = scale.to(torch.float16)[:, None].expand(rows, groups)
        content = _blocks(half, numbers.view(torch.uint8).unflatten(1, (groups, GROUP)))
        return _Part(content, "Q8_0", rounded=not torch.equal(half[:, 0].float(), scale))
    pairs = numbers.unflatten(1, (groups, GROUP // 2))  # two neighbours in a byte
    each = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(2)
    return _Part(_blocks(scale, each[..., :16] | (each[..., 16:] << 4)), "Q4_0")


def _blocks(scale: Tensor, content: Tensor) -> np.ndarray:
    """Bytes of rows of blocks, each a scale of two bytes and its numbers."""
    scales = scale.contiguous().numpy().view(np.uint8).reshape(*scale.shape, 2)
    return np.concatenate([scales, content.numpy()], axis=2).reshape(len(scale), -1)


def _notes(precision: Precision, head: Tensor | None) -> list[str]:
    notes = []
    if head is not None:
        notes.append("the header is a linear map and was folded into the language head")
    if precision == "int8":
        notes.append(
            "weights have the device's whole numbers; scales of rows were rounded to float16"
        )
    if precision == "int4":
        notes.append(
            "inputs of layers are rounded to 8 bits by llama.cpp, and not by the device's model"
        )
    return notes


def _short(notes: list[str]) -> tuple[str, ...]:
    """Notes without one for each of many tensors of a kind."""
    rounded = [note for note in notes if " was rounded to F16" in note]
    rest = [note for note in notes if " was rounded to " not in note]
    if rounded:
        first = rounded[0].partition(" ")[0]
        rest.append(
            f"{len(rounded)} tensors, as {first}, were rounded to float16: their rows have no "
            f"multiple of {GROUP} numbers, or they were folded"
        )
    return tuple(rest)


# --- reading ----------------------------------------------------------------------------------


def read_gguf(path: Path) -> PreTrainedModel:
    """The backbone that a file of this module holds, by its own metadata and numbers alone.

    Its numbers are in float32. A Mistral is read as a LLaMA, whose graph it has.

    Raises:
        FleetError: if it holds a tensor that is none of such a model.
    """
    gguf = _gguf()
    reader = gguf.GGUFReader(path)
    family = name = reader.fields["general.architecture"].contents()

    def number(key: str) -> Any:
        return reader.fields[f"{name}.{key}"].contents()

    tensors = {one.name: one for one in reader.tensors}
    layers, groups = number("block_count"), number("attention.head_count_kv")
    document = {
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": groups,
        "head_dim": number("attention.key_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": number("context_length"),
        "rope_parameters": {"rope_type": "default", "rope_theta": number("rope.freq_base")},
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "heads_per_layer": [groups] * layers,
        "neurons_per_layer": [number("feed_forward_length")] * layers,
        "language_head": "own" if "output.weight" in tensors else "tied",
    }
    if "blk.0.attn_q.bias" in tensors and family == "llama":
        document["attention_bias"] = True
    config = ELASTIC[family][0].from_dict(document)
    backbone = build(config, "cpu")
    names = _names(gguf, backbone)
    state = {}
    for ours, theirs in names.items():
        found = tensors.pop(theirs)
        values = torch.from_numpy(gguf.dequantize(found.data, found.tensor_type).copy())
        state[ours] = _turned(config, ours, values, back=True)
    if tensors:
        raise FleetError(f"{path}: {min(tensors)} is no tensor of such a model")
    backbone.load_state_dict(state)
    return backbone.requires_grad_(False).eval()


def _float_inputs(model: DeviceModel) -> Logits:
    """The device's model with inputs of layers in float32, as the file's weights are compared."""
    changed = copy.deepcopy(model.model)
    for name, module in list(changed.backbone.named_modules()):
        if isinstance(module, Int8Linear):
            plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            plain.load_state_dict(module.state_dict(), assign=True)
            changed.backbone.set_submodule(name, plain)
    return logits_of(changed, model)


def _begin(folder: Path, threads: int) -> Writing:
    """The file's own numbers in PyTorch and, where it is installed, llama.cpp."""
    model = CustomizedModel(read_gguf(folder / MODEL), NoHeader())

    def run(inputs: Inputs) -> np.ndarray:
        with using(threads), torch.no_grad():
            return model(
                **{name: torch.from_numpy(values) for name, values in inputs.items()}
            ).numpy()

    if find_spec("llama_cpp") is None:
        return Writing(run)
    return Writing(run, go_on=llama(folder / MODEL, threads))


def llama(path: Path, threads: int) -> Any:
    """The most probable tokens behind a prompt, as llama.cpp finds them."""
    program: Any = import_module("llama_cpp")
    loaded = program.Llama(str(path), n_ctx=0, n_threads=threads, n_batch=512, verbose=False)

    def go_on(prompt: Sequence[int]) -> Iterator[int]:
        loaded.reset()
        return iter(loaded.generate(list(prompt), temp=0.0, repeat_penalty=1.0))

    return go_on


GGUF = Format("gguf", "llama-cpp-python", _write, pytorch=_float_inputs, begin=_begin)
