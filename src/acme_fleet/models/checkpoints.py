"""Backbones and classifiers from Hugging Face checkpoints: a local folder, or a hub name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from acme_fleet.errors import FleetError
from acme_fleet.models.elastic import as_elastic
from acme_fleet.models.families import check_known, family_of, is_elastic


def load_backbone(checkpoint: str | Path) -> PreTrainedModel:
    """A checkpoint's backbone as an elastic model of full width and depth, in float32.

    Names of older transformers on disk are understood, and what the file holds beside the backbone
    (a classifier, a pooler, a language model's output matrix) is left out. An elastic backbone
    that was saved before comes back as it is.

    Raises:
        FleetError: if the checkpoint is missing or damaged, its model type is not supported, or
            its tensors are not those that its configuration describes.
    """
    config = read_config(checkpoint)
    family = family_of(config)
    options = {} if is_elastic(config) else family.options
    model, info = _load(AutoModel, checkpoint, config, options)
    too_many = [name for name in info["unexpected_keys"] if f"{family.layers}." in name]
    for what, names in (("lacks", info["missing_keys"]), ("also has", too_many)):
        if names:
            raise FleetError(
                f"cannot use {checkpoint}: its file disagrees with its configuration, it {what} "
                f"{', '.join(sorted(names)[:3])}{' and more' if len(names) > 3 else ''}"
            )
    return model if is_elastic(config) else as_elastic(model)


def load_head(checkpoint: str | Path, class_names: list[str]) -> nn.Linear | None:
    """An image checkpoint's own classifier, if it has one for these classes in this order.

    Of a distilled DeiT it is the classifier on the [CLS] token, without the one on the
    distillation token.

    Raises:
        FleetError: as :func:`load_backbone`.
    """
    config = read_config(checkpoint)
    known = [name for _, name in sorted((config.id2label or {}).items())]
    if known != class_names or is_elastic(config):
        return None
    model, info = _load(AutoModelForImageClassification, checkpoint, config, {})
    name = "cls_classifier" if "cls_classifier" in dict(model.named_children()) else "classifier"
    head = model.get_submodule(name)
    assert isinstance(head, nn.Linear)
    return None if f"{name}.weight" in info["missing_keys"] else head


def read_config(checkpoint: str | Path) -> PreTrainedConfig:
    """A checkpoint's configuration.

    Raises:
        FleetError: if there is none, or its model type is not among the families.
    """
    if str(checkpoint).startswith((".", "/")) and not Path(checkpoint).is_dir():
        raise FleetError(f"cannot use {checkpoint}: there is no such folder")
    with _explained(checkpoint):
        content, _ = PreTrainedConfig.get_config_dict(checkpoint)
        check_known(str(content.get("model_type")))
        config = AutoConfig.from_pretrained(checkpoint)
    return with_square_sides(config, f"cannot use {checkpoint}")


def with_square_sides(config: PreTrainedConfig, where: str) -> PreTrainedConfig:
    """The same configuration with image and patch sizes as one number each.

    Raises:
        FleetError: naming the size that is not square.
    """
    for key in ("image_size", "patch_size"):
        value = getattr(config, key, None)
        if isinstance(value, list | tuple):
            if len(set(value)) != 1 or len(value) != 2:
                raise FleetError(
                    f"{where}: {key} {value} is no square, and only squares are supported"
                )
            setattr(config, key, value[0])
    return config


def _load(
    loader: Any, checkpoint: str | Path, config: PreTrainedConfig, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """A model, and the names of the tensors that its file lacked or had too many."""
    with _explained(checkpoint), quiet():
        model, info = loader.from_pretrained(
            checkpoint,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
            **options,
        )
    return model.eval(), info


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


@contextmanager
def _explained(checkpoint: str | Path) -> Iterator[None]:
    """What libraries raise for a checkpoint that they cannot read, as one kind of error."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise FleetError(f"cannot use {checkpoint}: {error}") from error
