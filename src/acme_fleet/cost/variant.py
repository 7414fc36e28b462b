"""Identity of a candidate δ(θ0, w, d)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from acme_fleet.config.devices import Precision


@dataclass(frozen=True)
class Variant:
    """A backbone by its shares of the reference. Width has two parts: w, and the hidden size.

    Attributes:
        width: w, the share of each layer's heads and neurons.
        depth: d, the number of layers.
        hidden: the share of the hidden size, the same in all layers.
        precision: of the weights as they are stored.
    """

    width: float
    depth: int
    hidden: float = 1.0
    precision: Precision = "float32"

    @staticmethod
    def whole(layers: int) -> Variant:
        """The reference itself."""
        return Variant(1.0, layers)

    def at(self, precision: Precision) -> Variant:
        """The same weights at another precision."""
        return replace(self, precision=precision)

    @property
    def trained(self) -> Variant:
        """The variant that it is rounded from: training is in float32."""
        return self.at("float32")

    def is_within(self, other: Variant) -> bool:
        """True if no part of it is larger."""
        parts = zip(self._parts, other._parts, strict=True)
        return all(mine <= theirs for mine, theirs in parts)

    @property
    def _parts(self) -> tuple[float, int, float]:
        return self.width, self.depth, self.hidden

    @property
    def work(self) -> float:
        """The share of a layer's multiplications, w of Eq. 2.

        Each matrix of a layer has one side along the hidden size, and the other along heads or
        neurons.
        """
        return self.width * self.hidden

    @property
    def brief(self) -> str:
        """For a column with the title ``w, d``."""
        return f"{self.width:g}, {self.depth}" + self._cut(", h {:g}")

    @property
    def name(self) -> str:
        """For files and stages."""
        return f"{self.width:g}-{self.depth}" + self._cut("-h{:g}")

    def __str__(self) -> str:
        """For a sentence."""
        return f"w {self.width:g}, d {self.depth}" + self._cut(", h {:g}")

    def _cut(self, text: str) -> str:
        cut = "" if self.hidden == 1 else text.format(self.hidden)
        if self.precision == "float32":
            return cut
        return f"{cut}{'-' if text[0] == '-' else ', '}{self.precision}"
