"""Headers made by hand, to measure a searched one against at equal size.

Each reads the same features as a searched header and ends like it: the pooled token's linear
classifier, which starts as the reference's, plus a linear classifier on what its own layers found.
The fourth, the linear classifier alone, is :class:`acme_fleet.models.header.module.LinearHeader`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.cost.size import parameter_count, shapes_of
from acme_fleet.models.header.module import answering_as, initial_tensors
from acme_fleet.models.padding import clear_padding, mean_over_positions

HandMade = Literal["mlp", "cnn", "mixer"]
HAND_MADE: tuple[HandMade, ...] = get_args(HandMade)
_WIDEST = 4096


class _HandMadeHeader(nn.Module):
    """The base of the three: the classifiers."""

    def __init__(self, pooled: int, classes: int, width: int) -> None:
        super().__init__()
        self.classifier = nn.ModuleDict(
            {
                "pooled": nn.Linear(pooled, classes),
                "branch": nn.Linear(width, classes, bias=False),
            }
        )

    def forward(
        self,
        last: Float[Tensor, "batch hidden *grid"],
        penultimate: Float[Tensor, "batch hidden *grid"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Logits; see :class:`Header` for the arguments."""
        found = self.branch(last, penultimate, pooled, mask)
        return self.classifier["pooled"](pooled) + self.classifier["branch"](found)

    def branch(
        self,
        last: Float[Tensor, "batch hidden *grid"],
        penultimate: Float[Tensor, "batch hidden *grid"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None,
    ) -> Float[Tensor, "batch width"]:
        """The output of the header's own layers."""
        raise NotImplementedError


class MLPHeader(_HandMadeHeader):
    """One hidden layer on the pooled token and the mean of either map."""

    def __init__(self, hidden: int, pooled: int, classes: int, width: int) -> None:
        super().__init__(pooled, classes, width)
        self.layers = nn.ModuleDict({"mix": nn.Linear(pooled + 2 * hidden, width)})

    def branch(
        self,
        last: Float[Tensor, "batch hidden *grid"],
        penultimate: Float[Tensor, "batch hidden *grid"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None,
    ) -> Float[Tensor, "batch width"]:
        """See the base class."""
        axes = 1 if last.ndim == 3 else 2
        means = [mean_over_positions(features, mask, axes) for features in (last, penultimate)]
        return F.gelu(self.layers["mix"](torch.cat([pooled, *means], dim=1)))


class CNNHeader(_HandMadeHeader):
    """A 1×1 convolution on both maps, two convolutions of kernel 3, the mean."""

    def __init__(
        self, hidden: int, pooled: int, classes: int, width: int, axes: Literal[1, 2]
    ) -> None:
        super().__init__(pooled, classes, width)
        convolution = nn.Conv1d if axes == 1 else nn.Conv2d
        self.layers = nn.ModuleDict(
            {
                "reduce": convolution(2 * hidden, width, 1),
                "first": convolution(width, width, 3, padding=1),
                "second": convolution(width, width, 3, padding=1),
            }
        )

    def branch(
        self,
        last: Float[Tensor, "batch hidden *grid"],
        penultimate: Float[Tensor, "batch hidden *grid"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None,
    ) -> Float[Tensor, "batch width"]:
        """See the base class."""
        x = torch.cat([last, penultimate], dim=1)
        for layer in self.layers.values():
            x = clear_padding(F.relu(layer(x)), mask)
        return mean_over_positions(x, mask, 1 if x.ndim == 3 else 2)


class MixerHeader(_HandMadeHeader):
    """One MLP-Mixer layer (Tolstikhin et al., 2021) on both maps: over tokens, over channels.

    It mixes at most ``tokens`` positions. A shorter text is mixed as if zeros stood behind it, so
    its padding does not matter; a text with more positions is refused.
    """

    def __init__(self, hidden: int, pooled: int, classes: int, width: int, tokens: int) -> None:
        super().__init__(pooled, classes, width)
        self.tokens = tokens
        self.layers = nn.ModuleDict(
            {
                "reduce": nn.Linear(2 * hidden, width),
                "tokens_in": nn.Linear(tokens, tokens),
                "tokens_out": nn.Linear(tokens, tokens),
                "channels_in": nn.Linear(width, 2 * width),
                "channels_out": nn.Linear(2 * width, width),
            }
        )

    def branch(
        self,
        last: Float[Tensor, "batch hidden *grid"],
        penultimate: Float[Tensor, "batch hidden *grid"],
        pooled: Float[Tensor, "batch pooled"],
        mask: Bool[Tensor, "batch 1 tokens"] | None,
    ) -> Float[Tensor, "batch width"]:
        """See the base class.

        Raises:
            ValueError: if there are more positions than it was made for.
        """
        both = torch.cat([last, penultimate], dim=1).flatten(2).transpose(1, 2)
        if both.shape[1] > self.tokens:
            raise ValueError(f"{both.shape[1]} positions; this header mixes {self.tokens} at most")
        places = None if mask is None else mask.transpose(1, 2)
        x = clear_padding(self.layers["reduce"](both), places)
        x = x + self._over_tokens(_normalized(x).transpose(1, 2)).transpose(1, 2)
        x = x + self._over_channels(_normalized(x))
        if mask is None:
            return x.mean(dim=1)
        return mean_over_positions(clear_padding(x, places).transpose(1, 2), mask, 1)

    def _over_tokens(
        self, x: Float[Tensor, "batch width tokens"]
    ) -> Float[Tensor, "batch width tokens"]:
        """Leaves out the weights of positions beyond the text: they would meet zeros."""
        count = x.shape[2]
        enter, leave = (self.get_parameter(f"layers.tokens_{way}.weight") for way in ("in", "out"))
        before, after = (self.get_parameter(f"layers.tokens_{way}.bias") for way in ("in", "out"))
        mixed = F.gelu(F.linear(x, enter[:, :count], before))
        return F.linear(mixed, leave[:count], after[:count])

    def _over_channels(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        return self.layers["channels_out"](F.gelu(self.layers["channels_in"](x)))


def _normalized(x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
    return F.layer_norm(x, x.shape[-1:])


def hand_made(
    kind: HandMade,
    classifier: Mapping[str, Tensor],
    maps: tuple[int, ...],
    params: int,
    generator: torch.Generator,
) -> nn.Module | None:
    """A hand-made header, as wide as its budget allows.

    Args:
        kind: which one.
        classifier: θ0^H, ``weight`` and ``bias``, from which it starts.
        maps: shape of a feature map without the batch: ``(hidden, rows, columns)`` or
            ``(hidden, tokens)``.
        params: the most parameters that it may have.
        generator: draws its weights.

    Returns:
        The untrained header, or none if not even the narrowest is within the budget.
    """
    classes, pooled = classifier["weight"].shape
    hidden, *grid = maps
    axes: Literal[1, 2] = 2 if len(grid) == 2 else 1
    sizes = hidden, pooled, classes
    makers: dict[str, Callable[[int], nn.Module]] = {
        "mlp": lambda width: MLPHeader(*sizes, width),
        "cnn": lambda width: CNNHeader(*sizes, width, axes),
        "mixer": lambda width: MixerHeader(*sizes, width, math.prod(grid)),
    }
    header = _widest(makers[kind], params)
    if header is None:
        return None
    tensors = answering_as(initial_tensors(shapes_of(header), generator), classifier)
    header.load_state_dict(tensors, assign=True)
    return header.requires_grad_(True)


def _widest(make: Callable[[int], nn.Module], params: int) -> nn.Module | None:
    """By bisection; a module's parameters grow with its width. Nothing is allocated."""
    fitting, too_wide = 0, _WIDEST
    with torch.device("meta"):
        while too_wide - fitting > 1:
            width = (fitting + too_wide) // 2
            if parameter_count(shapes_of(make(width))) <= params:
                fitting = width
            else:
                too_wide = width
        return make(fitting) if fitting else None
