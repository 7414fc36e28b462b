"""New Vision Transformers, with a task's head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import ViTConfig, ViTModel

from acme_fleet.config.backbone import Reference
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.elastic import architecture, as_elastic, build, elastic_config
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier
from acme_fleet.seeding import derive_seed, seeded
from acme_fleet.tasks.base import Task


def new_vit(task: Task, config: ViTConfig, names: Sequence[str], seed: int) -> Classifier:
    """An untrained ViT with the task's head for labels of these names."""
    with seeded(derive_seed(seed, "reference")):
        backbone = ViTModel(config, add_pooling_layer=False)
        return Classifier(as_elastic(backbone), task.head(config.hidden_size, names))


def shape_of_vit(task: Task, config: ViTConfig, names: Sequence[str]) -> Classifier:
    """The classifier of :func:`new_vit` without weights: all on the meta device."""
    whole = architecture(dimensions(config), 1.0, config.num_hidden_layers)
    with torch.device("meta"):
        head = task.head(config.hidden_size, names)
    return Classifier(build(elastic_config(config, whole)), head)


def vit_config(settings: Reference, pixel_shape: tuple[int, int, int]) -> ViTConfig:
    """The configuration of the ViT that the run trains.

    Raises:
        FleetError: if the image is not square or not a multiple of the patch.
    """
    channels, rows, columns = pixel_shape
    patch = settings.model.patch_size
    if rows != columns or rows % patch:
        raise FleetError(
            f"reference.model.patch_size: images of {rows} × {columns} cannot be cut into patches "
            f"of {patch} × {patch}; set data.image_size to a multiple of it"
        )
    return ViTConfig(
        image_size=rows,
        patch_size=patch,
        num_channels=channels,
        hidden_size=settings.model.hidden_size,
        num_hidden_layers=settings.model.layers,
        num_attention_heads=settings.model.heads,
        intermediate_size=settings.model.neurons,
    )
