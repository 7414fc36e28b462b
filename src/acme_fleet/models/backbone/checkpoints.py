"""Backbones and classifiers from Hugging Face checkpoints: a local folder, or a hub name.

A checkpoint is data from outside: no code of its own runs, no pickle is opened, and of its
configuration only what :mod:`acme_fleet.models.backbone.configuration` knows reaches transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from acme_fleet.cost.size import parameter_count, shapes_of
from acme_fleet.data.checkpoint_files import (
    WEIGHTS,
    check_weights,
    config_content,
    located,
    shown,
    weight_files,
)
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.configuration import accepted, checked_names
from acme_fleet.models.backbone.elastic import as_elastic, build
from acme_fleet.models.backbone.loaded import check_complete
from acme_fleet.models.families import (
    ELASTIC,
    FAMILIES,
    check_known,
    family_of,
    is_elastic,
)
from acme_fleet.models.family import LM_HEAD, language_head_of
from acme_fleet.models.storage import saving
from acme_fleet.outside import reading

_TEXT_ENCODER = "text_model."  # beside an image encoder
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read.

    Attributes:
        name: as the user calls it.
        folder: where it lies.
        config: sizes within bounds, of a known family.
        class_names: of its classifier; none where it has none.
        architectures: names of the classes that it was saved from.
    """

    name: str
    folder: Path
    config: PreTrainedConfig
    class_names: list[str]
    architectures: list[str]


def load_backbone(
    checkpoint: str | Path, revision: str | None = None, image_size: int | None = None
) -> PreTrainedModel:
    """A checkpoint's backbone as an elastic model of full width and depth, in float32.

    Names of older transformers on disk are understood, and what the file holds beside the backbone
    (a classifier, a pooler, a language model's output matrix) is left out. An elastic backbone
    that was saved before comes back as it is.

    Args:
        checkpoint: a folder, or a name on the hub.
        revision: a commit, branch or tag on the hub.
        image_size: side of the data's images in pixels. A family whose models take any size gets
            a position table for it, and no other does.

    Raises:
        FleetError: if the checkpoint is missing or damaged, its model type is not supported, or
            its tensors are not those that its configuration describes.
    """
    found = read_checkpoint(checkpoint, revision)
    family = family_of(found.config)
    _check_files(found)
    options = {} if is_elastic(found.config) else family.options
    model, info = _load(AutoModel, found, options)
    inside = [
        name
        for name in info["unexpected_keys"]
        if f"{family.layers}." in name and not name.startswith(_TEXT_ENCODER)
    ]
    check_complete(found.name, {**info, "unexpected_keys": inside})
    if image_size is not None and family.resampled:
        _resample(model, image_size)
    return model if is_elastic(found.config) else as_elastic(model)


def load_language_model(checkpoint: str | Path, revision: str | None = None) -> PreTrainedModel:
    """A decoder with its language head, as an elastic model of full width and depth, in float32.

    Raises:
        FleetError: as :func:`load_backbone`, or if the checkpoint is no decoder or has no language
            head of the plain kind.
    """
    found = check_kind(checkpoint, revision, images=False, writes=True)
    place = f"cannot use {found.name} for task: generation"
    content = config_content(checkpoint, found.folder)
    if content.get("final_logit_softcapping"):
        raise FleetError(f"{place}: final_logit_softcapping: its logits are capped, ours are not")
    if is_elastic(found.config):
        if language_head_of(found.config) is None:
            raise FleetError(f"{place}: it was saved without its language head")
        return load_backbone(checkpoint, revision)
    tied = content.get("tie_word_embeddings", type(found.config)().tie_word_embeddings)
    found.config.tie_word_embeddings = bool(tied)
    _check_files(found)
    model, info = _load(AutoModelForCausalLM, found, {})
    missing = {name for name in info["missing_keys"] if not (tied and name == f"{LM_HEAD}.weight")}
    check_complete(found.name, {**info, "missing_keys": missing})
    backbone, head = model.get_submodule("model"), model.get_submodule(LM_HEAD)
    assert isinstance(backbone, PreTrainedModel)
    backbone.config.language_head = "tied" if tied else "own"
    own = {} if tied else {f"{LM_HEAD}.weight": head.get_parameter("weight").detach()}
    return as_elastic(backbone, own)


def check_kind(
    checkpoint: str | Path, revision: str | None = None, *, images: bool, writes: bool = False
) -> Checkpoint:
    """Refuse a checkpoint of another kind than the data, by its configuration alone.

    Args:
        checkpoint: a folder, or a name on the hub.
        revision: a commit, branch or tag on the hub.
        images: the data are images; else texts.
        writes: the model is to write texts, which encoders do not.

    Raises:
        FleetError: if it takes other data or writes nothing; or as :func:`load_backbone`.
    """
    found = read_checkpoint(checkpoint, revision)
    require_kind(found.name, found.config, images=images, writes=writes)
    return found


