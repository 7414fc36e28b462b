"""Signs of a useless device or model, as sentences with numbers.

Each kind of sign is one sentence that names the worst cases and counts the others, so that a fleet
of thousands of devices gets a few lines. A warning changes nothing: test data choose no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from acme_fleet.config.data import ABSENT
from acme_fleet.inspection.doctor import usable_cores
from acme_fleet.outside import listed, one_line
from acme_fleet.report.words import bytes_text
from acme_fleet.runs.summary import DeviceSummary, Summary

if TYPE_CHECKING:
    from torch import Tensor

    from acme_fleet.config.fleet import Fleet
    from acme_fleet.inspection.plan import Holding, Plan

FEW = 10
"""Samples below which a share of them says little: one is more than ten points."""
_BY_CHANCE = 5  # right answers more than another model's on the same samples
_SHORTER = 0.5
"""Of its length: an update that is shortened further is worth a word. An honest device that starts
from a regression of its own moves two to three times as far as one that starts as it was sent."""
_NEARLY_ALL = 0.1  # of the candidates are left
_MARGIN = 1.05  # times the reference: the whole model with a header in place of its classifier

_MIX = "; where samples of a class are few, personalization.mix: both often helps"

Cases = Iterable[tuple[float, str]]
"""A case's severity, and the case in words."""


def plan_warnings(fleet: Fleet, plan: Plan) -> list[str]:
    """Signs that are there before any training."""
    runtimes = {c.name: c.precisions for c in fleet.clusters}
    storages = {c.name: max(d.storage for d in c.devices) for c in fleet.clusters}
    largest = {
        name: int(plan.fitting(storage, runtimes[name]).max(initial=0))
        for name, storage in storages.items()
    }
    reference = plan.reference_bytes
    larger = {name: size for name, size in largest.items() if size > _MARGIN * reference}
    fitting = {n: len(plan.fitting(limit, runtimes[n])) for n, limit in plan.limits.items()}
    return [
        *_of_holdings(plan.holdings),
        *_sentence(
            f"candidates fit that are larger than the reference of {bytes_text(reference)}",
            ((size, f"{name} (up to {bytes_text(size)})") for name, size in larger.items()),
        ),
        *_of_threads(fleet.threads),
        *_alone({c.name: [d.name for d in c.devices] for c in fleet.clusters}),
        *of_fleet(fleet, plan),
        *_narrow({name: (count, len(plan.sizes)) for name, count in fitting.items()}),
    ]


def _of_threads(threads: int) -> list[str]:
    cores = usable_cores()
    if threads <= cores:
        return []
    return [
        f"threads: {threads} are more than this machine's {cores} cores: they wait for each other, "
        f"and a run takes up to ten times as long"
    ]


def memory_warnings(fleet: Fleet, needed: int) -> list[str]:
    """A sign that the cloud's training does not fit this machine; GPUs are not asked."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed <= machine or fleet.accelerator != "cpu":
        return []
    return [
        f"the cloud's training needs about {bytes_text(needed)} of memory, this machine has "
        f"{bytes_text(machine)}: run it elsewhere, compute a batch in `parts`, or take a smaller "
        f"reference"
    ]


def of_fleet(fleet: Fleet, plan: Plan) -> list[str]:
    """Signs that hold before and after a run: devices that no artifact runs on, as the fleet file
    says, and a reference that has learned the fleet's own data."""
    return [
        *_sentence(
            "no runtime of `acme export` is for the device, so that its model is to plan with",
            ((0, device.name) for device in fleet.devices if not device.runs_artifacts),
        ),
        *_sentence(
            "the reference was pre-trained on the fleet's own data, and every figure on them "
            "flatters it",
            ((0, each) for each in plan.learned_before),
            "pre-train it on others",
        ),
    ]


