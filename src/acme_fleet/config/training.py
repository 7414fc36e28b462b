"""Settings of a training loop."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from acme_fleet.config.base import Settings

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Training(Settings):
    """Optimisation of one stage: AdamW, linear warm-up, cosine decay."""

    epochs: PositiveInt
    """Passes over the training data."""
    batch_size: PositiveInt = 64
    """Samples in one step."""
    parts: PositiveInt = 1
    """Parts of a step's samples that are computed one behind the other: less memory, the same
    gradient. Where many small models train together, or in pairs, a step has one part."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of AdamW after the warm-up."""
    weight_decay: NonNegativeFloat = 0.05
    """Weight decay of AdamW."""