def require_kind(
    name: str, config: PreTrainedConfig, *, images: bool, writes: bool = False
) -> None:
    """Refuse a configuration of another kind than the data, see :func:`check_kind`.

    Raises:
        FleetError: as there.
    """
    family, kind = family_of(config), config.model_type
    if (family.grid == "image") != images:
        takes, are = ("texts", "images") if images else ("images", "texts")
        raise FleetError(f"cannot use {name}: it takes {takes}, the data are {are}")
    if writes and family.words is None:
        decoders = [key for key, family in FAMILIES.items() if family.words is not None]
        raise FleetError(
            f"cannot use {name} for task: generation: a {kind} writes no text; decoders are "
            f"{', '.join(decoders)}"
        )


@torch.no_grad()
def _resample(model: PreTrainedModel, side: int) -> None:
    """Give a DINOv2 the position table that it makes for images of this size at every pass."""
    if side == model.config.image_size:
        return
    if side % model.config.patch_size:
        raise FleetError(
            f"reference.checkpoint: images of {side} × {side} cannot be cut into patches of "
            f"{model.config.patch_size}; set data.image_size to a multiple of it"
        )
    embeddings = model.get_submodule("embeddings")
    table = embeddings.get_parameter("position_embeddings")
    patches = torch.empty(1, 1 + (side // model.config.patch_size) ** 2, table.shape[2])
    resampled = embeddings.interpolate_pos_encoding(patches, side, side)  # type: ignore[operator]
    embeddings.register_parameter("position_embeddings", nn.Parameter(resampled.clone()))
    model.config.image_size = side


def load_head(
    checkpoint: str | Path, class_names: list[str], revision: str | None = None
) -> nn.Linear | None:
    """An image checkpoint's own classifier, if it has one for these classes in this order.

    Of a distilled DeiT it is the classifier on the [CLS] token, without the one on the
    distillation token.

    Raises:
        FleetError: as :func:`load_backbone`.
    """
    found = read_checkpoint(checkpoint, revision)
    if found.class_names != class_names or is_elastic(found.config):
        return None
    if type(found.config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return None
    found.config.id2label = dict(enumerate(class_names))
    found.config.architectures = found.architectures
    model, info = _load(AutoModelForImageClassification, found, {})
    name = "cls_classifier" if "cls_classifier" in dict(model.named_children()) else "classifier"
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    return None if f"{name}.weight" in info["missing_keys"] else head


def read_checkpoint(checkpoint: str | Path, revision: str | None = None) -> Checkpoint:
    """A checkpoint's configuration; its weights are not looked at.

    Raises:
        FleetError: if there is none, its model type is not among the families, or a value in it
            is out of bounds.
    """
    folder = located(checkpoint, revision)
    content = config_content(checkpoint, folder)
    place = f"cannot use {shown(checkpoint)}"
    family = check_known(str(content.get("model_type")), place)
    config_class = CONFIG_MAPPING[family]
    if str(content["model_type"]) != family:
        config_class, _ = ELASTIC[family]
    sizes = accepted(family, content, place)
    if config_class is CONFIG_MAPPING[family] and FAMILIES[family].head_size is not None:
        sizes.pop("head_dim", None)  # read by elastic models alone
    with reading(place):
        config = config_class.from_dict(sizes)
    saved_from = content.get("architectures")
    listed = saved_from if isinstance(saved_from, list) else []
    return Checkpoint(
        name=shown(checkpoint),
        folder=folder,
        config=config,
        class_names=checked_names(content, place),
        architectures=[name for name in listed if isinstance(name, str)],
    )


def _check_files(found: Checkpoint) -> None:
    """Refuse weights that are no safetensors, or far fewer than the configuration describes."""
    place = f"cannot use {found.name}"
    with reading(place):
        files = weight_files(found.folder, place)
        total = sum(path.stat().st_size for path in files)
        pickles = [path.name for pattern in _PICKLES for path in found.folder.glob(pattern)]
    if not files:
        only = f", only {pickles[0]}, which can hold code and is not read" if pickles else ""
        raise FleetError(f"{place}: it has no model.safetensors{only}")
    check_weights(found.folder, place)
    with reading(f"{place}: config.json"):  # sizes that do not go together
        config = found.config
        described = build(config) if is_elastic(config) else _skeleton(config)
    numbers = parameter_count(shapes_of(described))
    if numbers > total:  # transformers would allocate all of them to say what is missing
        raise FleetError(
            f"{place}: its file disagrees with its configuration, which describes {numbers:,} "
            f"numbers, the files have {total:,} bytes"
        )


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModel.from_config(config, **family_of(config).options)


def _load(
    loader: Any, found: Checkpoint, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """A model, and the names of the tensors that its file lacked or had too many."""
    with reading(f"cannot use {found.name}"), quiet():
        model, info = loader.from_pretrained(
            found.folder,
            config=found.config,
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are told, see check_complete
            output_loading_info=True,
            **options,
        )
    check_complete(found.name, {"mismatched_keys": info["mismatched_keys"]})
    return model.eval(), info


def save_plain(model: PreTrainedModel, folder: Path) -> None:
    """Write a model as an ordinary Hugging Face folder.

    Raises:
        WriteError: if it cannot be written.
    """
    with quiet(), saving(folder / WEIGHTS):
        model.save_pretrained(folder)
    for path in folder.glob("model*.safetensors"):  # the owner's alone, unlike their neighbours
        path.chmod((folder / "config.json").stat().st_mode & 0o777)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no load report: what matters in it is checked, and said, by the callers."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
