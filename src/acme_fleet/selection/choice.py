"""The candidate that a cluster gets: the nearest on the front to the ideal point (Eq. 13)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real

from acme_fleet.config.backbone import Rule
from acme_fleet.config.devices import Precision
from acme_fleet.errors import FleetError
from acme_fleet.selection.front import checked, exact_front, front, grid_coordinates, worst
from acme_fleet.selection.ideal import shares_to_ideal


def distances(
    objectives: Float[np.ndarray, "candidates objectives"],
    coordinates: Int[np.ndarray, "candidates objectives"],
    rule: Rule,
    scale: Float[np.ndarray, " objectives"],
) -> Float[np.ndarray, " candidates"]:
    """Σ_l ‖Ψ^l - Ψ^l(ideal)‖₂ (Eq. 13).

    The norm of one number is its absolute value, so the sum as printed is the city-block
    distance. ``"literal"`` takes it in grid coordinates. ``"nearest"``, the default, is a named
    deviation: it takes it in the objectives themselves, as shares of ``scale``. When the window
    is wide against the losses, K is small, most coordinates are equal, and the literal rule
    returns the most accurate candidate, whatever it costs.

    Args:
        objectives: the candidates that fit.
        coordinates: Ψ.
        rule: the distance.
        scale: what counts as 1 in each objective.
    """
    if rule == "literal":
        return (coordinates - 1.0).sum(axis=1)
    return shares_to_ideal(objectives, objectives.min(axis=0), scale).sum(axis=1)


def choose(
    objectives: Float[np.ndarray, "candidates objectives"],
    performance_window: float,
    rule: Rule = "nearest",
    scale: Float[np.ndarray, " objectives"] | None = None,
) -> int:
    """The candidate nearest to the ideal point in the best performer's interval (Eq. 13).

    Candidates of the front with Ψ^1 = Ψ^1(best performer) are compared by ``distances``; ties go
    to the smaller loss, then to the smaller size, then to the first in the table.

    Args:
        objectives: the candidates that fit.
        performance_window: γ_p, the loss that may be given up.
        scale: of rule ``"nearest"``; by default each objective's worst value in the table.

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    objectives = checked(objectives)
    coordinates = grid_coordinates(objectives, performance_window)
    # The grid removes nothing from the first interval, and nothing outside dominates its members.
    near = np.flatnonzero(coordinates[:, 0] == 1)
    near = near[exact_front(objectives[near])]
    scale = worst(objectives) if scale is None else scale
    far = np.round(distances(objectives, coordinates, rule, scale)[near], 12)
    return int(near[np.lexsort((objectives[near, -1], objectives[near, 0], far))[0]])


@dataclass(frozen=True)
class Match:
    """Algorithm 1's result for one cluster. Indices are rows of the whole table."""

    feasible: Int[np.ndarray, " feasible"]
    """Candidates that fit, ascending."""
    coordinates: Int[np.ndarray, "feasible objectives"]
    """Ψ of those that fit."""
    front: Int[np.ndarray, " front"]
    """The front among those that fit, ascending."""
    chosen: int


def executed_sizes(
    sizes: Real[np.ndarray, " candidates"],
    precisions: Sequence[Precision],
    executed: Collection[Precision],
    cluster: str,
) -> Float[np.ndarray, " candidates"]:
    """Sizes for :func:`match`; what a runtime does not execute fits no limit.

    Args:
        sizes: bytes as shipped.
        precisions: of the candidates.
        executed: by the runtimes of all devices.
        cluster: its name, for errors.

    Raises:
        FleetError: if no candidate is executed.
    """
    known = np.isin(precisions, list(executed))
    if not known.any():
        raise FleetError(
            f"cluster {cluster!r}: no candidate has a precision that its devices execute: "
            f"backbone.precisions is {', '.join(dict.fromkeys(precisions))}, and the devices have "
            f"{', '.join(executed) or 'none in common'}"
        )
    return np.where(known, sizes, np.inf)


