"""The plan: limits are kept, nothing dominated is chosen, and the order of rows does not matter."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import FleetError
from acme_fleet.stratos.calibration import write_calibration
from acme_fleet.stratos.example_files import write_example
from acme_fleet.stratos.plan import (
    OBJECTIVES,
    Plan,
    choose,
    decided,
    make_plan,
    objective_table,
    predict,
)
from acme_fleet.stratos.predictors.speeds import KINDS, Speeds
from acme_fleet.stratos.relaxation import check_feasible
from acme_fleet.stratos.request import Limits, Request
from tiny_calibration import calibration


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, with a pilot of every student: all pairs are compared."""
    task = tmp_path_factory.mktemp("example") / "task.yaml"
    write_example(task)
    table = yaml.safe_load((task.parent / "pairs.yaml").read_text())
    for model in (*table["teachers"], *table["students"]):
        del model["shape"]["parameters"]
        model["shape"]["layers"] = 3  # shapes are made quickly
    table["cuts"][0]["depths"] = [1, 2]
    (task.parent / "pairs.yaml").write_text(json.dumps(table))
    table["students"][0]["pilot"] = {"correct": 150, "asked": 200}
    pilots = {"1-1": 120, "1-2": 140, "0.67-1": 80, "0.67-2": 100}
    table["cuts"][0]["pilots"] = {
        f"SmolLM2-135M-Instruct/{cut}": {"correct": right, "asked": 200}
        for cut, right in pilots.items()
    }
    (task.parent / "piloted.yaml").write_text(json.dumps(table))
    return task


@pytest.fixture(scope="module")
def plan(example: Path) -> Plan:
    return planned(example)


def planned(example: Path, *, piloted: bool = True, **changes: Any) -> Plan:
    request = Request.from_yaml(example)
    if piloted:
        changes.setdefault("pairs", example.parent / "piloted.yaml")
    return make_plan(request.model_copy(update=changes))


def limited(plan: Plan, limits: Limits, example: Path) -> Plan:
    return decided(Request.from_yaml(example).model_copy(update={"limits": limits}), plan)


def test_pairs_without_a_pilot_are_not_compared(example: Path):
    plan = planned(example, piloted=False)
    assert len(plan.groups) == len(plan.possible) == 6
    assert all(group.objectives == OBJECTIVES[1:] for group in plan.groups)
    assert np.isnan(plan.predictions.accuracy).all()


def test_with_pilots_all_pairs_are_on_one_front(plan: Plan):
    (group,) = plan.groups
    assert group.objectives == OBJECTIVES
    assert set(group.rivals) == {"accuracy first", "latency first", "cost first", "random"}
    best = max(choice.score for choice in group.front)
    assert group.chosen.score == pytest.approx(best)
    assert all(rival.score <= group.chosen.score for rival in group.rivals.values())


_limits = st.builds(
    Limits,
    min_accuracy=st.none() | st.sampled_from([0.3, 0.55, 0.72, 0.9]),
    max_p95_latency_ms=st.none() | st.floats(20, 400),
    max_training_usd=st.none() | st.floats(0.001, 1),
    max_usd_per_hour=st.none() | st.floats(0.05, 30),
    max_training_hours=st.none() | st.floats(0.01, 1),
)


@given(limits=_limits)
def test_a_limit_is_never_broken_and_nothing_dominated_is_chosen(
    example: Path, plan: Plan, limits: Limits
):
    plan = limited(plan, limits, example)
    table = objective_table(plan.predictions, OBJECTIVES)
    for group in plan.groups:
        for choice in (group.chosen, *group.front, *group.rivals.values()):
            pair, server = choice.pair, choice.server
            assert plan.predictions.memory[pair, server]
            assert plan.keeps[:, pair, server].all()
            if limits.max_usd_per_hour is not None:
                assert plan.offers[server].price.amount <= limits.max_usd_per_hour
            if limits.max_p95_latency_ms is not None:
                latency = plan.predictions.latency.value[pair, server]
                assert 1000 * latency <= limits.max_p95_latency_ms
        others = table[plan.feasible]
        chosen = table[group.chosen.pair, group.chosen.server]
        assert not ((others <= chosen).all(axis=1) & (others < chosen).any(axis=1)).any()
    if not plan.groups:
        with pytest.raises(FleetError, match="smallest relaxation"):
            check_feasible(plan)


def _described(plan: Plan) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        (plan.possible[c.pair].name, plan.offers[c.server].key)
        for group in plan.groups
        for c in (group.chosen, *sorted(group.front, key=lambda c: (c.pair, c.server)))
    ]


def test_the_order_of_rows_does_not_matter(example: Path, tmp_path: Path):
    request = Request.from_yaml(example)
    rows = request.servers[0].path.read_text().splitlines()
    random.Random(1).shuffle(body := rows[1:])
    shuffled = tmp_path / "servers.csv"
    shuffled.write_text("\n".join([rows[0], *body]) + "\n")
    lists = [request.servers[1], request.servers[0].model_copy(update={"path": shuffled})]
    for piloted in (True, False):
        other = planned(example, piloted=piloted, servers=lists)
        assert _described(other) == _described(planned(example, piloted=piloted))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            Limits(max_usd_per_hour=0.05),
            r"limits\.max_usd_per_hour 0\.12 USD/h in place of 0\.05: .* on workstation in office",
        ),
        (Limits(min_accuracy=0.8), r"limits\.min_accuracy 0\.75 in place of 0\.8"),
        (Limits(max_p95_latency_ms=1), r"limits\.max_p95_latency_ms \d+\.\d+ ms in place of 1"),
        (
            Limits(max_usd_per_hour=0.05, max_p95_latency_ms=1),
            r"max_p95_latency_ms .* and limits\.max_usd_per_hour",
        ),
    ],
)
def test_the_smallest_relaxation_is_told(example: Path, plan: Plan, limits: Limits, words: str):
    with pytest.raises(FleetError, match=words):
        check_feasible(limited(plan, limits, example))


