"""The operations of a header's blocks (METHOD 7): convolutions, and those without weights."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from acme_fleet.messages.header_plan import KERNELS, OPERATIONS
from acme_fleet.models.padding import average_pool, max_pool, past_average, past_max


@runtime_checkable
class PassThrough(Protocol):
    """An operation without weights; it keeps channels and size."""

    def __call__(
        self,
        x: Float[Tensor, "*map"],
        mask: Bool[Tensor, "*#map"] | None,
        axes: Literal[1, 2],
        /,
    ) -> Float[Tensor, "*map"]:
        """Apply it.

        Args:
            x: the grid is the last ``axes`` axes.
            mask: real positions, see :mod:`acme_fleet.models.padding`.
            axes: 2 for a patch grid, 1 for a token sequence.
        """
        ...


def _identity(
    x: Float[Tensor, "*map"], mask: Bool[Tensor, "*#map"] | None, axes: Literal[1, 2]
) -> Float[Tensor, "*map"]:
    return x


PASS_THROUGH: dict[str, PassThrough] = {
    "identity": _identity,
    "avg_pool": average_pool,
    "max_pool": max_pool,
}
"""Operations without weights, by name."""


class Causal(NamedTuple):
    """An operation of causal headers.

    Attributes:
        apply: leaves out positions that are not real, before a text or behind it.
        reach: positions before its own that a position sees.
    """

    apply: PassThrough
    reach: int


CAUSAL: dict[str, Causal] = {
    "identity": Causal(_identity, 0),
    "avg_pool": Causal(past_average, 2),
    "max_pool": Causal(past_max, 2),
}
"""Those of causal headers, where a position sees itself and positions before it alone."""


def add_operation(name: str, operation: int | PassThrough, causal: Causal | None = None) -> None:
    """Let headers have another operation, from here on in this process.

    Every host of a fleet needs it, and whoever loads a header that has it.

    Args:
        name: as it stands in a header's plan.
        operation: the kernel of a convolution of stride 1, or a function without weights.
        causal: the function's form for causal headers, which cannot have it without one.
    """
    if isinstance(operation, int):
        KERNELS[name] = operation
    else:
        PASS_THROUGH[name] = operation
        if causal is not None:
            CAUSAL[name] = causal
    OPERATIONS.append(name)
