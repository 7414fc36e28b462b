"""Settings of phase 2-1: the space of headers and the search in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from acme_fleet.config.base import Settings
from acme_fleet.config.training import Training


class Header(Settings):
    """The space of headers."""

    blocks: Annotated[int, Field(ge=1, le=8)] = 2
    """B, blocks of a cell."""
    cells: Annotated[int, Field(ge=1, le=4)] = 1
    """U, cells of a header."""
    channels: PositiveInt = 24
    """Channels of every operation."""
    more_operations: list[Literal["separable3", "separable5", "attention"]] = []
    """Operations that a search proposes beside the paper's seven: depthwise-separable convolutions
    and pooling by attention."""

    @field_validator("more_operations")
    @classmethod
    def _named_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("an operation is named twice")
        return value


StrategyName = Literal["random", "evolution", "controller"]


class Search(Settings):
    """The edge's search (Eq. 15), and the fine-tuning of the chosen header."""

    strategy: StrategyName = "random"
    """Strategy that proposes headers."""
    when: Literal["useful", "always"] = "useful"
    """``useful``: search only where headers made by hand show on the edge's data that more than a
    linear header gains something; else the best of these ships. A backbone that trains along is
    always searched for."""
    rivals: bool = True
    """Also train and report the other strategies, on the same budget, and hand-made headers."""
    steps: PositiveInt = 60
    """Steps of the search; each updates the shared weights and then the strategy."""
    time_limit_s: PositiveFloat | None = None
    """Seconds after which the best header so far is taken (not reproducible); none: no limit."""
    fine_tune_from: Literal["shared", "fresh"] = "fresh"
    """Start of fine-tuning: the ``shared`` weights of the search, or ``fresh`` ones."""
    children_per_step: PositiveInt = 4
    """M of Eq. 15, headers proposed for each update."""
    weight_updates_per_step: PositiveInt = 4
    """Updates of the shared weights before each update of the strategy."""
    batch_size: PositiveInt = 32
    """Samples of each update of the shared weights."""
    learning_rate: PositiveFloat = 3e-3
    """Learning rate of the shared weights."""
    backbone_learning_rate: NonNegativeFloat = 0.0
    """Learning rate of the backbone in the search; 0 keeps it frozen."""
    controller_learning_rate: PositiveFloat = 5e-3
    """Learning rate of the strategy ``controller``."""
    entropy_weight: NonNegativeFloat = 1e-2
    """Weight of the entropy in the loss of ``controller``: more explores more."""
    population: Annotated[int, Field(ge=2)] = 32
    """Headers that ``evolution`` keeps, the newest ones."""
    tournament: PositiveInt = 8
    """Headers of which ``evolution`` takes the best as a parent."""
    final_samples: PositiveInt = 24
    """Headers that are compared at the end, on samples not used before."""
    fine_tuning: Training = Training(epochs=30, batch_size=32, learning_rate=2e-3)
    """Training of the chosen header."""
