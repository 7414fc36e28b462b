"""``acme explain``: a table made by hand, and every table against one match at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.backbone import Rule
from acme_fleet.config.devices import Energy
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.energy import worst_energy_j
from acme_fleet.inspection.explain import compare_matching, explain_device
from acme_fleet.runs.summary import Candidate, ClusterSummary, ReferenceSummary, Summary, Traffic
from acme_fleet.selection.choice import match

PATCHES = 16
# width, depth, loss, bytes. The third is dominated by the second. The window is .1.
BY_HAND = [(0.5, 1, 1.0, 50), (0.5, 2, 0.5, 100), (1.0, 1, 0.6, 150), (1.0, 2, 0.1, 200)]
FAST, SLOW = Energy(), Energy(latency_s=1.0, power_w=9.0)


def write_run(
    path: Path,
    rows: list[tuple[float, int, float, int]],
    devices: dict[str, list[tuple[int, Energy]]],
    window: float = 0.1,
    rule: Rule = "nearest",
) -> Fleet:
    """A finished run: one cluster for each name, its devices ``name-0``, ``name-1``, …"""
    fleet = Fleet.parse(
        {
            "selection": {"performance_window": window, "rule": rule},
            "clusters": [
                {
                    "name": name,
                    "devices": [
                        {"name": f"{name}-{n}", "storage": storage, "energy": energy.model_dump()}
                        for n, (storage, energy) in enumerate(members)
                    ],
                }
                for name, members in devices.items()
            ],
        }
    )
    path.mkdir()
    (path / "fleet.yaml").write_text(fleet.to_yaml())
    clusters = [make_cluster(fleet, number, rows) for number in range(len(fleet.clusters))]
    Summary(
        name="x",
        seed=0,
        seconds={},
        reference=ReferenceSummary(params=1, patches=PATCHES, size_bytes=1, accuracy=0.5),
        selection=fleet.selection,
        clusters=clusters,
        devices=[],
        traffic=Traffic(**dict.fromkeys(Traffic.model_fields, 1)),
    ).write(path / "summary.json")
    return fleet


def make_cluster(
    fleet: Fleet, number: int, rows: list[tuple[float, int, float, int]]
) -> ClusterSummary:
    cluster, settings = fleet.clusters[number], fleet.selection
    widths, depths, losses, sizes = (np.array(column) for column in zip(*rows, strict=True))
    energies = worst_energy_j([d.energy for d in cluster.devices], widths, depths, PATCHES)
    limit = min(device.storage for device in cluster.devices)
    table = np.column_stack([losses, energies, sizes])
    window, rule = settings.performance_window, settings.rule
    found = match(table, sizes, limit, window, cluster.name, rule)
    candidates = [
        Candidate(
            width=width,
            depth=depth,
            loss=loss,
            accuracy=1 - loss / 2,
            energy_j=energies[row],
            size_bytes=size,
            feasible=row in found.feasible,
            on_front=row in found.front,
            chosen=row == found.chosen,
        )
        for row, (width, depth, loss, size) in enumerate(rows)
    ]
    return ClusterSummary(
        name=cluster.name,
        width=candidates[found.chosen].width,
        depth=candidates[found.chosen].depth,
        storage_limit_bytes=limit,
        candidates=candidates,
        feasible=len(found.feasible),
        front=len(found.front),
        header="",
        genotype={},
        device_names=[device.name for device in cluster.devices],
        similarity=[],
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", BY_HAND, {"n": [(110, FAST), (250, SLOW)], "s": [(500, FAST)]})
    return tmp_path / "run"


def test_by_hand(run: Path) -> None:
    found = explain_device(run, "n-1")
    assert found.smallest.name == "n-0"
    assert [found.verdict(row) for row in range(4)] == [
        "front, loss above 0.6000",
        f"chosen, distance {found.distances[1]:.3f}",
        "infeasible by 40 B",
        "infeasible by 90 B",
    ]
    assert list(found.distances) == [1]
    # At 150 bytes the third fits too, which is worse than the second; at 200 comes the best.
    assert [(option.limit_bytes, option.chosen) for option in found.larger] == [(150, 1), (200, 3)]
    assert (found.alone.limit_bytes, found.alone.chosen) == (250, 3)
    # One layer's worth (w·d = 1) on top of 9 W and 16 patches of 10 mW, and on top of 1 s.
    assert found.own_energy_j[1] == pytest.approx((9 + 0.5 + 0.16) * (1 + 0.005))


def test_dominated_candidate_says_by_whom_and_all_fit(run: Path) -> None:
    found = explain_device(run, "s-0")
    assert found.verdict(2) == "dominated by w 0.5, d 2"
    assert found.larger == []
    assert found.alone.chosen == found.match.chosen == 3


def test_what_each_matching_buys(run: Path) -> None:
    choices = compare_matching(run)
    assert [choice.device.name for choice in choices] == ["n-0", "n-1", "s-0"]
    assert [(c.cluster.size_bytes, c.alone.size_bytes) for c in choices] == [
        (100, 100),
        (100, 200),
        (200, 200),
    ]
    assert choices[1].cluster_energy_j > choices[0].cluster_energy_j  # the same model elsewhere


@pytest.mark.parametrize("rule", ["nearest", "literal"])
@pytest.mark.parametrize("seed", range(3))
def test_random_tables_equal_one_match_at_a_time(tmp_path: Path, seed: int, rule: Rule) -> None:
    random = np.random.default_rng(seed)
    grid = [(w, d) for w in (0.25, 0.5, 0.75, 1.0) for d in (1, 2, 3)]
    rows = [(w, d, float(random.uniform(0, 1)), int(100 * w * d)) for w, d in grid]
    members = [
        (int(random.integers(30, 350)), Energy(power_w=float(random.uniform(0, 9))))
        for _ in range(5)
    ]
    fleet = write_run(tmp_path / "run", rows, {"n": members[:3], "s": members[3:]}, 0.3, rule)
    summary = Summary.read(tmp_path / "run" / "summary.json")
    choices = {choice.device.name: choice for choice in compare_matching(tmp_path / "run")}
    for cluster, group in zip(summary.clusters, fleet.clusters, strict=True):
        table = np.array([(c.loss, c.energy_j, c.size_bytes) for c in cluster.candidates])
        for device in group.devices:
            found = explain_device(tmp_path / "run", device.name)
            assert cluster.candidates[found.match.chosen].chosen
            assert choices[device.name].alone == cluster.candidates[found.alone.chosen].model_copy(
                update={
                    name: getattr(choices[device.name].alone, name)
                    for name in ("energy_j", "feasible", "on_front", "chosen")
                }
            )
            for option in found.larger:
                again = match(table, table[:, 2], option.limit_bytes, 0.3, "c", rule)
                assert option.chosen == again.chosen
                assert option.limit_bytes > cluster.storage_limit_bytes
            words = [found.verdict(row) for row in range(len(rows))]
            assert sum(word.startswith("chosen") for word in words) == 1
            assert sum("infeasible" in word for word in words) == len(rows) - cluster.feasible
            on_front = [row for row, word in enumerate(words) if word[:5] in ("chose", "front")]
            assert on_front == found.match.front.tolist()


def test_command(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = CliRunner().invoke(app, ["explain", str(run), "--device", "n-1"])
    assert shown.exit_code == 0, shown.output
    for words in (
        "Limit: 110 bytes, the storage of n-0; n-1 stores 250",
        "infeasible by 40 B",
        "γ_p = 0.1",
        "rule nearest",
        "first change",
        "n-1 alone",
    ):
        assert words in " ".join(shown.output.split())
    shown = CliRunner().invoke(app, ["explain", str(run)])
    assert shown.exit_code == 0, shown.output
    assert "for each device" in shown.output


def test_the_window_that_gave_up_loss_is_named(tmp_path: Path) -> None:
    for window, named in ((0.1, False), (1.0, True)):
        run = tmp_path / f"run-{window}"
        write_run(run, BY_HAND, {"s": [(500, SLOW)]}, window)
        shown = CliRunner().invoke(app, ["explain", str(run), "--device", "s-0"])
        told = " ".join(shown.output.split())
        assert ("a smaller selection.performance_window would choose" in told) == named


def test_losses_that_a_trial_leaves_larger_have_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_run(path, BY_HAND, {"s": [(500, SLOW)]})
    summary = Summary.read(path / "summary.json")
    (cluster,) = summary.clusters

    def shown(*after: float | None) -> str:
        candidates = [
            one.model_copy(update={"recovered_loss": None if grown is None else one.loss + grown})
            for one, grown in zip(cluster.candidates, after, strict=True)
        ]
        clusters = [cluster.model_copy(update={"candidates": candidates})]
        summary.model_copy(update={"clusters": clusters}).write(path / "summary.json")
        done = CliRunner().invoke(app, ["explain", str(path), "--device", "s-0"])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    told = shown(0.2, None, None, 0.0)
    assert "2 shapes spread over the front were tried" in told
    assert "Losses of w, d = 0.5, 1 have grown: a training begins anew" in told
    assert "w, d = 1, 2 has nobody to learn from and stays as it was." in told
    assert "have grown" not in shown(-0.1, None, None, 0.0)
    assert "Limit: 500 bytes, the storage of s-0 itself." in told


def test_command_when_everything_fits(run: Path) -> None:
    shown = CliRunner().invoke(app, ["explain", str(run), "--device", "s-0"])
    assert "a larger limit buys nothing" in " ".join(shown.output.split())
