"""Random crops and mirror images of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from acme_fleet.data.samples import Samples

Augment = Callable[[Samples, torch.Generator], Samples]


def augmentation(padding: int, *, flip: bool) -> Augment | None:
    """Random crops of the padded image, and mirror images; None if there is nothing to do."""
    if padding == 0 and not flip:
        return None

    def augment(batch: Samples, generator: torch.Generator) -> Samples:
        pixels = batch.inputs["pixel_values"]
        count, _, rows, columns = pixels.shape
        padded = F.pad(pixels, (padding,) * 4, mode="replicate")
        top, left = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
        row_index = top + torch.arange(rows)
        column_index = left + torch.arange(columns)
        if flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            column_index = torch.where(mirrored, column_index.flip(1), column_index)
        picked = torch.arange(count)[:, None, None]
        crops = padded.permute(0, 2, 3, 1)[picked, row_index[:, :, None], column_index[:, None]]
        return batch.with_inputs(
            {**batch.inputs, "pixel_values": crops.permute(0, 3, 1, 2).contiguous()}
        )

    return augment