def run_warnings(
    summary: Summary, holdings: Mapping[str, Holding], commonest: Mapping[str, float]
) -> list[str]:
    """Signs that a finished run shows.

    Args:
        summary: of the run.
        holdings: samples and classes of the devices whose data are on this machine.
        commonest: of the same devices, the share of the most frequent class in the test set.
    """
    tests = {d.name: d.test_samples for d in summary.devices}
    present = {name: own for name, own in holdings.items() if name in tests}
    several = {name: commonest[name] for name, own in present.items() if len(own.classes) > 1}
    if not holdings:
        several = dict.fromkeys(tests, 0.0)  # an accuracy of 0 says enough
    clusters = summary.clusters
    missed = ((n, f"{name} ({n})") for c in clusters for name, n in c.missed.items())
    shortened = (
        (-scale, f"{name} (to {scale:.2g} of its length)")
        for c in clusters
        for name, scale in c.shortened.items()
        if scale < _SHORTER
    )
    return [
        *(_of_holdings(present) if holdings else _few_tests(tests)),
        *_of_models(summary, several),
        *_of_probe(summary),
        *_narrow({c.name: (c.feasible, len(c.candidates)) for c in clusters}),
        *_alone({c.name: c.device_names for c in clusters}),
        *_sentence("rounds were missed, or what was sent in them was refused", missed),
        *_sentence(
            "the header's update was far longer than its peers', and was shortened",
            shortened,
            "its data may be few, unlike the others' or wrong",
        ),
    ]


