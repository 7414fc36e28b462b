"""Tensors and their description in one file, written whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.cost.size import shapes_of
from acme_fleet.errors import DamagedError, ProtocolError, RunError
from acme_fleet.files import replacing, writing
from acme_fleet.messages import check_shapes
from acme_fleet.models.elastic import build
from acme_fleet.models.families import ELASTIC, FAMILIES, dimensions
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header import Header, build_header
from acme_fleet.models.header_plan import HeaderPlan
from acme_fleet.outside import reading
from acme_fleet.sealed import canonical, check, checksum

WEIGHTS, CONFIG, HEADER = "model.safetensors", "config.json", "header.json"
CLASS_NAMES, PREPROCESSING = "labels.json", "preprocessor_config.json"
TOKENIZER = "tokenizer.json"  # of text models only
DEVICE_FILES = (WEIGHTS, CONFIG, HEADER, CLASS_NAMES, PREPROCESSING)
# What Hugging Face and torch raise for a configuration that makes no sense.
_INVALID = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
_WIDEST_ATTENTION = 8
"""Times the hidden size; known models have at most 2. A reference's width is in no tensor."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], *, private: bool = False
) -> None:
    """Write a checkpoint with its checksum, atomically: readers see the old file or the new one.

    Args:
        path: the file.
        tensors, about: what is in it.
        private: see :func:`acme_fleet.files.replacing`.

    Raises:
        WriteError: if it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    description = json.dumps(about)
    metadata = {"about": description, "checksum": _checksum(plain, description)}
    with replacing(path, private=private) as file, saving(path):
        save_file(plain, file, metadata=metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote, or another program's file, which has no checksum.

    Raises:
        DamagedError: if the file is missing or damaged.
    """
    with reading(f"cannot read {path}", DamagedError):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") == "pt":  # as all have that are made for other programs
            return tensors, {}
        description = metadata.get("about", "{}")
        check(path, metadata.get("checksum"), _checksum(tensors, description))
        return tensors, json.loads(description)


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
    """Write a document for other programs atomically; see also :mod:`acme_fleet.sealed`.

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
    """A backbone's configuration as it stands in ``config.json``."""
    return json.loads(backbone.config.to_json_string(use_diff=False))


def backbone_from(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """An elastic backbone from its configuration and weights; it is frozen.

    Raises:
        ProtocolError: if the model type is unknown or the tensors do not fit it.
    """
    family = str(config.get("model_type", "")).removeprefix("acme_")
    if family not in FAMILIES:
        raise ProtocolError(f"unknown model type {config.get('model_type')!r}")
    config_class, _ = ELASTIC[family]
    try:
        parsed = config_class.from_dict(dict(config))
        if parsed.num_hidden_layers > len(tensors):  # do not even name a million layers
            raise ValueError(f"{parsed.num_hidden_layers} layers, but {len(tensors)} tensors")
        sizes = dimensions(parsed)
        attention = sizes.heads * sizes.queries_per_head * sizes.head_dim
        if attention > _WIDEST_ATTENTION * sizes.hidden:
            raise ValueError(f"attention is {attention} wide, hidden states are {sizes.hidden}")
        skeleton = build(parsed)  # shapes only: nothing is allocated for a hostile configuration
    except _INVALID as error:
        raise ProtocolError(f"the backbone's configuration is invalid: {error}") from error
    check_shapes(tensors, shapes_of(skeleton), "the backbone")
    # Layers are built as wide as the reference's and then replaced: skip its MLPs' width.
    neurons_key = FAMILIES[family].neurons_key
    setattr(parsed, neurons_key, 1)
    backbone = build(parsed, "cpu")
    setattr(parsed, neurons_key, sizes.neurons)
    backbone.load_state_dict(dict(tensors))
    return backbone.requires_grad_(False)


def save_device_model(
    folder: Path,
    model: CustomizedModel,
    header: Header,
    class_names: list[str],
    preprocessing: Mapping[str, Any],
) -> None:
    """Write all that is needed to use the model without the run."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = {
        CONFIG: config_document(model.backbone),
        HEADER: header.plan.model_dump(mode="json"),
        CLASS_NAMES: class_names,
        PREPROCESSING: {k: v for k, v in preprocessing.items() if k != "tokenizer"},
    }
    if "tokenizer" in preprocessing:
        documents[TOKENIZER] = preprocessing["tokenizer"]
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as file:
        save_file(tensors, file, metadata={"format": "pt"})


def load_device_model(folder: str | Path) -> CustomizedModel:
    """A device's model from its folder alone, in eval mode.

    Raises:
        RunError: naming the file that is missing or damaged.
    """
    folder = Path(folder)
    config, document = read_document(folder, CONFIG), read_document(folder, HEADER)
    tensors, _ = read_tensors(folder / WEIGHTS)
    header_tensors = without_prefix("header", tensors)
    part = CONFIG
    try:
        if not isinstance(config, dict):
            raise ProtocolError("the configuration is not an object")
        backbone = backbone_from(config, without_prefix("backbone", tensors))
        part = HEADER
        plan = HeaderPlan.model_validate(document)
        check_shapes(header_tensors, plan.shapes(), "the header")
    except (ValueError, ProtocolError) as error:
        raise RunError(f"{folder / part} does not fit {WEIGHTS} or is damaged: {error}") from error
    header = build_header(plan, header_tensors).requires_grad_(False)
    return CustomizedModel(backbone, header).eval()


def read_document(folder: str | Path, name: str) -> Any:
    """One of a device folder's JSON files.

    Raises:
        RunError: if it is missing or damaged.
    """
    try:
        return json.loads((Path(folder) / name).read_text())
    except (OSError, ValueError) as error:  # ValueError: neither JSON nor text
        raise RunError(f"cannot read {Path(folder) / name}: {error}") from error


def clone_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """A detached copy of a module's state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
