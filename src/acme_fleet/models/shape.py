"""A model's shape without its weights: enough to know what it costs, at any width and depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from acme_fleet.errors import FleetError
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.backbone.checkpoints import read_checkpoint
from acme_fleet.models.backbone.elastic import Architecture, architecture, build, elastic_config
from acme_fleet.models.families import dimensions, family_of, most_tokens
from acme_fleet.models.features import CustomizedModel, grid_side
from acme_fleet.models.header.module import Header
from acme_fleet.models.shipped import load_device_model
from acme_fleet.models.storage import CONFIG, HEADER

_MOST_TOKENS = 128


@dataclass(frozen=True)
class ModelShape:
    """A backbone's configuration and, for a device's model, the header on it.

    Widths are shares of the reference's heads and neurons, as in Eq. 2: a device's configuration
    still says how many the reference had.
    """

    config: PreTrainedConfig
    header: HeaderPlan | None

    @staticmethod
    def read(folder: Path) -> ModelShape:
        """Of a device folder of a run, or of a Hugging Face checkpoint of a known family.

        Raises:
            FleetError: if it is neither.
            RunError: if the device folder is damaged.
        """
        if not (folder / CONFIG).is_file():
            raise FleetError(f"{folder} holds no model: it has no {CONFIG}")
        if (folder / HEADER).exists():
            model = load_device_model(folder)
            assert isinstance(model.header, Header)
            return ModelShape(model.backbone.config, model.header.plan)
        return ModelShape(read_checkpoint(folder).config, None)

    @property
    def layers(self) -> int:
        """Transformer layers of the model."""
        return dimensions(self.config).layers

    @property
    def tokens(self) -> int:
        """p of Eq. 2: patches of an image, or words of the text that is measured."""
        if family_of(self.config).grid == "image":
            return grid_side(self.config) ** 2
        return min(_MOST_TOKENS, most_tokens(self.config))

    def build(self) -> nn.Module:
        """A model of this shape, with weights that mean nothing."""
        heads = getattr(self.config, "heads_per_layer", None)
        if not heads:
            return self.resized(1.0, self.layers)
        neurons = tuple(self.config.neurons_per_layer)
        return self._assembled(Architecture(tuple(range(self.layers)), tuple(heads), neurons))

    def resized(self, width: float, depth: int) -> nn.Module:
        """The same with another width in (0, 1] and depth in 1..layers."""
        return self._assembled(architecture(dimensions(self.config), width, depth))

    def _assembled(self, arch: Architecture) -> nn.Module:
        backbone = build(elastic_config(self.config, arch), "cpu")
        if self.header is None:
            return backbone
        return CustomizedModel(backbone, Header(self.header)).eval()

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Inputs for ``batch`` samples, with values that mean nothing."""
        if family_of(self.config).grid == "image":
            side = self.config.image_size
            return {"pixel_values": torch.zeros(batch, self.config.num_channels, side, side)}
        return {"input_ids": torch.zeros(batch, self.tokens, dtype=torch.int64)}
