"""Padding of texts: real tokens alone reach a result.

Tokens that fill up a batch stand behind a text or before it. Behind means that positions count from
the text's first token, so :func:`real_first` brings every text there before a backbone sees it. A
header then gets feature maps that are zero at padded positions, and a mask of shape
``(batch, 1, tokens)``, true at real positions; with many devices at once it is
``(devices, 1, batch, tokens)``. The functions here keep to that: whatever an operation writes to a
padded position is cleared before another position can read it. Zeros beyond the text are what a
convolution sees beyond the border of a text without padding.

Images have no mask; nothing here then changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.data.samples import Samples

_BEFORE = 2**32  # more than the tokens of any text
_LABELS = "labels"  # among inputs, while both are cut
_MOST_SCORE, _LEAST_WEIGHT = 8.0, 1e-4
_SORTED_TOGETHER = 16  # batches: the more, the less padding, and the less chance mixes texts


def real_first(
    inputs: Mapping[str, Shaped[Tensor, "batch ..."]],
) -> tuple[dict[str, Shaped[Tensor, "batch ..."]], Bool[Tensor, "batch tokens"] | None]:
    """Move padding behind the text, in ``attention_mask`` and all inputs of its shape.

    The order of the real tokens stays. So the answer is the same for padding on either side, and
    position 0 is the text's first token whatever a model does with positions.

    Returns:
        The inputs, and their mask: true for real tokens, none where the inputs have no
        ``attention_mask``.

    Raises:
        ValueError: if ``attention_mask`` has not the shape of ``input_ids``, ``(batch, tokens)``.
    """
    given = inputs.get("attention_mask")
    if given is None:
        return dict(inputs), None
    tokens = inputs.get("input_ids", given)
    if given.ndim != 2 or given.shape != tokens.shape:
        shape = f"{tuple(given.shape)}, input_ids have {tuple(tokens.shape)}"
        raise ValueError(f"attention_mask has shape {shape}; both must be (batch, tokens)")
    real = given != 0
    # Keys differ within a row, so that no stable sort is needed.
    order = (torch.arange(real.shape[1], device=real.device) - _BEFORE * real).argsort(dim=1)
    moved = {
        name: values.gather(1, order) if values.shape == real.shape else values
        for name, values in inputs.items()
    }
    return moved, real.gather(1, order)


def cut_padding(
    inputs: Mapping[str, Shaped[Tensor, "batch ..."]],
) -> dict[str, Shaped[Tensor, "batch ..."]]:
    """Inputs without the tokens that are padding in every row; one token is left in any case."""
    if "attention_mask" not in inputs:
        return dict(inputs)
    used = inputs["attention_mask"].any(dim=0)
    used[0] |= ~used.any()
    return {name: values[:, used] for name, values in inputs.items()}


def by_length(
    samples: Samples, batch_size: int
) -> tuple[Iterator[Samples], Int[Tensor, " samples"] | None]:
    """Batches of texts of like length, each cut to its longest: padding costs as much as text.

    Returns:
        The batches, and the index that brings their rows, one below the other, back into the
        samples' order; none where the order is the samples' own, as of images.
    """
    mask = samples.inputs.get("attention_mask")
    if mask is None:
        return samples.batches(batch_size), None
    order = (mask != 0).sum(dim=1).argsort(stable=True)
    return map(without_padding, samples[order].batches(batch_size)), order.argsort()


def shuffled(samples: Samples, batch_size: int, generator: torch.Generator) -> Iterator[Samples]:
    """Batches to learn from, in an order drawn from ``generator``.

    Texts are shuffled, then sorted by length among those of some batches, so that a batch has
    little padding; the batches are shuffled again, and each is cut to its longest text.
    """
    texts = "attention_mask" in samples.inputs
    for rows in shuffled_rows(samples, batch_size, generator):
        yield without_padding(samples[rows]) if texts else samples[rows]


def shuffled_rows(
    samples: Samples, batch_size: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " rows"]]:
    """The samples of each batch of :func:`shuffled`."""
    order = torch.randperm(len(samples), generator=generator)
    mask = samples.inputs.get("attention_mask")
    if mask is None:
        yield from order.split(batch_size)
        return
    lengths = (mask != 0).sum(dim=1)
    batches: list[Tensor] = []
    for pool in order.split(_SORTED_TOGETHER * batch_size):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    for number in torch.randperm(len(batches), generator=generator):
        yield batches[int(number)]


def without_padding(batch: Samples) -> Samples:
    """The batch, cut to its longest text; labels of tokens are cut with them."""
    if not batch.labelled or batch.labels.ndim == 1 or "attention_mask" not in batch.inputs:
        return batch.with_inputs(cut_padding(batch.inputs))
    cut = cut_padding({**batch.inputs, _LABELS: batch.labels})
    return Samples(cut, cut.pop(_LABELS), batch.stored_bytes, batch.computed).ready()


def at_stride(
    mask: Bool[Tensor, "*axes tokens"] | None, stride: int
) -> Bool[Tensor, "*axes positions"] | None:
    """The mask of a map that was down-sampled by ``stride`` in all.

    Position i of the smaller map is real if token ``i · stride`` is, the centre of its window. So a
    text of n real tokens has ⌈n / stride⌉ real positions, as many as without padding.
    """
    return None if mask is None else mask[..., ::stride]


def clear_padding(
    x: Float[Tensor, "*map"], mask: Bool[Tensor, "*#map"] | None
) -> Float[Tensor, "*map"]:
    """Zeros at padded positions, whatever stands there (infinities and NaN too)."""
    return x if mask is None else torch.where(mask, x, 0.0)


def mean_over_positions(
    x: Float[Tensor, "*map"], mask: Bool[Tensor, "*#map"] | None, axes: Literal[1, 2]
) -> Float[Tensor, "*mean"]:
    """Mean over the last ``axes`` axes, of real positions alone; zero where there is none.

    Args:
        x: zero at padded positions.
        mask: of this map.
        axes: 2 for images, 1 for texts.
    """
    if mask is None:
        return x.flatten(-axes).mean(dim=-1)
    return x.sum(dim=-1) / mask.sum(dim=-1).clamp(min=1)


def attended(
    x: Float[Tensor, "*map"],
    scores: Float[Tensor, "*#map"],
    mask: Bool[Tensor, "*#map"] | None,
    axes: Literal[1, 2],
    *,
    causal: bool = False,
) -> Float[Tensor, "*map"]:
    """Mean of the real positions, each weighted by exp of its bounded score, at every position.

    Scores stay within ±8, so that sums of their exponentials are exact enough in float32 however
    long a text is. With ``causal`` a position's mean is over itself and those before it.

    Args:
        x: the grid is the last ``axes`` axes; zero at padded positions.
        scores: one channel for all of x's.
        mask: of this map.
        axes: 2 for images, 1 for texts.
    """
    weight = clear_padding((_MOST_SCORE * torch.tanh(scores / _MOST_SCORE)).exp(), mask)
    if causal:
        return (weight * x).cumsum(dim=-1) / weight.cumsum(dim=-1).clamp(min=_LEAST_WEIGHT)
    dims = tuple(range(-axes, 0))
    mean = (weight * x).sum(dims, keepdim=True) / weight.sum(dims, keepdim=True).clamp(
        min=_LEAST_WEIGHT
    )
    return mean.expand_as(x)


def average_pool(
    x: Float[Tensor, "*map"], mask: Bool[Tensor, "*#map"] | None, axes: Literal[1, 2]
) -> Float[Tensor, "*map"]:
    """Mean of the real positions among three (or 3 × 3 of an image), at every position.

    Args:
        x: the grid is the last ``axes`` axes; zero at padded positions.
        mask: of this map.
        axes: 2 for images, 1 for texts.
    """
    pooled = _average(x, axes)
    if mask is None:
        return pooled
    # Both means are over the same positions, so their quotient is the mean of the real ones.
    share = _average(mask.to(x.dtype), axes)
    return clear_padding(pooled / torch.where(mask, share, 1.0), mask)


def max_pool(
    x: Float[Tensor, "*map"], mask: Bool[Tensor, "*#map"] | None, axes: Literal[1, 2]
) -> Float[Tensor, "*map"]:
    """Largest of the real positions among three (or 3 × 3 of an image), at every position.

    See :func:`average_pool` for the arguments.
    """
    shown = x if mask is None else torch.where(mask, x, -torch.inf)
    pooled = F.max_pool2d(_as_images(shown, axes), *_window(axes)).reshape(x.shape)
    return clear_padding(pooled, mask)


def past_average(
    x: Float[Tensor, "*axes tokens"],
    mask: Bool[Tensor, "*#axes tokens"] | None,
    axes: Literal[1, 2],
) -> Float[Tensor, "*axes tokens"]:
    """Mean of the real positions among three, the last of which is the position itself.

    Args:
        x: zero at padded positions.
        mask: of this map.
        axes: 1, of texts.
    """
    real = torch.ones_like(x[..., :1, :], dtype=torch.bool) if mask is None else mask
    count = sum(_shifted(real, back).to(x.dtype) for back in range(3))
    total = sum(_shifted(x, back) for back in range(3))
    return clear_padding(total / torch.as_tensor(count).clamp(min=1), mask)


def past_max(
    x: Float[Tensor, "*axes tokens"],
    mask: Bool[Tensor, "*#axes tokens"] | None,
    axes: Literal[1, 2],
) -> Float[Tensor, "*axes tokens"]:
    """Largest of the real positions among three, the last of which is the position itself.

    See :func:`past_average` for the arguments.
    """
    shown = x if mask is None else torch.where(mask, x, -torch.inf)
    largest = shown
    for back in (1, 2):
        shifted = F.pad(shown, (back, 0), value=-torch.inf)[..., : x.shape[-1]]
        largest = torch.maximum(largest, shifted)
    return clear_padding(largest, mask)


def _shifted(x: Shaped[Tensor, "*axes tokens"], back: int) -> Shaped[Tensor, "*axes tokens"]:
    """The value ``back`` positions before each; zero or false where there was none."""
    return F.pad(x, (back, 0))[..., : x.shape[-1]]


def _average(x: Float[Tensor, "*map"], axes: int) -> Float[Tensor, "*map"]:
    pooled = F.avg_pool2d(_as_images(x, axes), *_window(axes), count_include_pad=False)
    return pooled.reshape(x.shape)


def _as_images(
    x: Float[Tensor, "*map"], axes: int
) -> Float[Tensor, "images channels rows columns"]:
    """A text as an image of one row: exporters fix the length of a text in ``max_pool1d``."""
    flat = x.flatten(0, -2 - axes)
    return flat.unsqueeze(-2) if axes == 1 else flat


def _window(axes: int) -> tuple[tuple[int, int], int, tuple[int, int]]:
    """Kernel, stride and padding."""
    return ((1, 3), 1, (0, 1)) if axes == 1 else ((3, 3), 1, (1, 1))
