"""All measurements of a run, gathered into its :class:`~acme_fleet.runs.summary.Summary`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from acme_fleet.cloud.choices import ClusterChoice
from acme_fleet.cloud.objectives import Grid
from acme_fleet.config.fleet import Fleet
from acme_fleet.device.state import Answers, kept_answers
from acme_fleet.distillation.reference import ReferenceResult
from acme_fleet.inspection.plan import Holding
from acme_fleet.messages.cloud_edge import ClusterReport
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.events import Event, duration_s, stages_of
from acme_fleet.runs.summary import (
    Candidate,
    ClassSummary,
    ClusterSummary,
    DeviceSummary,
    ProbeSummary,
    ReferenceSummary,
    Rival,
    Summary,
    UpdateSummary,
)
from acme_fleet.runs.traffic import count_traffic, privacy_losses, sent_by_devices
from acme_fleet.simulation.probe_rival import ProbeResult
from acme_fleet.simulation.whole_reference import WholeResult


def kept_by_devices(run: RunDirectory, devices: Iterable[str]) -> dict[str, Answers]:
    """The answers that these devices, all on this machine, have noted."""
    found = {name: kept_answers(run.device(name)) for name in devices}
    return {name: answers for name, answers in found.items() if answers is not None}


@dataclass(frozen=True)
class Beside:
    """Measurements beside the protocol, on the machine that has all data.

    Attributes:
        probe, whole: the rivals; none where they were not measured.
        holdings: sample counts by device. answers: to their test sets, by device.
        headers: rivals of its header, by device and by name.
    """

    probe: ProbeResult | None = None
    whole: WholeResult | None = None
    holdings: Mapping[str, Holding] = field(default_factory=dict)
    answers: Mapping[str, Answers] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Rival]] = field(default_factory=dict)

    def of(self, device: str) -> dict[str, Any]:
        """The fields of a device's summary."""
        alone, averaged = (self.probe.alone, self.probe.averaged) if self.probe else ({}, {})
        holding, answers = self.holdings.get(device), self.answers.get(device)
        classes = {}
        if answers is not None:
            names = dict.fromkeys([*answers.train, *answers.test])
            classes = {
                name: ClassSummary(
                    train=answers.train.get(name, 0), answers=answers.test.get(name, {})
                )
                for name in sorted(names)
            }
        writing = self.whole.writing if self.whole else {}
        whole = {f"whole, {kind}": by[device] for kind, by in writing.items() if device in by}
        return {
            "rivals": {**whole, **self.headers.get(device, {})},
            "accuracy_probe": alone.get(device),
            "accuracy_probe_averaged": averaged.get(device),
            "accuracy_reference": self.whole.scores.get(device) if self.whole else None,
            "train_samples": holding.train if holding else 0,
            "validation_samples": holding.validation if holding else 0,
            "classes": classes,
        }


def summarize(
    fleet: Fleet,
    reference: ReferenceResult,
    grid: Grid,
    finished: list[tuple[ClusterChoice, ClusterReport]],
    lost: dict[str, str],
    events: list[Event],
    beside: Beside,
    update: UpdateSummary | None = None,
) -> Summary:
    """Everything that was measured, in one record."""
    probe, whole = beside.probe, beside.whole
    storage = {device.name: device.storage for device in fleet.devices}
    devices = [
        DeviceSummary(
            cluster=report.name,
            capacity_bytes=storage[device.name],
            **beside.of(device.name),
            **device.model_dump(),
        )
        for _, report in finished
        for device in report.reports
    ]
    before = update and update.sent_before
    sent = sent_by_devices(events, [device.name for device in fleet.devices], before)
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in stages_of(events):
        seconds[event.stage] += event.seconds
    return Summary(
        name=fleet.name,
        seed=fleet.seed,
        seconds={stage: round(total, 3) for stage, total in seconds.items()},
        took_s=round(duration_s(events), 3),
        reference=ReferenceSummary(
            **vars(reference), latency_s=None if whole is None else whole.latency_s
        ),
        selection=fleet.selection,
        clusters=[_cluster(grid, *pair) for pair in finished],
        devices=devices,
        lost=lost,
        traffic=count_traffic(events, sum(device.raw_data_bytes for device in devices)),
        personalization=fleet.personalization,
        sent=sent,
        privacy_loss=privacy_losses(fleet, sent),
        update=update,
        probe=probe
        and ProbeSummary(
            pooling=probe.pooling,
            size_bytes=probe.size_bytes,
            size_bytes_int8=probe.size_bytes_int8,
        ),
    )


def choice_records(grid: Grid, choices: Sequence[ClusterChoice]) -> list[dict[str, Any]]:
    """The candidates of each choice, for whoever watches the run."""
    return [
        {
            "edge": choice.edge,
            "storage_limit_bytes": choice.storage_bytes,
            "candidates": [each.model_dump(mode="json") for each in _candidates(grid, choice)],
        }
        for choice in choices
    ]


def _candidates(grid: Grid, choice: ClusterChoice) -> list[Candidate]:
    selection = choice.selection

    def known(values: np.ndarray | None, i: int) -> float | None:
        return None if values is None or not np.isfinite(values[i]) else float(values[i])

    return [
        Candidate(
            **vars(grid.variants[i]),
            loss=float(choice.objectives[i, 0]),
            accuracy=known(choice.scores, i),
            estimated=choice.estimated is not None and bool(choice.estimated[i]),
            recovered_loss=known(choice.recovered and choice.recovered.losses, i),
            recovered_accuracy=known(choice.recovered and choice.recovered.scores, i),
            energy_j=float(choice.objectives[i, 1]),
            size_bytes=int(choice.objectives[i, 2]),
            feasible=bool(i in selection.feasible),
            on_front=bool(i in selection.front),
            chosen=bool(i == selection.chosen),
        )
        for i in range(len(grid))
        if np.isfinite(choice.objectives[i]).all()
    ]


def _cluster(grid: Grid, choice: ClusterChoice, report: ClusterReport) -> ClusterSummary:
    candidates, selection = _candidates(grid, choice), choice.selection
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    return ClusterSummary(
        name=report.name,
        **vars(chosen.variant),
        storage_limit_bytes=choice.storage_bytes,
        candidates=candidates,
        feasible=len(selection.feasible),
        front=len(selection.front),
        header=report.header,
        genotype=dict(report.genotype),
        contenders=report.contenders,
        device_names=report.device_names,
        similarity=report.similarity,
        columns=report.columns,
        lost=report.lost,
        missed=report.missed,
        shortened=report.shortened,
    )
