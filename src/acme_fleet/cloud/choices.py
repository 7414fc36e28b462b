"""Algorithm 1, lines 5-18, for all parts of the clusters: who gets which candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from acme_fleet.cloud.objectives import Grid, Quality
from acme_fleet.config.backbone import Selection
from acme_fleet.config.devices import Part
from acme_fleet.cost.energy import worst_energy_j
from acme_fleet.errors import FleetError
from acme_fleet.selection.choice import Match, match


@dataclass(frozen=True)
class Candidates:
    """Everything about the candidates that does not depend on who asks.

    Attributes:
        grid: w and d of each.
        quality: loss and score of each.
        sizes: bytes as shipped with the smallest header.
        tokens: p of Eq. 2.
    """

    grid: Grid
    quality: Quality
    sizes: Int[np.ndarray, " candidates"]
    tokens: int


@dataclass(frozen=True, eq=False)
class ClusterChoice:
    """The candidates and the choice for some parts of a cluster.

    Attributes:
        edge: the cluster's edge server.
        parts: their places in its profile; all choose the same.
        storage_bytes: min C_n over them. The rest is of the part with that limit.
        objectives: loss, energy in J, size in bytes.
        scores: on the data of the losses; None without labels.
        selection: the front and the choice (Eq. 11-13).
    """

    edge: str
    parts: list[int]
    storage_bytes: int
    objectives: Float[np.ndarray, "candidates 3"]
    scores: Float[np.ndarray, " candidates"] | None
    selection: Match


def choose_for(
    candidates: Candidates, clusters: Mapping[str, Sequence[Part]], settings: Selection
) -> list[ClusterChoice]:
    """A choice for each part; parts of a cluster that choose the same candidate are together.

    Candidates with a loss, energy or size that is no finite number are left out.

    Raises:
        FleetError: if no candidate is left, or none fits a part.
    """
    choices = []
    for edge, parts in clusters.items():
        alike: dict[int, ClusterChoice] = {}
        for number in sorted(range(len(parts)), key=lambda number: parts[number].storage_bytes):
            found = _choice(candidates, edge, parts[number], settings)
            alike.setdefault(found.selection.chosen, found).parts.append(number)
        choices += alike.values()
    return choices


def _choice(candidates: Candidates, edge: str, part: Part, settings: Selection) -> ClusterChoice:
    grid, quality = candidates.grid, candidates.quality
    energies = worst_energy_j(part.energies, grid.widths, grid.depths, candidates.tokens)
    objectives = np.column_stack([quality.losses, energies, candidates.sizes])
    usable = np.flatnonzero(np.isfinite(objectives).all(axis=1))
    if not usable.size:
        raise FleetError(
            f"cluster {edge!r}: no candidate has a finite loss, energy and size: training diverged"
        )
    found = match(
        objectives[usable],
        candidates.sizes[usable],
        float(part.storage_bytes),
        settings.performance_window,
        cluster=edge,
        rule=settings.rule,
    )
    selection = Match(
        feasible=usable[found.feasible],
        coordinates=found.coordinates,
        front=usable[found.front],
        chosen=int(usable[found.chosen]),
    )
    return ClusterChoice(edge, [], part.storage_bytes, objectives, quality.scores, selection)
