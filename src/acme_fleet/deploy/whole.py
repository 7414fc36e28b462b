"""A device's model from its input to its answer, for an exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.models.features import CustomizedModel

INPUTS = {"images": ("pixels",), "texts": ("input_ids", "attention_mask")}
OUTPUTS = ("logits", "probabilities")


class OfImages(nn.Module):
    """From bytes to logits and probabilities, by the arithmetic that the model was trained with."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: CustomizedModel, rule: ImagePreprocessing) -> None:
        super().__init__()
        self.model, self.factor = model, rule.rescale_factor
        for name, values in (("pixel_mean", rule.image_mean), ("pixel_std", rule.image_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of images of shape ``(batch, height, width, channels)``, bytes."""
        values = pixels.permute(0, 3, 1, 2).float() * self.factor
        logits = self.model(pixel_values=(values - self.pixel_mean) / self.pixel_std)
        return logits, logits.softmax(dim=1)


class OfTexts(nn.Module):
    """From tokens to logits and probabilities."""

    def __init__(self, model: CustomizedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of tokens and their mask, both of shape ``(batch, tokens)``; all are real without one."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return logits, logits.softmax(dim=1)


@contextmanager
def silent() -> Iterator[None]:
    """An exporter's words about itself are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
