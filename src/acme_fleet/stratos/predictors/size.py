"""Sizes of a language model, from which everything is predicted."""

from __future__ import annotations

from dataclasses import dataclass

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import GROUP

_BYTES: dict[Precision, float] = {
    "float32": 4.0,
    "float16": 2.0,
    "int8": 1.0,
    "int4": 0.5 + 2.0 / GROUP,
}


@dataclass(frozen=True)
class ModelSize:
    """A decoder's sizes.

    Attributes:
        parameters: N, all of them, a shared word table once.
        products: parameters in matrix products: all but a word table that the output does not
            share. layers: L. hidden: size of a token's vector. keys: numbers of one key, of all key
            heads of a layer. neurons: of a layer's MLP. vocabulary: tokens. context: most tokens.
    """

    parameters: int
    products: int
    layers: int
    hidden: int
    keys: int
    neurons: int
    vocabulary: int
    context: int


def weights_bytes(size: ModelSize, precision: Precision) -> float:
    """Bytes of the weights: N times the bytes of a number, with int4's scales.

    An estimate: norms, biases and int8's scales, which stay larger, are left out. ACME's own cuts
    have an exact size in its place.
    """
    return size.parameters * _BYTES[precision]
