"""Tensors and their description in one file, written whole or not at all."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from acme_fleet.cost.size import Stored, shapes_of, stored_size, stored_tensors
from acme_fleet.errors import DamagedError, ProtocolError
from acme_fleet.messages.base import check_shapes
from acme_fleet.models.backbone.configuration import accepted
from acme_fleet.models.backbone.elastic import BY_LAYER, build, described, layers_key
from acme_fleet.models.backbone.precision import pack, stored_as, unpack
from acme_fleet.models.families import ELASTIC, FAMILIES, dimensions, family_of, own_pooling
from acme_fleet.outside import one_line, reading, regular
from acme_fleet.runs.atomic import replacing, writing
from acme_fleet.runs.sealed import canonical, check, checksum

WEIGHTS, CONFIG, HEADER = "model.safetensors", "config.json", "header.json"
CLASS_NAMES, PREPROCESSING = "labels.json", "preprocessor_config.json"
TOKENIZER = "tokenizer.json"  # of text models only
_WIDEST_ATTENTION = 128
"""Times the hidden size; known models have at most 2, and a 64th of it may be what is kept. A
reference's width is in no tensor."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], *, private: bool = False
) -> None:
    """Write a checkpoint with its checksum, atomically: readers see the old file or the new one.

    Args:
        path: the file.
        tensors, about: what is in it.
        private: see :func:`acme_fleet.runs.atomic.replacing`.

    Raises:
        WriteError: if it cannot be written.
    """
    plain, metadata = sealed_tensors(tensors, about)
    with replacing(path, private=private) as file, saving(path):
        save_file(plain, file, metadata=metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote, or another program's file, which has no checksum.

    Raises:
        DamagedError: if the file is missing or damaged.
    """
    with reading(f"cannot read {path}", DamagedError):
        with safe_open(regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") == "pt":  # as all have that are made for other programs
            return tensors, {}
        return tensors, described_by(path, tensors, metadata)


def sealed_tensors(
    tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copies as a file has them, and what is told of them, with a checksum of both."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    description = json.dumps(about)
    return plain, {"about": description, "checksum": _checksum(plain, description)}


def described_by(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """The description of tensors that :func:`sealed_tensors` had.

    Raises:
        DamagedError: naming the file, if either is not as it was.
    """
    description = metadata.get("about", "{}")
    check(path, metadata.get("checksum"), _checksum(tensors, description))
    return json.loads(description)


def _checksum(tensors: Mapping[str, Tensor], description: str) -> str:
    """Of names, types, shapes and values of the tensors, and of their description."""
    named = sorted(tensors.items())
    shapes = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in named]
    values = [tensor.reshape(-1).view(torch.uint8).numpy().data for _, tensor in named]
    return checksum(canonical([description, shapes]), *values)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Refusals of the system while a library writes tensors become one error, as in ``writing``.

    Raises:
        WriteError: naming ``path``.
    """
    with writing(path):
        try:
            yield
        except SafetensorError as error:  # it has the system's number in words alone
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error


def write_json(path: Path, content: Any) -> None:
    """Write a document for other programs atomically; see also :mod:`acme_fleet.runs.sealed`.

    Raises:
        WriteError: if it cannot be written.
    """
    with replacing(path) as file:
        file.write_text(json.dumps(content))


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each name preceded by ``prefix.``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix.``, without it."""
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def config_document(backbone: PreTrainedModel) -> dict[str, Any]:
    """A backbone's configuration, without what does not decide its function."""
    return {"model_type": backbone.config.model_type, **described(backbone.config)}


def backbone_from(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """An elastic backbone from its configuration and copies of its weights; it is frozen.

    Args:
        config: its precision says how the weights are stored.
        tensors: as :func:`stored_weights` gives them.

    Raises:
        ProtocolError: if the model type is unknown, a key of the configuration is unknown or out
            of bounds, or the tensors do not fit it.
    """
    family = str(config.get("model_type", "")).removeprefix("acme_")
    if family not in FAMILIES:
        shown = one_line(str(config.get("model_type")), 60)
        raise ProtocolError(f"unknown model type {shown!r}")
    what = "the backbone's configuration"
    content = accepted(family, config, what, ProtocolError, only=True)
    with reading(what, ProtocolError):
        parsed = ELASTIC[family][0].from_dict(content)
    _check_sizes(parsed, len(tensors), what)
    with reading(what, ProtocolError):  # sizes that do not go together
        skeleton = build(parsed)  # shapes only: nothing is allocated for a hostile configuration
    shapes = shapes_of(skeleton)
    _check_stored(tensors, stored_tensors(shapes, parsed.precision))
    return _with_tensors(skeleton, unpack(tensors, shapes)).requires_grad_(False)


def stored_weights(backbone: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of a backbone's weights as a file holds them at its precision."""
    packed = pack(backbone.state_dict(), backbone.config.precision)
    return {name: tensor.detach().clone() for name, tensor in packed.items()}


def sent_backbone(backbone: PreTrainedModel) -> dict[str, Any]:
    """The fields of a message that carries a backbone, for :func:`backbone_from`."""
    return {"config": config_document(backbone), "backbone": stored_weights(backbone)}


def sent_size(backbone: Mapping[str, Tensor], header: Mapping[str, Tensor]) -> int:
    """Exact bytes of the file of a model that is sent in two parts."""
    tensors = with_prefix("backbone", backbone) | with_prefix("header", header)
    return stored_size({name: stored_as(tensor) for name, tensor in tensors.items()})


def _check_stored(tensors: Mapping[str, Tensor], expected: Stored) -> None:
    """Whole numbers where they should be; a floating-point type is as good as another."""
    check_shapes(tensors, {name: shape for name, (_, shape) in expected.items()}, "the backbone")
    for name, (code, _) in expected.items():
        kind = tensors[name].dtype
        wanted = {"I8": torch.int8, "U8": torch.uint8}.get(code)
        if kind != wanted if wanted else not kind.is_floating_point:
            numbers = wanted or "floating-point numbers"
            raise ProtocolError(f"the backbone: {name} is {kind}, expected {numbers}")


def _check_sizes(config: PreTrainedConfig, tensors: int, what: str) -> None:
    """Refuse sizes that no tensor bears out."""
    sizes = dimensions(config)
    kept = config.heads_per_layer, config.neurons_per_layer
    attention = sizes.heads * sizes.queries_per_head * sizes.head_dim
    wrong = None
    if sizes.layers > tensors:  # do not even name a million layers
        wrong = f"{sizes.layers} layers, but {tensors} tensors"
    elif any(len(each) != sizes.layers for each in kept):
        wrong = f"{sizes.layers} layers, but heads or neurons of another number of them"
    elif max(kept[0]) > sizes.heads or max(kept[1]) > sizes.neurons:
        wrong = "a layer has more heads or neurons than the reference"
    elif attention > _WIDEST_ATTENTION * sizes.hidden:
        wrong = f"attention is {attention} wide, hidden states are {sizes.hidden}"
    elif unclear := family_of(config).wrong_positions(config):
        wrong = unclear
    elif config.pooling == "attention" != own_pooling(config):
        wrong = "pooling: attention is for a family that has it"
    elif not _lists_fit(config):
        wrong = f"{' or '.join(BY_LAYER)} names another number of layers, or windows of no size"
    if wrong:
        raise ProtocolError(f"{what} is invalid: {wrong}")


def _lists_fit(config: PreTrainedConfig) -> bool:
    lists = [getattr(config, name, None) for name in BY_LAYER]
    kinds, window = lists[0] or (), getattr(config, "sliding_window", None)
    return (window is not None or "sliding_attention" not in kinds) and all(
        not listed or len(listed) == config.num_hidden_layers for listed in lists
    )


def _with_tensors(skeleton: PreTrainedModel, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """Give the skeleton, which has no memory yet, these weights in float32.

    Buffers that no file holds are those of a model without layers: a layer is built as wide as
    the reference's before it is narrowed, which is more than a hostile configuration may ask for.
    """
    copies = {
        name: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()
    }
    skeleton.load_state_dict(copies, assign=True)
    config = skeleton.config
    without = copy.deepcopy(config)
    setattr(without, layers_key(config), 0)
    without.heads_per_layer = without.neurons_per_layer = []
    if getattr(config, "layer_types", None):  # each kind of layer may have buffers of its own
        without.layer_types = sorted(set(config.layer_types))
    with no_init_weights():  # some families divide by the number of layers
        frame = build(without, "cpu")
    for name, buffer in frame.named_buffers():
        module, _, leaf = name.rpartition(".")
        if skeleton.get_buffer(name).is_meta:
            skeleton.get_submodule(module).register_buffer(leaf, buffer, persistent=False)
    return skeleton


def clone_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """A detached copy of a module's state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
