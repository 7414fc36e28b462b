"""Why the devices of a finished run got their backbones, and what other limits would have bought.

Read from the run's summary and fleet alone; nothing is loaded or evaluated again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acme_fleet.config.backbone import Selection
from acme_fleet.config.devices import Device, Energy, Precision, common
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.energy import energy_j
from acme_fleet.errors import RunError
from acme_fleet.outside import listed
from acme_fleet.runs.directory import FLEET, RunDirectory
from acme_fleet.runs.summary import Candidate, ClusterSummary, DeviceSummary, ProbeSummary, Summary
from acme_fleet.selection.choice import Match, distances, executed_sizes, match, match_many
from acme_fleet.selection.finalists import choose_recovered
from acme_fleet.selection.front import interval_end

# --- one device -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A storage limit, and the row of the candidate that it leads to."""

    limit_bytes: int
    chosen: int


@dataclass(frozen=True)
class Explanation:
    """One device's choice. Rows are those of the cluster's candidates.

    Attributes:
        device: as in the fleet file.
        cluster: what its cluster could choose from, with the energy of its worst device.
        smallest: the device that sets the cluster's limit.
        selection: the window and the rule.
        match: grid coordinates, front and choice.
        window_end: the largest loss of the best performer's interval.
        distances: to the ideal point, by row, of the front's candidates in that interval.
        larger: the choice when the next larger candidate just fits, and the first choice that is
            another one; at most two, and none if all candidates fit. Both before recovery.
        alone: the choice by the device's own limit and energy constants.
        own_energy_j: on this device, of each candidate, shape ``(candidates,)``.
        measured: on the device's test data; none if it was lost.
        probe: the practitioner's rival, if it was measured.
    """

    device: Device
    cluster: ClusterSummary
    smallest: Device
    selection: Selection
    match: Match
    window_end: float
    distances: dict[int, float]
    larger: list[Option]
    alone: Option
    own_energy_j: np.ndarray
    measured: DeviceSummary | None
    probe: ProbeSummary | None

    @property
    def kept(self) -> int | None:
        """The row that an update kept where the rule would choose another one today; or none."""
        got = next(row for row, one in enumerate(self.cluster.candidates) if one.chosen)
        return None if got == self.match.chosen else got

    def verdict(self, row: int) -> str:
        """Why a candidate was chosen, or was not."""
        candidates = self.cluster.candidates
        if row == self.kept:
            return "kept by an update"
        excess = candidates[row].size_bytes - self.cluster.storage_limit_bytes
        if row not in self.match.feasible and excess <= 0:
            return f"not executed in {candidates[row].precision}"
        if excess > 0:
            return f"infeasible by {excess:,} B"
        recovered = candidates[row].recovered_loss
        if row == self.match.chosen and recovered is not None:
            return f"chosen of the tried, loss then {recovered:.4f}"
        if row == self.match.chosen:
            return f"chosen, distance {self.distances[row]:.3f}"
        if recovered is not None:
            return f"tried, loss then {recovered:.4f}"
        if row in self.distances:
            return f"front, distance {self.distances[row]:.3f}"
        if row in self.match.front:
            return f"front, loss above {self.window_end:.4f}"
        better = _dominator(_objectives(candidates), self.match.front, row)
        if better is None:
            return "not on the grid"
        return f"dominated by {candidates[better].variant}"


