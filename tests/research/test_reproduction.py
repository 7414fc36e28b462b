"""The stories' frame: intervals, pieces on disk, the page that is written from results."""

from __future__ import annotations

import copy
import importlib
import json
import sys
import tomllib
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import BertConfig, ViTConfig, ViTModel
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.devices import Cluster
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import FleetError
from acme_fleet.models.families import dimensions
from acme_fleet.simulation.probe_rival import measure_probe
from acme_research import cli
from acme_research.frame import page
from acme_research.frame.bench import SCALES, Bench, Options
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.places import RESEARCH
from acme_research.frame.probe import (
    ALONE,
    AVERAGED,
    ON_PUBLIC,
    PUBLIC,
    accuracies,
    of_devices,
    on_features,
    on_public,
    probe_over_seeds,
)
from acme_research.frame.settings import CONFIGS, read_config
from acme_research.frame.story import main
from acme_research.rivals import shapes as rivals
from acme_research.stories import contest, fig9, module_of
from tiny_fleet import tiny


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Options("smoke", 1, None, tmp_path, tmp_path), 0, "fig7a")


# --- figures over seeds -----------------------------------------------------------------------


def test_intervals_are_students():
    values = [0.61, 0.64, 0.70, 0.58]
    told = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert told["interval"] == pytest.approx([low, high])
    assert mean_interval([0.5])["interval"] is None
    assert text(told) == f"63.2 [{100 * low:.1f}, {100 * high:.1f}]"


def test_paired_differences_do_not_see_what_seeds_share():
    ours, theirs = [0.5, 0.7, 0.9], [0.48, 0.69, 0.89]
    told = paired(ours, theirs)
    assert told["mean"] == pytest.approx(0.04 / 3)
    assert told["p"] == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert told["interval"][0] < told["mean"] < told["interval"][1]
    assert "p" not in paired([1, 2], [1, 2])


# --- pieces -----------------------------------------------------------------------------------


def test_a_piece_is_computed_once(bench: Bench):
    calls = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"a": len(calls)}

    again = Bench(bench.options, 0, "fig9")
    assert [bench.piece("x/y", work), again.piece("x/y", work)] == [{"a": 1}, {"a": 1}]
    assert Bench(bench.options, 1, "fig9").piece("x/y", work) == {"a": 2}


def test_pieces_of_other_settings_are_not_taken(bench: Bench):
    other = Bench(bench.options, 0, "fig13")
    assert other.folder != bench.folder
    assert bench.folder.is_relative_to(bench.options.out)


@pytest.mark.parametrize(
    "path",
    sorted({*CONFIGS.glob("*.yaml")} - {*CONFIGS.glob("stratos-*.yaml")}),
    ids=lambda path: path.stem,
)
def test_every_scale_is_a_fleet(path: Path, tmp_path: Path):
    """Without its data: the settings alone must be those of a fleet."""
    story, _, scale = path.stem.rpartition("-")
    assert scale in SCALES
    bench = Bench(Options(scale, 1, None, tmp_path, tmp_path), 0, story or "fig1")
    assert bench.name == path.stem
    bench.extra.pop("files", None)
    if "pretraining" in bench.extra:
        assert bench.recipe().model.layers >= 6
        bench.extra.pop("pretraining")
    data = bench.settings()["fleet"]["data"]
    if data["source"] not in ("digits", "arrays"):
        data["train"] = ["somewhere"]
    if bench.extra.pop("checkpoint", None) or bench.extra.pop("reference", None):
        bench.settings()["fleet"]["reference"]["checkpoint"] = "somewhere"
    assert len(bench.fleet.clusters) >= 2


