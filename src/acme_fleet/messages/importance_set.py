"""Importance of a header's neurons: one set of numbers, with its order and its algebra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import check_shapes
from acme_fleet.messages.peer_weights import PeerWeights, weighted_sums


@dataclass(frozen=True, eq=False)
class ImportanceSet:
    """One number for each channel of each layer (Q of Eq. 17-18, summed per neuron).

    Immutable: no operation changes a set, and nobody writes to its tensors. Two sets can be added,
    mixed or compared if their layers are the same, in the same order.

    Attributes:
        layers: names, in the order in which the header's plan has them.
        values: for each layer its numbers, shape ``(channels,)``.

    Raises:
        ValueError: if there is no layer, or a layer has two names or two have one.
    """

    layers: tuple[str, ...]
    values: tuple[Float[Tensor, " _"], ...]

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.values):
            raise ValueError(f"{len(self.values)} vectors for {len(self.layers)} layers")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("an importance set names a layer twice")

    # --- to and from other forms ---

    @staticmethod
    def of(
        by_layer: Mapping[str, Float[Tensor, " _"]], layers: Iterable[str] | None = None
    ) -> ImportanceSet:
        """A set from a mapping, as messages and files hold it.

        Args:
            by_layer: numbers of each layer.
            layers: their order; none is that of the mapping. What comes from a file or a message
                has an arbitrary order, so there it must be given.

        Raises:
            ValueError: if the mapping has other layers.
        """
        names = tuple(by_layer if layers is None else layers)
        if set(names) != by_layer.keys():
            raise ValueError(f"importance of {sorted(by_layer)}, expected {sorted(names)}")
        return ImportanceSet(names, tuple(by_layer[name] for name in names))

    @staticmethod
    def checked(
        by_layer: Mapping[str, Tensor], channels: Mapping[str, int], what: str
    ) -> ImportanceSet:
        """A set that arrived in a message.

        Args:
            by_layer: numbers of each layer, as they came.
            channels: of each layer, in the order that the set gets.
            what: the subject of an error.

        Raises:
            ProtocolError: if names, shapes, types or signs are wrong, or all are zero.
        """
        shapes = {name: (size,) for name, size in channels.items()}
        check_shapes(by_layer, shapes, what, torch.float32)
        checked = ImportanceSet.of(by_layer, channels)
        total = checked.total()
        if any(bool((values < 0).any()) for values in checked.values) or total <= 0:
            raise ProtocolError(f"{what} must be non-negative and not all zero (sum {total:g})")
        return checked

    def by_layer(self) -> dict[str, Float[Tensor, " _"]]:
        """The plain mapping that messages and files hold."""
        return dict(zip(self.layers, self.values, strict=True))

    def __getitem__(self, layer: str) -> Float[Tensor, " _"]:
        """A layer's numbers.

        Raises:
            KeyError: if there is no such layer.
        """
        return self.by_layer()[layer]

    def flat(self) -> Float[Tensor, " neurons"]:
        """All numbers as one vector, layer after layer."""
        return torch.cat(self.values)

    def unflatten(self, vector: Float[Tensor, " neurons"]) -> ImportanceSet:
        """The set of this form whose :meth:`flat` is ``vector``.

        Raises:
            ValueError: if the vector has another length.
        """
        sizes = [len(values) for values in self.values]
        if len(vector) != sum(sizes):
            raise ValueError(f"{len(vector)} numbers for {sum(sizes)} neurons")
        return ImportanceSet(self.layers, tuple(vector.split(sizes)))

    @staticmethod
    def zeros(channels: Mapping[str, int]) -> ImportanceSet:
        """The set of zeros.

        Args:
            channels: of each layer.
        """
        return ImportanceSet.of({name: torch.zeros(size) for name, size in channels.items()})

    # --- algebra ---

    def __add__(self, other: ImportanceSet) -> ImportanceSet:
        """The sum, number by number."""
        self._same_form(other)
        pairs = zip(self.values, other.values, strict=True)
        return ImportanceSet(self.layers, tuple(one + another for one, another in pairs))

    def __mul__(self, factor: float) -> ImportanceSet:
        """Every number times ``factor``."""
        return ImportanceSet(self.layers, tuple(values * factor for values in self.values))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> ImportanceSet:
        """Every number divided by ``divisor``, which is not zero."""
        return ImportanceSet(self.layers, tuple(values / divisor for values in self.values))

    def total(self) -> float:
        """The sum of all numbers, in double precision: it may exceed what their own can hold."""
        return sum(float(values.double().sum()) for values in self.values)

    def normalized(self) -> ImportanceSet:
        """The set scaled to sum 1, so that no device's loss scale outvotes the others.

        Raises:
            ValueError: if the sum is not above zero.
        """
        total = self.total()
        if not total > 0:
            raise ValueError(f"importance of sum {total:g} cannot be scaled to sum 1")
        scaled = tuple((values.double() / total).to(values.dtype) for values in self.values)
        return ImportanceSet(self.layers, scaled)

    @staticmethod
    def mixtures(sets: Sequence[ImportanceSet], weights: PeerWeights) -> list[ImportanceSet]:
        """For each receiver n the weighted sum Σ_i w_ni Q_i of all sets.

        Args:
            sets: one or more, of one form; the columns of ``weights``.
            weights: row = receiver.
        """
        first = sets[0]
        for other in sets[1:]:
            first._same_form(other)
        mixed: list[Float[Tensor, "receivers _"]] = []
        for own in zip(*(each.values for each in sets), strict=True):
            mixed.append(weighted_sums(weights, torch.stack(own)))
        return [ImportanceSet(first.layers, values) for values in zip(*mixed, strict=True)]

    # --- comparison ---

    def finite(self) -> bool:
        """True if every number is finite."""
        return all(bool(values.isfinite().all()) for values in self.values)

    def any(self) -> bool:
        """True if a number is not zero."""
        return any(bool(values.any()) for values in self.values)

    def __eq__(self, other: object) -> bool:
        """Equal sets have the same layers in the same order, and equal numbers of equal type."""
        if not isinstance(other, ImportanceSet) or self.layers != other.layers:
            return False
        pairs = zip(self.values, other.values, strict=True)
        return all(one.dtype == two.dtype and torch.equal(one, two) for one, two in pairs)

    def is_close(self, other: ImportanceSet, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
        """True if all numbers are equal up to rounding."""
        self._same_form(other)
        pairs = zip(self.values, other.values, strict=True)
        return all(torch.allclose(one, another, rtol, atol) for one, another in pairs)

    def _same_form(self, other: ImportanceSet) -> None:
        if self.layers != other.layers or any(
            one.shape != another.shape
            for one, another in zip(self.values, other.values, strict=True)
        ):
            raise ValueError(
                f"importance sets of different forms: {self._form()} and {other._form()}"
            )

    def _form(self) -> str:
        return ", ".join(f"{name} ({len(v)})" for name, v in self.by_layer().items())
