"""Algorithm 1, lines 5-18, for all parts of the clusters: who gets which candidate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from acme_fleet.cloud.objectives import Grid, Quality
from acme_fleet.config.backbone import Selection
from acme_fleet.config.devices import Part
from acme_fleet.cost.energy import worst_energy_j
from acme_fleet.cost.variant import Variant
from acme_fleet.errors import FleetError
from acme_fleet.selection.choice import Match, executed_sizes, match
from acme_fleet.selection.finalists import choose_recovered, finalists


@dataclass(frozen=True)
class Candidates:
    """Everything about the candidates that does not depend on who asks.

    Attributes:
        grid: what each is.
        quality: loss and score of each.
        sizes: bytes as shipped with the smallest header.
        tokens: p of Eq. 2.
        recovered: loss and score after a share of the recovery, NaN of candidates that were not
            tried; none if none was.
    """

    grid: Grid
    quality: Quality
    sizes: Int[np.ndarray, " candidates"]
    tokens: int
    recovered: Quality | None = None


@dataclass(frozen=True, eq=False)
class ClusterChoice:
    """The candidates and the choice for some parts of a cluster.

    Attributes:
        edge: the cluster's edge server.
        parts: their places in its profile; all choose the same.
        storage_bytes: min C_n over them. The rest is of the part with that limit.
        objectives: loss, energy in J, size in bytes.
        scores: on the data of the losses; None without labels.
        estimated: true for candidates whose loss and score are estimates; None has none.
        selection: the front and the choice (Eq. 11-13).
        recovered: see :class:`Candidates`.
    """

    edge: str
    parts: list[int]
    storage_bytes: int
    objectives: Float[np.ndarray, "candidates 3"]
    scores: Float[np.ndarray, " candidates"] | None
    estimated: Bool[np.ndarray, " candidates"] | None
    selection: Match
    recovered: Quality | None = None


def choose_for(
    candidates: Candidates,
    clusters: Mapping[str, Sequence[Part]],
    settings: Selection,
    kept: Mapping[tuple[str, int], Variant] | None = None,
) -> list[ClusterChoice]:
    """A choice for each part; parts of a cluster that choose the same candidate are together.

    A part, by its edge server and number, whose devices have a candidate already keeps what is in
    ``kept``, as long as it fits. Candidates with a loss, energy or size that is no finite number
    are left out.

    Raises:
        FleetError: if no candidate is left, or none fits a part.
    """
    choices = []
    for edge, parts in clusters.items():
        alike: dict[int, ClusterChoice] = {}
        for number in sorted(range(len(parts)), key=lambda number: parts[number].storage_bytes):
            found = _choice(candidates, edge, parts[number], settings)
            if (variant := (kept or {}).get((edge, number))) in candidates.grid.variants:
                found = _keeping(found, candidates.grid.variants.index(variant))
            alike.setdefault(found.selection.chosen, found).parts.append(number)
        choices += alike.values()
    return choices


def _keeping(found: ClusterChoice, row: int) -> ClusterChoice:
    """The choice with another candidate, if that fits."""
    if row not in found.selection.feasible:
        return found
    return replace(found, selection=replace(found.selection, chosen=row))


def shapes_to_try(
    candidates: Candidates, clusters: Mapping[str, Sequence[Part]], settings: Selection
) -> dict[Variant, list[int]]:
    """Shapes of all parts' finalists, the whole reference among them where it fits (METHOD 13).

    Returns:
        The rows of each shape in the grid, one for each precision.
    """
    variants, whole = candidates.grid.variants, Variant.whole(int(candidates.grid.depths.max()))
    before, shapes = replace(candidates, recovered=None), set[Variant]()
    for edge, parts in clusters.items():
        for part in parts:
            found = _choice(before, edge, part, settings)
            match, count = found.selection, settings.finalists
            shapes |= {*finalists(found.objectives, variants, match, count, settings.rule)}
            shapes |= {whole} & {variants[row].trained for row in match.feasible}
    rows: defaultdict[Variant, list[int]] = defaultdict(list)
    for row, variant in enumerate(variants):
        if variant.trained in shapes:
            rows[variant.trained].append(row)
    return rows


def _choice(candidates: Candidates, edge: str, part: Part, settings: Selection) -> ClusterChoice:
    grid, quality = candidates.grid, candidates.quality
    shares = grid.work, grid.depths, candidates.tokens, grid.precisions
    energies = worst_energy_j(part.energies, *shares)
    objectives = np.column_stack([quality.losses, energies, candidates.sizes])
    usable = np.flatnonzero(np.isfinite(objectives).all(axis=1))
    if not usable.size:
        raise FleetError(
            f"cluster {edge!r}: no candidate has a finite loss, energy and size: training diverged"
        )
    found = match(
        objectives[usable],
        executed_sizes(candidates.sizes, grid.precisions, part.precisions, edge)[usable],
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
    if (tried := candidates.recovered) is not None:
        window, rule = settings.performance_window, settings.rule
        selection = choose_recovered(objectives, selection, tried.losses, window, rule)
    return ClusterChoice(
        edge,
        [],
        part.storage_bytes,
        objectives,
        quality.scores,
        quality.estimated,
        selection,
        candidates.recovered,
    )
