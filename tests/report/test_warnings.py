"""Signs of useless devices: each is said with its numbers, and only where it is there."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_report import make_summary

from acme_fleet.cli import EXAMPLE
from acme_fleet.config.fleet import Fleet
from acme_fleet.inspection.plan import Holding, examine
from acme_fleet.report.page.html import write_report
from acme_fleet.report.terminal.holdings import print_holdings
from acme_fleet.report.terminal.run import print_candidates, print_memory, print_summary
from acme_fleet.report.warnings import (
    commonest_share,
    notes,
    of_fleet,
    plan_warnings,
    run_warnings,
)
from acme_fleet.runs.summary import DeviceSummary, Summary
from tiny_fleet import tiny

_GOOD = Holding(train=90, validation=20, test=40, classes=("a", "b"), untested=())


def _summary(*devices: dict[str, float | str]) -> Summary:
    """A run in which nothing is amiss, but for these changes of its devices."""
    whole = make_summary(max(1, len(devices)))
    good = {"accuracy_coarse": 0.5, "accuracy_linear": 0.5, "accuracy": 0.75, "test_samples": 40}
    made = [DeviceSummary(**{**whole.devices[0].model_dump(), **good, **d}) for d in devices]
    return whole.model_copy(update={"devices": made})


def _holding(**changes: object) -> Holding:
    return Holding(**{**vars(_GOOD), **changes})


def test_nothing_to_warn_of():
    summary = _summary({"name": "cam"})
    assert run_warnings(summary, {"cam": _GOOD}, {"cam": 0.5}) == []
    assert run_warnings(summary, {}, {}) == []  # nobody's data are here


@pytest.mark.parametrize(
    ("device", "holding", "commonest", "said"),
    [
        ({"test_samples": 1}, {"test": 1}, 0.5, "fewer than 10 test samples: cam (1: one is 100 p"),
        ({"test_samples": 9}, {"test": 9}, 0.5, "cam (9: one is 11 points)"),
        (
            {},
            {"validation": 3},
            0.5,
            "10 validation samples: cam (3: one is 33 points); raise data.validation,",
        ),
        ({}, {"untested": ("b",)}, 0.5, "lacks classes that the device trains on: cam (1 of 2: b)"),
        ({}, {"classes": ("a",)}, 1.0, "nothing to tell apart on a device with one class: cam (a)"),
        ({"accuracy": 0.0}, {}, 0.6, "most frequent class of the test set: cam (0.0 % against 60."),
        ({"accuracy": 0.75}, {}, 0.75, "test set: cam (75.0 % against 75.0 %)"),
        (
            {"accuracy_linear": 0.8, "test_samples": 100},
            {},
            0.5,
            "which chooses nothing: cam (by 5.0 points)",
        ),
        (
            {"accuracy_coarse": 0.8, "test_samples": 100},
            {},
            0.5,
            "validation data chose it: cam (by 5.0 points)",
        ),
        ({"size_bytes": 1_300_000}, {}, 0.5, "the reference of 1.22 MB: cam (1.3 MB)"),
    ],
)
def test_each_sign(device: dict, holding: dict, commonest: float, said: str):
    summary = _summary({"name": "cam", **device}, {"name": "good"})
    held = {"cam": _holding(**holding), "good": _GOOD}
    told = run_warnings(summary, held, {"cam": commonest, "good": 0.5})
    assert [said in line for line in told].count(True) == 1, told
    assert not any("good" in line for line in told)


def test_accuracy_of_zero_is_told_where_nobodys_data_are_here():
    (told,) = run_warnings(_summary({"name": "cam", "accuracy": 0.0}), {}, {})[:1]
    assert "cam (0.0 % against 0.0 %)" in told


def test_rounds_and_narrow_limits():
    summary = _summary({"name": "cam"})
    cluster = summary.clusters[0].model_copy(
        update={"missed": {"cam": 2}, "shortened": {"cam": 0.25}, "feasible": 1}
    )
    told = run_warnings(summary.model_copy(update={"clusters": [cluster]}), {}, {})
    total = len(cluster.candidates)
    assert [line.rpartition(": ")[2] for line in told] == [
        f"{cluster.name} (1 of {total} candidates)",
        "cam (2)",
        "cam (to 0.25 of its length); its data may be few, unlike the others' or wrong",
    ]
    cluster = cluster.model_copy(update={"missed": {}, "shortened": {"cam": 0.6}})
    told = run_warnings(summary.model_copy(update={"clusters": [cluster]}), {}, {})
    assert not any("shortened" in line for line in told)


def test_an_answer_or_two_more_are_chance():
    def told(*devices: tuple[str, float, int]) -> bool:
        own = ({"name": n, "accuracy_linear": s, "test_samples": t} for n, s, t in devices)
        return any("a linear header" in line for line in run_warnings(_summary(*own), {}, {}))

    assert not told(("cam", 0.85, 40))  # 4 of 40
    assert told(("cam", 0.875, 40))  # 5 of 40
    assert told(("a", 0.80, 40), ("b", 0.80, 40), ("c", 0.80, 40))  # 2 each
    assert not told(("a", 0.80, 40), ("b", 0.80, 40), ("c", 0.70, 40))


def test_devices_without_peers():
    """Of a cluster, in the plan and after the run; of a backbone, after the run."""
    assert not [line for line in run_warnings(make_summary(1), {}, {}) if "alone" in line]
    told = run_warnings(make_summary(1, 3), {}, {})
    assert [line for line in told if "learns from no" in line] == [
        "the device is alone in its cluster and learns from no other: dev-0-0; list it in a "
        "cluster with others"
    ]
    summary = make_summary(2, 1)
    of_two = summary.clusters[1].model_copy(update={"name": "site-0:2"})
    told = run_warnings(
        summary.model_copy(update={"clusters": [summary.clusters[0], of_two]}), {}, {}
    )
    assert any("the same backbone, so that it learns from none: dev-1-0" in line for line in told)
    fleet = tiny()
    few = [*fleet.clusters[0].devices[:1]]
    alone = fleet.clusters[0].model_copy(update={"name": "far", "devices": few})
    fleet = fleet.model_copy(update={"clusters": [*fleet.clusters, alone]})
    plan = replace(examine(tiny()), limits={"north": 10**9, "far": 10**9})
    assert any(f"no other: {few[0].name}; list it" in line for line in plan_warnings(fleet, plan))


def test_devices_that_no_artifact_runs_on():
    fleet = tiny()
    (cluster, *rest) = fleet.clusters
    (first, *others) = cluster.devices
    plan = examine(fleet)
    assert of_fleet(fleet, plan) == []
    devices = [first.model_copy(update={"runs_artifacts": False}), *others]
    changed = [cluster.model_copy(update={"devices": devices}), *rest]
    fleet = fleet.model_copy(update={"clusters": changed})
    (told,) = of_fleet(fleet, plan)
    assert told.endswith(f"to plan with: {first.name}")
    assert told in plan_warnings(fleet, plan)


def test_a_reference_that_has_learned_the_fleets_data():
    plan = replace(examine(tiny()), learned_before=["data.train (said.jsonl)"])
    (told,) = of_fleet(tiny(), plan)
    assert told.endswith("flatters it: data.train (said.jsonl); pre-train it on others")
    assert told in plan_warnings(tiny(), plan)


def test_the_worst_are_named_and_the_others_counted():
    held = {f"d{n}": _holding(test=n) for n in range(1, 8)}
    summary = _summary(*({"name": name, "test_samples": own.test} for name, own in held.items()))
    (told,) = run_warnings(summary, held, dict.fromkeys(held, 0.5))
    assert "d1 (1: one is 100 points), d2 (2: one is 50 points), d3 (3: " in told
    assert " and 4 more; raise data.test_share" in told


def test_plan_of_the_example_warns_of_few_samples_alone():
    fleet = Fleet.from_yaml(EXAMPLE)
    (few,) = plan_warnings(fleet, examine(fleet))
    assert "fewer than 10 validation samples: badge-3 (9: one is 11 points); raise data." in few


def test_a_whole_model_with_its_header_is_no_fault():
    fleet = tiny(clusters=[{"name": "n", "devices": [{"name": "d", "storage": "5 MB"}]}])
    plan = examine(fleet)
    for share, warned in ((0.98, False), (0.9, True)):
        changed = replace(plan, reference_bytes=round(share * plan.sizes.max()))
        told = plan_warnings(fleet, changed)
        assert any("larger than the reference of " in line for line in told) == warned


def test_memory_is_stated_and_too_little_is_told(capsys: pytest.CaptureFixture[str]):
    fleet = Fleet.from_yaml(EXAMPLE)
    assert print_memory(fleet, 10**9) == 0
    assert "training takes about 1 GB of memory: counted" in capsys.readouterr().out
    assert print_memory(fleet, 10**15) == 1
    told = capsys.readouterr().out
    assert "needs about 1000 TB of memory, this machine has" in told
    on_gpu = fleet.model_copy(update={"accelerator": "cuda"})
    assert print_memory(on_gpu, 10**15) == 0  # it is not asked
    assert "of memory of the GPU" in capsys.readouterr().out


def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("acme_fleet.report.warnings.usable_cores", lambda: 2)
    plan = examine(tiny())
    for threads, warned in ((2, False), (3, True)):
        told = plan_warnings(tiny(threads=threads), plan)
        assert any("threads: 3 are more than this machine's 2 cores" in x for x in told) == warned


def test_the_commonest_share_is_that_of_a_constant_answer():
    labels = torch.tensor([3, 3, 1, 3, 0])
    assert commonest_share(labels) == pytest.approx(0.6)
    assert commonest_share(labels[:0]) == 0


def test_notes_of_a_device():
    assert notes(_GOOD) == ""
    useless = _holding(test=1, validation=0, classes=("a",), untested=("a",))
    assert notes(useless) == "1 test sample, 0 validation samples, one class"


def test_check_shows_samples_and_classes_of_each_device(capsys: pytest.CaptureFixture[str]):
    fleet = tiny()
    plan = examine(fleet)
    print_holdings(fleet, plan)
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    told = {row[1].strip(): [cell.strip() for cell in row[2:6]] for row in rows}
    assert list(told) == [device.name for device in fleet.devices]
    for name, own in plan.holdings.items():
        classes = f"{len(own.classes)}: {', '.join(own.classes)}"
        assert told[name] == [str(own.train), str(own.validation), str(own.test), classes]


def test_check_of_tokens_has_no_column_of_classes(capsys: pytest.CaptureFixture[str]):
    fleet, plan = tiny(), examine(tiny())
    held = {name: replace(own, classes=(), untested=()) for name, own in plan.holdings.items()}
    print_holdings(fleet, replace(plan, holdings=held))
    shown = capsys.readouterr().out
    assert "samples that each device holds" in shown
    assert "classes" not in shown


def test_limits_that_decide_nothing_are_told(capsys: pytest.CaptureFixture[str]):
    fleet, plan = tiny(), examine(tiny())
    for limit, told in ((10**9, True), (int(plan.sizes.max()) - 1, False)):
        print_candidates(fleet, replace(plan, limits={c.name: limit for c in fleet.clusters}))
        assert ("fit all devices: limits decide nothing" in capsys.readouterr().out) == told


def test_thousands_of_devices_are_bounded(capsys: pytest.CaptureFixture[str], tmp_path):
    """In the plan, in the terminal and on the page, which is drawn in a reasonable time."""
    fleet, count = tiny(), 1200
    cluster = fleet.clusters[0]
    many = [cluster.devices[0].model_copy(update={"name": f"d{n}"}) for n in range(count)]
    fleet = fleet.model_copy(update={"clusters": [cluster.model_copy(update={"devices": many})]})
    plan = examine(tiny())
    held = {f"d{n}": _holding(test=n % 30, classes=("a" * 500, "b\x1b[2J")) for n in range(count)}
    print_holdings(fleet, type(plan)(**{**vars(plan), "holdings": held, "limits": {"north": 1}}))
    summary = make_summary(2)
    devices = [summary.devices[0].model_copy(update={"name": f"d{n}"}) for n in range(count)]
    around = summary.clusters[0].model_copy(
        update={
            "device_names": list(held),
            "similarity": np.full((count, count), 1 / count).tolist(),
            "lost": {f"x{n}": "\x1b[2J" * 1000 for n in range(count)},
        }
    )
    summary = summary.model_copy(update={"devices": devices, "clusters": [around]})
    print_summary(summary)
    told = capsys.readouterr().out
    assert len(told) < 60_000
    assert "\x1b[2J" not in told
    assert "and 1,160 more devices" in told
    begin = time.monotonic()
    write_report(summary, [], tmp_path / "report.html")
    assert time.monotonic() - begin < 60
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