def _alone(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Devices without peers, by group: a cluster, or its devices with one backbone.

    A fleet of one device needs no word on it.
    """
    alone = {name: own[0] for name, own in groups.items() if len(own) == 1 < len(groups)}
    return [
        *_sentence(
            "the device is alone in its cluster and learns from no other",
            ((0, device) for name, device in alone.items() if ":" not in name),
            "list it in a cluster with others",
        ),
        *_sentence(
            "no other device of the cluster has the same backbone, so that it learns from none",
            ((0, device) for name, device in alone.items() if ":" in name),
            "selection.matching: cluster gives all of a cluster the same",
        ),
    ]


def _of_models(summary: Summary, constant: Mapping[str, float]) -> list[str]:
    """``constant``: the accuracy of answering one class always, by device."""
    devices, reference = summary.devices, summary.reference.size_bytes
    no_better = (
        (best - d.accuracy, f"{d.name} ({_share(d.accuracy)} against {_share(best)})")
        for d in devices
        if (best := constant.get(d.name, -1.0)) >= d.accuracy
    )
    linear = _beyond_chance(devices, "accuracy_linear")
    coarse = _beyond_chance(devices, "accuracy_coarse")
    larger = (
        (d.size_bytes, f"{d.name} ({bytes_text(d.size_bytes)})")
        for d in devices
        if d.size_bytes > _MARGIN * reference
    )
    mixed = "" if summary.personalization.mixes_weights else ", or set personalization.mix: both"
    return [
        *_sentence(
            "the model answers no better than the most frequent class of the test set", no_better
        ),
        *_sentence(
            "a linear header on the same backbone is better on the test set, which chooses nothing",
            linear,
        ),
        *_sentence(
            "the model is worse on the test set than the coarse one; validation data chose it",
            coarse,
            f"raise data.validation, or give more data{mixed}",
        ),
        *_sentence(f"the model is larger than the reference of {bytes_text(reference)}", larger),
    ]


def _beyond_chance(devices: Sequence[DeviceSummary], field: str) -> list[tuple[float, str]]:
    """Devices on which another model is better, by more answers than could be chance alone.

    Both answer the same samples. With fewer than five more right answers even the clearest case,
    in which the better one is never wrong where the other is right, has a chance of 1 in 16 (sign
    test). Devices with less count where all devices together have more.
    """
    cases = [(getattr(d, field) - d.accuracy, d) for d in devices]
    more = [better * (d.language.tokens if d.language else d.test_samples) for better, d in cases]
    together = sum(more) >= _BY_CHANCE - 0.5
    return [
        _points(device.name, better)
        for (better, device), own in zip(cases, more, strict=True)
        if better > 0 and (together or own >= _BY_CHANCE - 0.5)
    ]


def _of_probe(summary: Summary) -> list[str]:
    """Warn if the ten-line rival is better, by the mean over the devices."""
    if summary.probe is None or not summary.devices:
        return []
    probe = summary.probe
    whole = f"the whole checkpoint in int8 ({bytes_text(probe.size_bytes_int8)})"
    place = "the raw inputs" if probe.pooling is None else f"pooled features of {whole}"
    told = []
    for rival, field in (
        ("ten lines (a logistic regression", "accuracy_probe"),
        ("the mean of all devices' ten lines (logistic regressions", "accuracy_probe_averaged"),
    ):
        found = [(getattr(device, field), device.accuracy) for device in summary.devices]
        pairs = [(theirs, ours) for theirs, ours in found if theirs is not None]
        theirs, ours = (fmean(side) for side in zip(*pairs, strict=True)) if pairs else (0, 0)
        if theirs > ours:
            better = sum(theirs > ours for theirs, ours in pairs)
            told.append(
                f"{rival} on {place}) has {_share(theirs)} on the test sets, what ships has "
                f"{_share(ours)}, both means; it is better on {better} of {len(pairs)} devices"
                + ("" if summary.personalization.mixes_weights else _MIX)
            )
    return told


def notes(own: Holding) -> str:
    """The signs of one device's data in a few words; classes without a test are a warning's."""
    told = [
        f"{count} {kind} sample{'s' if count != 1 else ''}"
        for kind, count in (("test", own.test), ("validation", own.validation))
        if count < FEW
    ]
    if len(own.classes) == 1:
        told.append("one class")
    return ", ".join(told)


def commonest_share(labels: Tensor) -> float:
    """The accuracy of always answering the most frequent of these labels, of samples or tokens."""
    known = labels[labels != ABSENT]
    return float(known.bincount().max()) / len(known) if len(known) else 0.0


def _of_holdings(holdings: Mapping[str, Holding]) -> list[str]:
    few = (
        (FEW - h.validation, f"{name} ({_weight_of_one(h.validation)})")
        for name, h in holdings.items()
        if h.validation < FEW
    )
    return [
        *_few_tests({name: own.test for name, own in holdings.items()}),
        *_sentence(
            f"the choice of the best header rests on fewer than {FEW} validation samples",
            few,
            "raise data.validation, lower data.public, or give more data",
        ),
        *_sentence(
            "the test set lacks classes that the device trains on",
            (
                (
                    len(h.untested),
                    f"{name} ({len(h.untested)} of {len(h.classes)}: {listed(h.untested)})",
                )
                for name, h in holdings.items()
                if h.untested
            ),
            "no figure is of them; raise data.test_share, or give more test data",
        ),
        *_sentence(
            "there is nothing to tell apart on a device with one class",
            (
                (0, f"{name} ({one_line(', '.join(h.classes), 20)})")
                for name, h in holdings.items()
                if len(h.classes) == 1
            ),
        ),
    ]


def _few_tests(tests: Mapping[str, int]) -> list[str]:
    return _sentence(
        f"accuracy says little with fewer than {FEW} test samples",
        ((FEW - n, f"{name} ({_weight_of_one(n)})") for name, n in tests.items() if n < FEW),
        "raise data.test_share, or give more test data",
    )


def _weight_of_one(samples: int) -> str:
    return f"{samples}: one is {100 / samples:.0f} points" if samples else "none"


def _narrow(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """Clusters for which there is hardly a choice; by name, fitting candidates and all.

    Where none fits, there is an error.
    """
    return _sentence(
        "the storage limit leaves hardly a choice",
        (
            (total - fit, f"{name} ({fit} of {total} candidates)")
            for name, (fit, total) in counts.items()
            if total > 1 and 0 < fit <= max(1.0, _NEARLY_ALL * total)
        ),
    )


def _sentence(sign: str, cases: Cases, remedy: str | None = None) -> list[str]:
    """None without a case."""
    found = [words for _, words in sorted(cases, key=lambda case: -case[0])]
    return [f"{sign}: {listed(found)}" + (f"; {remedy}" if remedy else "")] if found else []


def _points(name: str, difference: float) -> tuple[float, str]:
    return difference, f"{name} (by {100 * difference:.1f} points)"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