def explain_device(run_dir: Path, name: str) -> Explanation:
    """Why a device got its backbone.

    Raises:
        RunError: if the run or the device does not exist, or the run is not finished.
    """
    run = RunDirectory.open(run_dir)
    fleet = run.fleet
    if name not in (names := [device.name for device in fleet.devices]):
        raise RunError(f"the run has no device {name!r}; it has {listed(names, 10)}")
    summary = _summary_of(run, fleet)
    home = next(c.name for c in fleet.clusters if any(d.name == name for d in c.devices))
    if home in summary.lost:
        raise RunError(f"{name} got nothing: its cluster {home} did not finish")
    device, cluster, members = next(
        (device, cluster, members)
        for members, cluster in _paired(fleet, summary)
        for device in members
        if device.name == name
    )
    own_energy_j = _energy_on(device.energy, cluster.candidates, summary.reference.patches)
    if summary.selection.matching == "device":
        cluster, members = _by_its_own(cluster, device, own_energy_j), [device]
    candidates, limit = cluster.candidates, cluster.storage_limit_bytes
    table = _Table(_objectives(candidates), _fits(candidates, members, cluster.name))
    own = _Table(_with_energy(table.objectives, own_energy_j), _fits(candidates, [device], name))
    found = _match(table, limit, summary.selection, cluster.name)
    larger = _larger(table, limit, found.chosen, summary.selection)
    found = _recovered(found, table, candidates, summary.selection)
    alone = _match(own, device.storage, summary.selection, name)
    alone = _recovered(alone, own, candidates, summary.selection)
    window = summary.selection.performance_window
    return Explanation(
        device=device,
        cluster=cluster,
        smallest=min(members, key=lambda member: abs(member.storage - limit)),
        selection=summary.selection,
        match=found,
        window_end=interval_end(table.objectives[found.feasible, 0], window),
        distances=_near(table.objectives, found, summary.selection),
        larger=larger,
        alone=Option(device.storage, alone.chosen),
        own_energy_j=own_energy_j,
        measured=next((own for own in summary.devices if own.name == name), None),
        probe=summary.probe,
    )


def _by_its_own(cluster: ClusterSummary, device: Device, energies: np.ndarray) -> ClusterSummary:
    """A group's candidates as they were for one device: its own limit, its own energy."""
    candidates = [
        candidate.model_copy(update={"energy_j": float(energy)})
        for candidate, energy in zip(cluster.candidates, energies, strict=True)
    ]
    return cluster.model_copy(
        update={"storage_limit_bytes": device.storage, "candidates": candidates}
    )


def _near(table: np.ndarray, found: Match, selection: Selection) -> dict[int, float]:
    """Distance of each candidate of the front in the best performer's interval."""
    scale = np.abs(table).max(axis=0)
    far = distances(table[found.feasible], found.coordinates, selection.rule, scale)
    return {
        int(row): float(distance)
        for row, distance, interval in zip(
            found.feasible, far, found.coordinates[:, 0], strict=True
        )
        if interval == 1 and row in found.front
    }


def _larger(table: _Table, limit: int, chosen: int, selection: Selection) -> list[Option]:
    options, sizes = [], table.sizes
    for size in np.unique(sizes[(sizes > limit) & np.isfinite(sizes)]):
        other = _match(table, float(size), selection, "").chosen
        if not options or other != chosen:
            options.append(Option(int(size), other))
        if other != chosen:
            break
    return options


def _dominator(table: np.ndarray, front: np.ndarray, row: int) -> int | None:
    """A candidate of the front that is no worse in anything and better in something."""
    no_worse = (table[front] <= table[row]).all(axis=1)
    better = front[no_worse & (table[front] < table[row]).any(axis=1)]
    return int(better[0]) if better.size else None


# --- the whole fleet --------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceChoice:
    """One device's candidate with its cluster, and the one that its own limits would lead to.

    Energies are those on the device itself.
    """

    device: Device
    cluster: Candidate
    cluster_energy_j: float
    alone: Candidate
    alone_energy_j: float