def fitting(
    sizes: Real[np.ndarray, " candidates"], limit: float, cluster: str
) -> Int[np.ndarray, " feasible"]:
    """Indices of the candidates with size at most ``limit``, ascending (constraint of Eq. 10).

    Raises:
        FleetError: naming the cluster, its limit and the smallest candidate, if none fits.
    """
    indices = np.flatnonzero(sizes <= limit)
    if not indices.size:
        raise FleetError(_nothing_fits(sizes, limit, f"cluster {cluster!r}"))
    return indices


def match(
    objectives: Float[np.ndarray, "candidates objectives"],
    sizes: Real[np.ndarray, " candidates"],
    limit: float | int,
    performance_window: float,
    cluster: str,
    rule: Rule = "nearest",
) -> Match:
    """Backbone customization for one cluster (Algorithm 1, lines 5-18).

    Ideal, worst and K are those of the candidates that fit. The scale of rule ``"nearest"`` is
    that of all candidates, so that a byte weighs the same whatever the limit.

    Args:
        objectives: all candidates.
        sizes: bytes as shipped, see :func:`executed_sizes`. limit: min C_n in bytes; equal fits.
        performance_window: γ_p, the loss that may be given up. cluster: its name, for errors.

    Raises:
        FleetError: naming the cluster, its limit and the smallest candidate, if none fits.
        ValueError: naming the first candidate with an objective that is not finite.
    """
    objectives = checked(objectives)
    feasible = fitting(sizes, limit, cluster)
    subset = objectives[feasible]
    chosen = choose(subset, performance_window, rule, worst(objectives))
    return Match(
        feasible=feasible,
        coordinates=grid_coordinates(subset, performance_window),
        front=feasible[front(subset, performance_window)],
        chosen=int(feasible[chosen]),
    )


def match_many(
    tables: Float[np.ndarray, "types candidates objectives"],
    sizes: Real[np.ndarray, " candidates"],
    limits: Real[np.ndarray, " clusters"],
    types: Int[np.ndarray, " clusters"],
    performance_window: float,
    rule: Rule = "nearest",
) -> Int[np.ndarray, " clusters"]:
    """``match`` for very many clusters: linear in their number, one choice per distinct case.

    With candidates sorted by size, those that fit are a prefix: there are at most as many cases
    as candidates for each type of cluster, and a cluster costs one look-up. A type is an energy
    column. Columns that differ by a factor give the same choices, so clusters whose constants
    are proportional (ΔG, G^β ∝ G and ΔL, ΔD ∝ L, Eq. 2) may share a type.

    Args:
        tables: one table of objectives for each type.
        sizes: bytes as shipped.
        limits: min C_n in bytes of each cluster. types: its table.

    Returns:
        The chosen candidates.

    Raises:
        FleetError: naming the first cluster that nothing fits by its position, and how many.
        ValueError: for a limit that is not a number, or an objective that is not finite.
    """
    if np.isnan(limits).any():
        raise ValueError(f"the limit of cluster {int(np.argmax(np.isnan(limits)))} is not a number")
    scales = [worst(checked(table)) for table in tables]
    order = np.argsort(sizes, kind="stable")
    counts = np.searchsorted(sizes[order], limits, side="right")
    if (counts == 0).any():
        first = int(np.argmin(counts))
        where = f"{int((counts == 0).sum())} of {len(limits)} clusters, first number {first}"
        raise FleetError(_nothing_fits(sizes, float(limits[first]), where))
    cases = np.asarray(types, dtype=np.int64) * (len(sizes) + 1) + counts
    chosen = np.zeros(len(tables) * (len(sizes) + 1), dtype=np.int64)
    for case in np.flatnonzero(np.bincount(cases, minlength=len(chosen))):
        kind, count = divmod(int(case), len(sizes) + 1)
        feasible = np.sort(order[:count])
        choice = choose(tables[kind][feasible], performance_window, rule, scales[kind])
        chosen[case] = feasible[choice]
    return chosen[cases]


def _nothing_fits(sizes: Real[np.ndarray, " candidates"], limit: float | int, where: str) -> str:
    smallest = int(np.argmin(sizes))
    return (
        f"{where}: no candidate fits; the smallest, number {smallest}, "
        f"is {sizes[smallest]:,.12g} bytes and the limit is {limit:,.12g} bytes"
    )
