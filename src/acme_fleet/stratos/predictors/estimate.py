"""Values with unit, error bar and source, for many servers at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

MEASURED, PREDICTED, NOT_CALIBRATED = "measured", "predicted", "not calibrated"


@dataclass(frozen=True)
class Estimate:
    """Predictions, of any one shape.

    Attributes:
        value: in ``unit``.
        error: relative; the bar is from value ÷ (1 + error) to value × (1 + error).
        calibrated: true where the constants were measured on such a machine.
        unit: of the values.
    """

    value: Float[np.ndarray, "*candidates"]
    error: Float[np.ndarray, "*candidates"]
    calibrated: Bool[np.ndarray, "*candidates"]
    unit: str

    @property
    def low(self) -> Float[np.ndarray, "*candidates"]:
        """Lower end of the error bar."""
        return self.value / (1 + self.error)

    @property
    def high(self) -> Float[np.ndarray, "*candidates"]:
        """Upper end of the error bar."""
        return self.value * (1 + self.error)

    def source(self, *place: int) -> str:
        """The kind of one prediction: ``predicted`` or ``not calibrated``."""
        return PREDICTED if self.calibrated[place] else NOT_CALIBRATED

    def scaled(self, factor: Float[np.ndarray, "*candidates"] | float, unit: str) -> Estimate:
        """The same times an exact factor, such as a price."""
        return Estimate(self.value * factor, self.error, self.calibrated, unit)

    def plus(self, exact: Float[np.ndarray, "*candidates"] | float) -> Estimate:
        """The same plus an exact number; the absolute error of the upper end stays."""
        total = self.value + exact
        error = np.divide(self.value * self.error, total, out=np.zeros_like(total), where=total > 0)
        return Estimate(total, error, self.calibrated, self.unit)


def stacked(estimates: list[Estimate]) -> Estimate:
    """Estimates of one unit as one, with a new first axis."""
    return Estimate(
        np.stack([each.value for each in estimates]),
        np.stack([each.error for each in estimates]),
        np.stack([each.calibrated for each in estimates]),
        estimates[0].unit,
    )
