"""The one type that holds samples. It never appears in a message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Labelled samples, ready for a model.

    Attributes:
        inputs: what a Hugging Face model takes by name, e.g. ``pixel_values`` of shape
            ``(samples, channels, height, width)``; the first axis of each is the sample.
        labels: class indices, shape ``(samples,)``, int64.
        stored_bytes: size of each raw sample as stored on disk, shape ``(samples,)``, int64.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    stored_bytes: Tensor

    def __post_init__(self) -> None:
        lengths = {len(self.labels), len(self.stored_bytes), *map(len, self.inputs.values())}
        if len(lengths) != 1:
            raise ValueError(f"inputs, labels and stored_bytes differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Samples:
        """The samples at ``index`` (a slice, or int64 indices of shape ``(chosen,)``)."""
        return Samples(
            {name: values[index] for name, values in self.inputs.items()},
            self.labels[index],
            self.stored_bytes[index],
        )

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[Samples]:
        """Batches in order, or in an order drawn from ``generator`` if one is given."""
        order = (
            torch.arange(len(self))
            if generator is None
            else torch.randperm(len(self), generator=generator)
        )
        for index in order.split(batch_size):
            yield self[index]


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets: train on the first, choose on the second, report on the third."""

    train: Samples
    validation: Samples
    test: Samples