def compare_matching(run_dir: Path) -> list[DeviceChoice]:
    """One backbone for each cluster beside one for each device, from the same candidates.

    Raises:
        RunError: if the run does not exist or is not finished.
    """
    run = RunDirectory.open(run_dir)
    fleet = run.fleet
    summary = _summary_of(run, fleet)
    if not summary.clusters:
        raise RunError(f"{run.path}: no cluster finished; go on with it: {run.resume_command}")
    members = [
        (device, next(row for row, c in enumerate(cluster.candidates) if c.chosen))
        for devices, cluster in _paired(fleet, summary)
        for device in devices
    ]
    candidates = summary.clusters[0].candidates  # loss and size are the same for all clusters
    distinct = dict.fromkeys(device.energy for device, _ in members)
    kinds = {energy: number for number, energy in enumerate(distinct)}
    energies = [_energy_on(kind, candidates, summary.reference.patches) for kind in kinds]
    tables = np.stack([_with_energy(_objectives(candidates), energy) for energy in energies])
    alone = np.zeros(len(members), dtype=int)
    for runtime in dict.fromkeys(device.precisions for device, _ in members):
        rows = [row for row, (device, _) in enumerate(members) if device.precisions == runtime]
        own = [members[row][0] for row in rows]
        alone[rows] = match_many(
            tables=tables,
            sizes=_fits(candidates, own[:1], own[0].name),
            limits=np.array([device.storage for device in own]),
            types=np.array([kinds[device.energy] for device in own]),
            performance_window=summary.selection.performance_window,
            rule=summary.selection.rule,
        )
    return [
        DeviceChoice(
            device=device,
            cluster=candidates[got],
            cluster_energy_j=float(energies[kinds[device.energy]][got]),
            alone=candidates[own],
            alone_energy_j=float(energies[kinds[device.energy]][own]),
        )
        for (device, got), own in zip(members, alone.tolist(), strict=True)
    ]


# --- shared -----------------------------------------------------------------------------------


def _summary_of(run: RunDirectory, fleet: Fleet) -> Summary:
    """The summary of a finished run.

    Raises:
        RunError: if the run is not finished, or the summary is of another fleet.
    """
    summary = Summary.read(run.finished())
    known = {cluster.name: {d.name for d in cluster.devices} for cluster in fleet.clusters}
    for group in summary.clusters:
        if not known.get(group.edge, set()).issuperset([*group.device_names, *group.lost]):
            raise RunError(f"{run.summary} is of another fleet than {run.path / FLEET}")
    return summary


def _paired(fleet: Fleet, summary: Summary) -> list[tuple[list[Device], ClusterSummary]]:
    """The devices for whom each choice was made, those that were lost on the way included."""
    members = {
        name: group for group in summary.clusters for name in [*group.device_names, *group.lost]
    }
    first = {group.edge: group for group in reversed(summary.clusters)}
    clusters = [cluster for cluster in fleet.clusters if cluster.name in first]
    found: dict[str, list[Device]] = {group.name: [] for group in summary.clusters}
    for cluster in clusters:
        for device in cluster.devices:
            found[members.get(device.name, first[cluster.name]).name].append(device)
    return [(found[group.name], group) for group in summary.clusters]


def _objectives(candidates: list[Candidate]) -> np.ndarray:
    """Loss, energy of the cluster's worst device, size, shape ``(candidates, 3)``."""
    return np.array([(c.loss, c.energy_j, c.size_bytes) for c in candidates], dtype=np.float64)


def _energy_on(constants: Energy, candidates: list[Candidate], patches: int) -> np.ndarray:
    work, depths = np.array([(c.variant.work, c.depth) for c in candidates]).T
    return energy_j(constants, work, depths, patches, [c.variant.precision for c in candidates])


def _with_energy(table: np.ndarray, energies: np.ndarray) -> np.ndarray:
    return np.column_stack([table[:, 0], energies, table[:, 2]])


class _Table(NamedTuple):
    """Objectives of candidates, and their sizes where they are executed, see ``executed_sizes``."""

    objectives: np.ndarray
    sizes: np.ndarray


def _fits(candidates: list[Candidate], devices: Iterable[Device], name: str) -> np.ndarray:
    sizes = np.array([candidate.size_bytes for candidate in candidates])
    precisions: list[Precision] = [candidate.variant.precision for candidate in candidates]
    return executed_sizes(sizes, precisions, common(d.precisions for d in devices), name)


def _match(table: _Table, limit: float, selection: Selection, name: str) -> Match:
    window, rule = selection.performance_window, selection.rule
    return match(table.objectives, table.sizes, limit, window, cluster=name, rule=rule)


def _recovered(
    found: Match, table: _Table, candidates: list[Candidate], selection: Selection
) -> Match:
    """The choice after recovery, where candidates were tried."""
    losses = [np.nan if c.recovered_loss is None else c.recovered_loss for c in candidates]
    window, rule = selection.performance_window, selection.rule
    return choose_recovered(table.objectives, found, np.array(losses), window, rule)