def test_the_relaxation_that_is_told_admits_something(example: Path, plan: Plan):
    with pytest.raises(FleetError) as told:
        check_feasible(limited(plan, Limits(max_p95_latency_ms=1), example))
    bound = float(str(told.value).partition("max_p95_latency_ms ")[2].partition(" ms")[0])
    check_feasible(limited(plan, Limits(max_p95_latency_ms=bound), example))


def test_memory_is_no_limit_that_could_be_relaxed(example: Path):
    request = Request.from_yaml(example)
    large = request.workload.model_copy(update={"batch_size": 100_000})
    with pytest.raises(FleetError, match=r"no server has the memory .* needs .* TB on a"):
        check_feasible(planned(example, workload=large))


def test_a_choice_whose_error_bar_reaches_over_a_limit_is_at_risk(example: Path, plan: Plan):
    assert plan.at_risk(plan.groups[0].chosen) == []
    latency = 1000 * plan.predictions.latency.value.min()
    risky = limited(plan, Limits(max_p95_latency_ms=1.2 * latency), example)
    names = [limit.name for limit in risky.at_risk(risky.groups[0].chosen)]
    assert names == ["max_p95_latency_ms"]


def test_a_calibration_is_used_where_it_was_measured(example: Path, tmp_path: Path):
    write_calibration(calibration(accelerator="L4"), tmp_path / "l4.yaml")
    plan = planned(example, calibrations=[tmp_path / "l4.yaml"])
    measured = {
        o.accelerator for o, c in zip(plan.offers, plan.speeds.calibrated, strict=True) if c
    }
    assert measured == {"L4"}
    write_calibration(calibration(), tmp_path / "cpu.yaml")
    with pytest.raises(FleetError, match="it holds for that machine alone"):
        planned(example, calibrations=[tmp_path / "cpu.yaml"])
    with pytest.raises(FleetError, match="two files are of L4"):
        planned(example, calibrations=[tmp_path / "l4.yaml"] * 2)


def test_a_machines_own_calibration_is_of_its_hardware(example: Path, tmp_path: Path):
    write_calibration(calibration(), tmp_path / "cpu.yaml")
    machine = "{name: desk, vcpus: 2, memory_gib: 8, per_hour: 0, date: 2026-02-03%s}"
    path = tmp_path / "machines.yaml"
    lists = [Request.from_yaml(example).servers[1].model_copy(update={"path": path})]
    path.write_text(f"machines: [{machine % ', calibration: cpu.yaml'}]")
    plan = planned(example, servers=lists)
    assert plan.speeds.calibrated.tolist() == [True]
    assert plan.speeds.memory_bytes.tolist() == [8 * 2**30]
    path.write_text(f"machines: [{machine % ''}]")
    with pytest.raises(FleetError, match="without accelerator and without calibration"):
        planned(example, servers=lists)
    other = ", accelerator: L4, accelerators: 1, calibration: cpu.yaml"
    path.write_text(f"machines: [{machine % other}]")
    with pytest.raises(FleetError, match="was measured on a processor, the machine has L4"):
        planned(example, servers=lists)


def _many(servers: int) -> tuple[Speeds, np.ndarray]:
    generator = np.random.default_rng(0)
    draw = lambda low, high: generator.uniform(low, high, servers)  # noqa: E731
    ones = np.ones(servers)
    speeds = Speeds(
        per_second={kind: draw(1e12, 1e15) for kind in KINDS},
        layer_s={kind: draw(0, 1e-4) for kind in KINDS},
        parameter_s=dict.fromkeys(KINDS, 0 * ones),
        error=dict.fromkeys(KINDS, ones),
        memory_bytes=draw(8e9, 80e9),
        memory_factor=ones,
        memory_error=0 * ones,
        start_bytes=1e9 * ones,
        calibrated=ones > 2,
    )
    return speeds, draw(0.1, 30)


def test_the_plan_of_many_servers_and_pairs_is_vectorised(example: Path, plan: Plan):
    """5,000 × 50 take about half a second; a tenth of them is enough for a test."""
    request = Request.from_yaml(example).model_copy(update={"limits": Limits()})
    pairs = [plan.possible[n % len(plan.possible)] for n in range(10)]
    speeds, prices = _many(2500)
    predictions = predict(pairs, speeds, prices, request.workload)
    (group,) = choose(request, predictions, predictions.memory)
    assert group.feasible == predictions.memory.sum() > 20_000
    table = objective_table(predictions, OBJECTIVES)
    chosen = table[group.chosen.pair, group.chosen.server]
    others = table[predictions.memory]
    assert not ((others <= chosen).all(axis=1) & (others < chosen).any(axis=1)).any()