def test_a_scale_like_another_differs_in_what_it_says(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("x: {one: 1, two: {deep: [1, 2]}}\nkept: 5\n")
    (tmp_path / "b.yaml").write_text("like: a.yaml\nx: {two: {deep: [3]}, three: 3}\n")
    assert read_config(tmp_path / "b.yaml") == {
        "x": {"one": 1, "two": {"deep": [3]}, "three": 3},
        "kept": 5,
    }


@pytest.fixture(scope="module")
def twice_as_deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with twice the layers of smoke's reference, otherwise of its shape."""
    folder = tmp_path_factory.mktemp("vit")
    shape = read_config(CONFIGS / "smoke.yaml")["reference"]["model"]
    config = ViTConfig(
        hidden_size=shape["hidden_size"],
        num_hidden_layers=2 * shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["neurons"],
        image_size=12,
        patch_size=3,
        num_channels=1,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def test_a_checkpoint_takes_the_references_place(bench: Bench, twice_as_deep: str, tmp_path: Path):
    options = Options("smoke", 1, None, tmp_path, tmp_path, checkpoint=twice_as_deep)
    other = Bench(options, 0, "fig7a")
    assert other.folder != bench.folder
    assert other.fleet.reference.checkpoint == Path(twice_as_deep)
    for name, device in ((d.name, d) for c in other.fleet.clusters for d in c.devices):
        before = next(d for c in bench.fleet.clusters for d in c.devices if d.name == name)
        assert device.storage == 2 * before.storage
    assert other.world.public.train.inputs["pixel_values"].shape[-1] == 12
    model = untrained_reference(other.fleet, other.world.public, other.world.classes)
    assert dimensions(model.backbone.config).layers == 8


def test_rivals_see_the_images_as_a_checkpoint_takes_them(twice_as_deep: str, tmp_path: Path):
    colour = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (Path(twice_as_deep) / "preprocessor_config.json").write_text(json.dumps(colour))
    options = Options("smoke", 1, None, tmp_path, tmp_path, checkpoint=twice_as_deep)
    bench = Bench(options, 0, "fig7a")
    assert (bench.images.channels, bench.images.side, bench.images.classes) == (3, 12, 10)
    pixels = bench.world.public.test.inputs["pixel_values"][:2]
    assert rivals.make("pvt", 2, bench, 10)(pixels).shape == (2, 10)


def test_a_checkpoint_of_texts_is_refused(tmp_path: Path):
    BertConfig().save_pretrained(tmp_path)
    options = Options("smoke", 1, None, tmp_path, tmp_path, checkpoint=str(tmp_path))
    with pytest.raises(FleetError, match=r"--checkpoint: .* is a bert"):
        Bench(options, 0, "fig7a")
    with pytest.raises(FleetError, match=r"--checkpoint: .* are texts"):
        Bench(options, 0, "clinc150")


def test_a_checkpoint_does_not_write_over_the_scales_results(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(fig9.STORY, ["--checkpoint", "google/vit-base-patch16-224"])
    assert "--checkpoint needs --results" in capsys.readouterr().err


# --- rivals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", rivals.SHAPES)
def test_a_rival_is_as_wide_as_fits_and_learns(bench: Bench, shape: str):
    pixels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    limit = 400_000
    k = rivals.widest(shape, limit, bench)
    assert k is not None
    rival = rivals.make(shape, k, bench, 10)
    assert file_size(shapes_of(rival)) <= limit
    assert file_size(shapes_of(rivals.make(shape, k + 1, bench, 10))) > limit
    rival.train()(pixels).square().sum().backward()
    idle = [name for name, p in rival.named_parameters() if p.grad is None]
    assert not idle
    assert rivals.widest(shape, 2000, bench) is None


@pytest.mark.parametrize("shape", rivals.SHAPES)
def test_a_rival_answers_by_the_weights_that_it_has_now(bench: Bench, shape: str):
    """Weights are averaged, kept and loaded while it is evaluated in between."""
    pixels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rival = copy.deepcopy(rivals.make(shape, 4, bench, 10))
    other = copy.deepcopy(rival)
    for parameter in other.parameters():
        parameter.data.add_(0.01)
    with torch.no_grad():
        before, expected = rival(pixels), other(pixels)
        rival.load_state_dict(other.state_dict())
        torch.testing.assert_close(rival(pixels), expected)
    assert not torch.allclose(before, expected)


def test_a_rival_whose_package_is_missing_is_measured_once_it_is_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    cluster = bench.fleet.clusters[0]
    vars(bench)["summary"] = SimpleNamespace(clusters=[SimpleNamespace(name=cluster.name)])
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert contest._entries(bench, cluster, "federated") == {}
    assert not any(contest._entries(bench, cluster, "torch-pruning").values())
    figures = {name: [0.5, 0.75] for name in contest.FEDERATED} | {"size_bytes": 7}
    monkeypatch.setattr(contest, "federated", lambda *_: figures)
    entries = contest._entries(bench, cluster, "federated")
    assert entries == {
        name: {"accuracy": [0.5, 0.75], "size_bytes": 7} for name in contest.FEDERATED
    }


def test_clusters_of_one_limit_count_together():
    """At full scale five limits have two clusters each."""
    one = {"ACME": {"accuracy": [0.5], "size_bytes": 7}, "early exit": {"accuracy": [0.25]}}
    other = {"ACME": {"accuracy": [0.75, 1.0], "size_bytes": 9}}
    assert contest.together([one, other]) == {
        "ACME": {"accuracy": [0.5, 0.75, 1.0], "size_bytes": 9}
    }
    early_exit = {"accuracy": [0.25], "size_bytes": 5, "layers": 2}
    assert contest.together([{"early exit": early_exit}]) == {"early exit": early_exit}


def test_no_cluster_is_forgotten_and_no_rival_trained_twice():
    content = read_config(CONFIGS / "full.yaml")
    content.pop("experiment")
    clusters = [Cluster.model_validate(cluster) for cluster in content["clusters"]]
    bench: Any = SimpleNamespace(
        unprepared=SimpleNamespace(clusters=clusters), extra={"rivals": ["pvt", "dynabert"]}
    )
    groups = contest._by_limit(bench)
    assert sorted(c.name for group in groups.values() for c in group) == sorted(
        c.name for c in clusters
    )
    trainings, runs, contests = (stage([bench, bench, bench]) for stage in contest.STAGES)
    limits = len({contest.limit_of(c) for c in clusters})
    assert len(trainings) - 1 == limits == 5, "the reference, and PVT for each limit once"
    assert sum(part is contest._run for _, part in runs) == 3
    assert len(runs) - 3 == 3 * limits, "PVT for each seed and limit"
    assert not contests, "DynaBERT's recipe goes with the runs"


def test_rivals_are_pretrained_without_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Beside it, in other processes: whoever asked for the fleet would train it a second time."""
    bench = Bench(Options("smoke", 2, None, tmp_path, tmp_path), 0, "fig13")
    model = {"hidden_size": 32, "layers": 6, "heads": 4, "neurons": 64}
    training = {"epochs": 1, "batch_size": 64, "learning_rate": 0.001}
    bench.extra["pretraining"] = {"model": model, "patch_size": 2, "training": training}
    source = load_source(bench.unprepared.data)
    monkeypatch.setattr(Bench, "_pretrained", lambda _: pytest.fail("the reference was asked for"))
    monkeypatch.setattr(Bench, "pretraining_source", lambda _: source)
    (_, reference), *trainings = contest.STAGES[0]([bench, bench])
    assert len(trainings) == 2, "PVT for each limit"
    for _, training in trainings:
        training(bench)
    assert len(list(bench.pretrained_folder.rglob("*.safetensors"))) == 2
    with pytest.raises(pytest.fail.Exception, match="was asked for"):
        reference(bench)


# --- the first rival of every run ---------------------------------------------------------------


def _device(alone: float | None, averaged: float | None) -> Any:
    return SimpleNamespace(
        cluster="c",
        size_bytes=9,
        accuracy=0.5,
        accuracy_linear=0.5,
        accuracy_probe=alone,
        accuracy_probe_averaged=averaged,
    )


_KEPT = SimpleNamespace(size_bytes=8, size_bytes_int8=2)


def test_a_run_of_before_the_rival_was_measured_is_shown_without_it():
    old: Any = SimpleNamespace(devices=[_device(None, None)], probe=None)
    assert accuracies(old.devices) is None
    assert of_devices(old, old.devices) is None
    places = {"all": {"accuracy": {ALONE: 0.5}, "size_bytes": 8}}
    assert probe_over_seeds([places, None]) is None
    assert probe_over_seeds([]) is None


def test_the_rivals_means_are_over_devices_then_over_seeds():
    new: Any = SimpleNamespace(devices=[_device(0.5, 1.0), _device(0.75, 0.5)], probe=_KEPT)
    found = of_devices(new, new.devices)
    assert found is not None
    assert found["accuracy"] == {ALONE: 0.625, AVERAGED: 0.75}
    other = {"accuracy": {ALONE: 0.875, AVERAGED: 0.75}, "size_bytes": 6, "size_bytes_int8": 3}
    told = probe_over_seeds([{"all": found}, {"all": other}])
    assert told is not None
    assert told["places"]["all"]["accuracy"][ALONE] == mean_interval([0.625, 0.875])
    assert (told["places"]["all"]["size_bytes"], told["places"]["all"]["size_bytes_int8"]) == (8, 3)
    assert told["headline"].startswith(f"all: {ALONE} 75.0 [")


@pytest.mark.parametrize(("limit", "best"), [(1, "early exit"), (2, "probe")])
def test_the_whole_reference_competes_where_it_fits(limit: int, best: str):
    kept = contest.PROBES
    table = {
        contest.OURS: {"accuracy": [0.5, 0.5], "size_bytes": 1},
        "early exit": {"accuracy": [0.25, 0.5], "size_bytes": 1},
        **{name: {"accuracy": [0.75, 0.5], "size_bytes": 2} for name in kept.values()},
    }
    found = contest.find([{str(limit): table}])
    assert best in found.headline
    assert found.goals[0].met == (limit == 1)
    assert set(kept.values()) <= found.numbers[str(limit)].keys(), "shown in any case"


def test_a_contest_has_the_runs_rival(bench: Bench):
    cluster = bench.fleet.clusters[0]
    bench.extra["rivals"] = []
    device = _device(0.25, 0.5)
    device.cluster = cluster.name
    vars(bench)["summary"] = SimpleNamespace(devices=[device], probe=_KEPT)
    entries = contest._models(bench, cluster)
    assert entries[contest.PROBES[ALONE]] == {"accuracy": [0.25], "size_bytes": 2}
    assert entries[contest.PROBES[AVERAGED]] == {"accuracy": [0.5], "size_bytes": 2}
    device.accuracy_probe = None
    assert contest.PROBES[ALONE] not in contest._models(bench, cluster)


def test_headers_stand_beside_a_regression_on_the_pixels(bench: Bench):
    figures = on_public(bench)[ON_PUBLIC]
    assert figures["accuracy"][PUBLIC] > 0.8
    assert figures["size_bytes"] == figures["size_bytes_int8"] == 4 * 65 * 10


def test_kept_features_have_the_regression_of_a_run():
    """As ``acme_fleet.simulation.probe_rival`` has it, on what stands for a backbone's output."""
    world = load_world(tiny())
    pooled = [Splits(*map(_kept, vars(own).values())) for own in world.private.values()]
    found = on_features(pooled, _kept(world.public.train), len(world.classes), 100)
    expected = measure_probe(None, None, world, lambda done, of: None)
    assert found["accuracy"][ALONE] == list(expected.alone.values())
    assert found["accuracy"][AVERAGED] == list(expected.averaged.values())
    assert found["size_bytes"] == 100 + expected.size_bytes


def _kept(samples: Samples) -> Samples:
    inputs = {"pooled": samples.inputs["pixel_values"].flatten(1)}
    return Samples(inputs, samples.labels, samples.stored_bytes)


@pytest.mark.parametrize("name", page.STORIES)
def test_stories_without_the_rival_have_no_accuracy_of_a_model(name: str):
    module = importlib.import_module(f"acme_research.stories.{module_of(name)}")
    assert (module.STORY.probe is None) == (name in page.NO_PROBE)


# --- the page ---------------------------------------------------------------------------------


def _result(**changes: Any) -> dict[str, Any]:
    goal = {"text": "as good as it gets", "value": 1.0, "met": False, "tried": "much"}
    base = {"name": "fig9", "scale": "small", "summary": "s", "paper": "p", "headline": "h"}
    return {**base, "goals": [goal], "seeds": [1, 2, 3], "date": "2026-11-21T", **changes}


def test_the_page_says_first_what_is_missed():
    told = page.render([_result()])
    missed = told.index("as good as it gets")
    assert told.index("Goals that are missed") < missed < told.index("Goals that are reached")
    assert "Tried: much" in told
    assert "fig7a" in told[missed : told.index("Goals that are reached")], "what is not measured"
    reached = page.render([_result(goals=[{**_result()["goals"][0], "met": True}])])
    assert reached.index("Goals that are reached") < reached.index("as good as it gets")
    smoke = page.render([_result(scale="smoke")])
    assert "as good as it gets" not in smoke


def test_the_page_shows_the_rival_or_that_it_was_not_measured():
    probe = {"headline": "all devices: 91 %", "places": {}}
    assert "| the probe, small | all devices: 91 % |" in page.render(
        [_result(name="fig7a", probe=probe)]
    )
    assert "| the probe, small | not measured then |" in page.render([_result(name="fig7a")])
    assert "the probe, small" not in page.render([_result(name="fig9")])


def test_too_few_seeds_are_not_reported(tmp_path: Path):
    (tmp_path / "fig9-small.json").write_text(json.dumps(_result(seeds=[1, 2])))
    assert page.read_results(tmp_path) == []
    (tmp_path / "fig9-small.json").write_text(json.dumps(_result()))
    assert [r["name"] for r in page.read_results(tmp_path)] == ["fig9"]


def test_the_page_is_that_of_the_results():
    assert page.PAGE.read_text() == page.render(page.read_results())


# --- acme reproduce ---------------------------------------------------------------------------


@pytest.fixture
def as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that the package declares, though it may be on the path alone."""
    project = tomllib.loads((RESEARCH / "pyproject.toml").read_text())["project"]
    (group, declared), *others = project["entry-points"].items()
    assert group == "acme_fleet.commands"
    assert not others
    entries = [EntryPoint(name, value, group) for name, value in declared.items()]
    monkeypatch.setattr("acme_fleet.cli.added.entry_points", lambda group: entries)


@pytest.mark.usefixtures("as_installed")
def test_reproduce_lists_the_stories():
    told = CliRunner().invoke(app, ["reproduce"])
    assert told.exit_code == 0
    assert [line.split()[0] for line in told.output.splitlines()] == list(page.STORIES)


@pytest.mark.usefixtures("as_installed")
def test_reproduce_names_what_is_wrong():
    told = CliRunner().invoke(app, ["reproduce", "fig99"])
    assert told.exit_code == 2
    assert "no story fig99" in told.output


@pytest.mark.usefixtures("as_installed")
def test_reproduce_hands_options_on(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []

    class _Story(nullcontext):
        def __init__(self, command: list[str]) -> None:
            super().__init__(self)
            seen.append(command)
            self.heard = False

        def wait(self) -> int:
            if not self.heard:
                self.heard = True
                raise KeyboardInterrupt  # the terminal tells both; the story ends by itself
            return 3

    monkeypatch.setattr(cli.subprocess, "Popen", _Story)
    arguments = ["reproduce", "fig9", "--scale", "small", "--out", "here"]
    assert CliRunner().invoke(app, arguments).exit_code == 3
    assert seen[0][1:] == [
        *("-m", "acme_research.stories", "fig9"),
        *("--scale", "small", "--seeds", "3", "--out", "here"),
    ]


@pytest.mark.parametrize("place", ["tpu", "cuda"])
def test_a_story_is_not_begun_where_it_cannot_be_trained(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(fig9.STORY, ["--device", place, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert f"--device: {place}" in capsys.readouterr().err.replace("'", "")
    assert not (tmp_path / "out").exists()
