"""Which backbone a cluster gets: grid, front and choice (Eq. 11-13, Algorithm 1).

A table of objectives has shape ``(candidates, objectives)``. All are minimised; the loss is the
first column and the size the last: loss, energy of the worst device, size (Eq. 10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import moocore
import numpy as np

from acme_fleet.errors import FleetError
from acme_fleet.fleet import Rule as Rule  # an alias of the same name: to be imported

_ROUNDING = 1e-12  # relative: what two ways of computing one number may differ by
_MOST_INTERVALS = 2**52


def interval_count(losses: np.ndarray, performance_window: float) -> int:
    """K = ceil((worst loss - ideal loss) / γ_p), at least 1.

    An interval is thus never wider than the window.

    Args:
        losses: shape ``(candidates,)``.
        performance_window: γ_p, the loss that may be given up, in the unit of the losses.

    Raises:
        ValueError: if the window is not a positive number.
    """
    if not 0 < performance_window < math.inf:
        raise ValueError(f"the performance window must be positive, not {performance_window}")
    ratio = min(float(np.ptp(losses)) / performance_window, _MOST_INTERVALS)
    return max(1, math.ceil(ratio * (1 - _ROUNDING)))


def interval_end(losses: np.ndarray, performance_window: float) -> float:
    """The largest loss of the best performer's interval, Ψ^1 = 1: ideal + (worst - ideal) / K.

    Arguments and errors as for ``interval_count``.
    """
    return float(losses.min() + np.ptp(losses) / interval_count(losses, performance_window))


def grid_coordinates(
    objectives: np.ndarray, performance_window: float, sigma: float = 1e-9
) -> np.ndarray:
    """Ψ^l = ceil((f^l - ideal^l + σ) / r^l), r^l = (worst^l - ideal^l + 2σ) / K (Eq. 11).

    σ is a share of the objective's range, so that no coordinate depends on a unit, and at most a
    quarter of an interval, so that the ideal has coordinate 1 however narrow the intervals are. An
    objective that all candidates have in common has coordinate 1.

    Returns:
        Integers from 1 (ideal) to K, shape ``(candidates, objectives)``.

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    objectives = _checked(objectives)
    intervals = interval_count(objectives[:, 0], performance_window)
    sigma = min(sigma, 0.25 / intervals)
    spread = np.ptp(objectives, axis=0)
    share = (objectives - objectives.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    exact = (share + sigma) * intervals / (1 + 2 * sigma)
    return np.clip(np.ceil(exact * (1 - _ROUNDING)), 1, intervals).astype(np.int64)


def pareto_front_grid(coordinates: np.ndarray) -> np.ndarray:
    """The Pareto Front Grid, as a mask of shape ``(candidates,)`` (Eq. 12, read as METHOD 6 does).

    For each objective l and each combination of the other objectives' coordinates, the
    candidates whose Ψ^l is smallest; the union over l. All candidates of the first performance
    interval are in it: their Ψ^1 cannot be undercut.

    Args:
        coordinates: Ψ, shape ``(candidates, objectives)``.
    """
    kept = np.zeros(len(coordinates), dtype=bool)
    for objective in range(coordinates.shape[1]):
        own = coordinates[:, objective]
        others = np.delete(coordinates, objective, axis=1)
        order = np.lexsort((own, *others.T))
        starts = np.ones(len(order), dtype=bool)
        starts[1:] = (others[order[1:]] != others[order[:-1]]).any(axis=1)
        smallest = own[order][starts][np.cumsum(starts) - 1]
        kept[order[own[order] == smallest]] = True
    return kept


def exact_front(objectives: np.ndarray) -> np.ndarray:
    """Candidates that no other dominates, as a mask of shape ``(candidates,)``.

    Candidates that are equal in every objective do not dominate each other: all are kept.

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    return np.asarray(moocore.is_nondominated(_checked(objectives), keep_weakly=True))


def front(objectives: np.ndarray, performance_window: float) -> np.ndarray:
    """The grid without candidates that any candidate dominates, mask ``(candidates,)`` (Eq. 12).

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    grid = pareto_front_grid(grid_coordinates(objectives, performance_window))
    return grid & exact_front(objectives)


def distances(
    objectives: np.ndarray, coordinates: np.ndarray, rule: Rule, scale: np.ndarray
) -> np.ndarray:
    """Σ_l ‖Ψ^l - Ψ^l(ideal)‖₂, of shape ``(candidates,)`` (Eq. 13).

    The norm of one number is its absolute value, so the sum as printed is the city-block
    distance. ``"literal"`` takes it in grid coordinates. ``"nearest"``, the default, is a named
    deviation: it takes it in the objectives themselves, as shares of ``scale``. When the window
    is wide against the losses, K is small, most coordinates are equal, and the literal rule
    returns the most accurate candidate, whatever it costs.

    Args:
        objectives: shape ``(candidates, objectives)``. coordinates: Ψ, of the same shape.
        scale: what counts as 1 in each objective, shape ``(objectives,)``.
    """
    if rule == "literal":
        return (coordinates - 1.0).sum(axis=1)
    return ((objectives - objectives.min(axis=0)) / np.where(scale > 0, scale, 1.0)).sum(axis=1)


def choose(
    objectives: np.ndarray,
    performance_window: float,
    rule: Rule = "nearest",
    scale: np.ndarray | None = None,
) -> int:
    """The candidate nearest to the ideal point in the best performer's interval (Eq. 13).

    Candidates of the front with Ψ^1 = Ψ^1(best performer) are compared by ``distances``; ties go
    to the smaller loss, then to the smaller size, then to the first in the table.

    Args:
        objectives: the candidates that fit, shape ``(candidates, objectives)``.
        performance_window: γ_p, the loss that may be given up.
        scale: of rule ``"nearest"``; by default each objective's worst value in the table.

    Raises:
        ValueError: naming the first candidate with an objective that is not finite.
    """
    objectives = _checked(objectives)
    coordinates = grid_coordinates(objectives, performance_window)
    # The grid removes nothing from the first interval, and nothing outside dominates its members.
    near = np.flatnonzero(coordinates[:, 0] == 1)
    near = near[exact_front(objectives[near])]
    scale = _worst(objectives) if scale is None else scale
    far = np.round(distances(objectives, coordinates, rule, scale)[near], 12)
    return int(near[np.lexsort((objectives[near, -1], objectives[near, 0], far))[0]])


@dataclass(frozen=True)
class Match:
    """What Algorithm 1 found for one cluster. Indices are rows of the whole table."""

    feasible: np.ndarray
    """Candidates that fit, ascending."""
    coordinates: np.ndarray
    """Ψ of those that fit, shape ``(feasible, objectives)``."""
    front: np.ndarray
    """The front among those that fit, ascending."""
    chosen: int


def fitting(sizes: np.ndarray, limit: float, cluster: str) -> np.ndarray:
    """Indices of the candidates with size at most ``limit``, ascending (constraint of Eq. 10).

    Raises:
        FleetError: naming the cluster, its limit and the smallest candidate, if none fits.
    """
    indices = np.flatnonzero(sizes <= limit)
    if not indices.size:
        raise FleetError(_nothing_fits(sizes, limit, f"cluster {cluster!r}"))
    return indices


def match(
    objectives: np.ndarray,
    sizes: np.ndarray,
    limit: float,
    performance_window: float,
    cluster: str,
    rule: Rule = "nearest",
) -> Match:
    """Backbone customization for one cluster (Algorithm 1, lines 5-18).

    Ideal, worst and K are those of the candidates that fit. The scale of rule ``"nearest"`` is
    that of all candidates, so that a byte weighs the same whatever the limit.

    Args:
        objectives: all candidates, shape ``(candidates, objectives)``.
        sizes: bytes as shipped, shape ``(candidates,)``. limit: min C_n in bytes; equal fits.
        performance_window: γ_p, the loss that may be given up. cluster: its name, for errors.

    Raises:
        FleetError: naming the cluster, its limit and the smallest candidate, if none fits.
        ValueError: naming the first candidate with an objective that is not finite.
    """
    objectives = _checked(objectives)
    feasible = fitting(sizes, limit, cluster)
    subset = objectives[feasible]
    chosen = choose(subset, performance_window, rule, _worst(objectives))
    return Match(
        feasible=feasible,
        coordinates=grid_coordinates(subset, performance_window),
        front=feasible[front(subset, performance_window)],
        chosen=int(feasible[chosen]),
    )


def match_many(
    tables: np.ndarray,
    sizes: np.ndarray,
    limits: np.ndarray,
    types: np.ndarray,
    performance_window: float,
    rule: Rule = "nearest",
) -> np.ndarray:
    """``match`` for very many clusters: linear in their number, one choice per distinct case.

    With candidates sorted by size, those that fit are a prefix: there are at most as many cases
    as candidates for each type of cluster, and a cluster costs one look-up. A type is an energy
    column. Columns that differ by a factor give the same choices, so clusters whose constants
    are proportional (ΔG, G^β ∝ G and ΔL, ΔD ∝ L, Eq. 2) may share a type.

    Args:
        tables: one table for each type, shape ``(types, candidates, objectives)``.
        sizes: bytes as shipped, shape ``(candidates,)``.
        limits: min C_n in bytes of each cluster. types: its table. Shape ``(clusters,)``.

    Returns:
        The chosen candidates, shape ``(clusters,)``.

    Raises:
        FleetError: naming the first cluster that nothing fits by its position, and how many.
        ValueError: for a limit that is not a number, or an objective that is not finite.
    """
    if np.isnan(limits).any():
        raise ValueError(f"the limit of cluster {int(np.argmax(np.isnan(limits)))} is not a number")
    scales = [_worst(_checked(table)) for table in tables]
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


def _worst(objectives: np.ndarray) -> np.ndarray:
    return np.abs(objectives).max(axis=0)


def _checked(objectives: np.ndarray) -> np.ndarray:
    objectives = np.asarray(objectives, dtype=np.float64)
    if objectives.ndim != 2 or not objectives.size:
        raise ValueError(f"objectives have shape {objectives.shape}, not (candidates, objectives)")
    finite = np.isfinite(objectives)
    if not finite.all():
        candidate, column = np.argwhere(~finite)[0]
        value = objectives[candidate, column]
        raise ValueError(f"candidate {candidate}: objective {column} is {value}")
    return objectives


def _nothing_fits(sizes: np.ndarray, limit: float, where: str) -> str:
    smallest = int(np.argmin(sizes))
    return (
        f"{where}: no candidate fits; the smallest, number {smallest}, "
        f"is {sizes[smallest]:,.12g} bytes and the limit is {limit:,.12g} bytes"
    )
