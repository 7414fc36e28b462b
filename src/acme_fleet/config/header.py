"""Settings of phase 2-1: the space of headers and the search in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from acme_fleet.config.base import Settings
from acme_fleet.config.training import Training


class Header(Settings):
    """The header's space: B blocks to a cell, U cells, and the channels of every operation."""

    blocks: Annotated[int, Field(ge=1, le=8)] = 2
    cells: Annotated[int, Field(ge=1, le=4)] = 1
    channels: PositiveInt = 24


StrategyName = Literal["random", "evolution", "controller"]


class Search(Settings):
    """The edge's search (Eq. 15) and the fine-tuning of what it chose.

    ``strategy`` says who proposes headers; with ``rivals`` the other strategies, on the same
    budget, and hand-made headers of the same size are trained too and reported. ``population``
    and ``tournament`` belong to evolution, the controller's rate and the entropy's weight to the
    controller. A backbone with a learning rate trains along. The chosen header is fine-tuned from
    the ``shared`` weights that it was searched with, or from a ``fresh`` start. After
    ``time_limit_s`` the best so far is taken: then the machine's speed decides too, and not the
    seed alone.
    """

    strategy: StrategyName = "random"
    rivals: bool = True
    steps: PositiveInt = 60
    time_limit_s: PositiveFloat | None = None
    fine_tune_from: Literal["shared", "fresh"] = "fresh"
    children_per_step: PositiveInt = 4
    weight_updates_per_step: PositiveInt = 4
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 3e-3
    backbone_learning_rate: NonNegativeFloat = 0.0
    controller_learning_rate: PositiveFloat = 5e-3
    entropy_weight: NonNegativeFloat = 1e-2
    population: Annotated[int, Field(ge=2)] = 32
    tournament: PositiveInt = 8
    final_samples: PositiveInt = 24
    fine_tuning: Training = Training(epochs=30, batch_size=32, learning_rate=2e-3)
