"""A chosen backbone that learns on, alone."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import acme_fleet
from acme_fleet.cli import app
from acme_fleet.cloud.backbones import Backbones
from acme_fleet.cloud.objectives import Grid, candidate_quality
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.data.partition import World, load_world
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import FleetError, QuorumError
from acme_fleet.inspection.explain import explain_device
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.storage import read_tensors
from acme_fleet.pipeline import customize
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.classification import CLASSIFICATION
from event_records import event_records


def _elastic(fleet: Fleet, world: World, path: Path) -> ElasticClassifier:
    classifier = untrained_reference(fleet, world.public, world.classes)
    classifier.load_state_dict(read_tensors(path)[0])
    return ElasticClassifier(classifier.requires_grad_(False).eval())


def test_recovery_brings_a_chosen_backbone_nearer_to_the_whole_one(
    tiny: Callable[..., Fleet], prepared: Path
):
    fleet = tiny(**{"backbone.distillation.recovery": {"epochs": 4, "learning_rate": 2e-3}})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    shutil.rmtree(prepared / "edges")  # what was searched was searched for another backbone
    summary = customize(fleet, prepared, resume=True)
    world, cloud = load_world(fleet), prepared / "cloud"
    shared, inputs = _elastic(fleet, world, cloud / "elastic.safetensors"), world.public.test.inputs
    whole = shared.run(shared.shape(shared.whole), inputs).logits
    small = [c for c in summary.clusters if c.variant != shared.whole]
    assert small
    for cluster in small:
        name = f"recovered-{cluster.variant.name}"
        alone = _elastic(fleet, world, cloud / f"{name}.safetensors")
        shape = shared.shape(cluster.variant)
        before, after = (F.mse_loss(m.run(shape, inputs).logits, whole) for m in (shared, alone))
        assert after < before
        sent = alone.extract(shape).state_dict()
        shipped = acme_fleet.load(prepared / "devices" / cluster.device_names[0])
        for key, value in shipped.get_submodule("backbone").state_dict().items():
            torch.testing.assert_close(value, sent[key])
    stages = [event.get("stage") for event in event_records(prepared / "events.jsonl")]
    chosen = {cluster.variant for cluster in small}
    assert [str(stage).startswith("recovered-") for stage in stages].count(True) == len(chosen)


def test_without_recovery_a_backbone_shares_its_weights(finished):
    assert not list((finished.path / "cloud").glob("recovered-*"))


@pytest.mark.parametrize("epochs", [0, -1, 1.5])
def test_recovery_takes_at_least_one_epoch(epochs: float, tiny: Callable[..., Fleet]):
    with pytest.raises(FleetError, match=r"recovery\.epochs"):
        tiny(**{"backbone.distillation.recovery": {"epochs": epochs}})


# --- choose after recovery --------------------------------------------------------------------

_TRIED: dict[str, object] = {
    "backbone.distillation.recovery": {"epochs": 5, "learning_rate": 3e-3},
    "backbone.precisions": ["float32", "int8"],
    "selection": {"performance_window": 0.01, "finalists": 2},
    "personalization.rounds": 1,
    "clusters": [
        {"name": "north", "devices": [{"name": "cam-1", "storage": "60 kB"}]},
        # The whole one does not fit, at any precision.
        {"name": "south", "devices": [{"name": "badge-1", "storage": "14.4 kB"}]},
    ],
}


@pytest.fixture(scope="module")
def tried(tiny: Callable[..., Fleet], finished: Any, tmp_path_factory: Any) -> Any:
    """A run that tries two shapes for each cluster, from the tiny fleet's elastic backbone."""
    fleet, path = tiny(**_TRIED), tmp_path_factory.mktemp("tried") / "run"
    return path, fleet, _from_elastic(finished.path, path, fleet)


def _from_elastic(source: Path, path: Path, fleet: Fleet) -> Summary:
    run = RunDirectory.create(path, fleet, resume=False)
    kept = shutil.ignore_patterns("candidates.json")  # of fewer precisions
    shutil.copytree(source / "cloud", run.cloud, ignore=kept)
    return customize(fleet, path, resume=True)


def test_the_choice_is_the_rules_among_those_that_were_tried(tried: Any) -> None:
    path, fleet, summary = tried
    world, cloud = load_world(fleet), path / "cloud"
    shared = _elastic(fleet, world, cloud / "elastic.safetensors")
    own = {shape.name for shape in _shapes(summary) if shape != shared.whole}
    assert {p.stem for p in cloud.glob("tried-*.safetensors")} == {f"tried-{n}" for n in own}
    for cluster in summary.clusters:
        known = [c for c in cluster.candidates if c.recovered_loss is not None]
        least = min(c.recovered_loss for c in known if c.feasible)
        (chosen,) = [c for c in cluster.candidates if c.chosen]
        assert chosen.feasible
        assert chosen.recovered_loss <= least + fleet.selection.performance_window
        for candidate in known:
            shape = candidate.variant.trained
            if shape == shared.whole:
                assert candidate.recovered_loss == candidate.loss
                continue
            alone = _elastic(fleet, world, cloud / f"tried-{shape.name}.safetensors")
            judged = candidate_quality(
                CLASSIFICATION,
                alone,
                Grid((candidate.variant,)),
                world.public.validation,
                lambda *_: None,
            )
            assert candidate.recovered_loss == pytest.approx(judged.losses[0], rel=1e-5)
            assert candidate.recovered_accuracy == pytest.approx(judged.scores[0])


def test_a_choice_after_recovery_is_explained(tried: Any) -> None:
    path, _, summary = tried
    for cluster in summary.clusters:
        for name in cluster.device_names:
            found = explain_device(path, name)
            assert cluster.candidates[found.match.chosen].chosen
            shown = CliRunner().invoke(app, ["explain", str(path), "--device", name])
            words = " ".join(shown.output.split())
            assert "shapes spread over the front were tried" in words
            assert "chosen of the tried, loss then" in words
    shown = CliRunner().invoke(app, ["explain", str(path)])
    assert "chosen after recovery" in " ".join(shown.output.split())
    assert "after a share of the recovery" in (path / "report.html").read_text()


def test_the_rest_of_the_recovery_goes_on_from_the_trial(tried: Any) -> None:
    """A device gets what was recovered to the end; the whole one has nobody to learn from."""
    path, fleet, summary = tried
    world, cloud = load_world(fleet), path / "cloud"
    whole = _elastic(fleet, world, cloud / "elastic.safetensors").whole
    chosen = {c.variant.trained for c in summary.clusters} - {whole}
    assert chosen
    names = {f"recovered-{shape.name}" for shape in chosen}
    assert {p.stem for p in cloud.glob("recovered-*.safetensors")} == names
    for shape in chosen:
        before, after = (
            read_tensors(cloud / f"{stage}-{shape.name}.safetensors")[0]
            for stage in ("tried", "recovered")
        )
        assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_trial_that_is_interrupted_goes_on(
    tried: Any, finished: Any, tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: Any
) -> None:
    path, fleet, _ = tried
    calls = itertools.count()
    measure = Backbones.quality_tried

    def stop(backbones: Backbones, *arguments: Any) -> Any:
        if next(calls) == 1:
            raise QuorumError("the power is cut")
        return measure(backbones, *arguments)

    monkeypatch.setattr(Backbones, "quality_tried", stop)
    with pytest.raises(QuorumError, match="the power is cut"):
        _from_elastic(finished.path, tmp_path / "run", fleet)
    monkeypatch.undo()
    customize(fleet, tmp_path / "run", resume=True)
    for device in fleet.devices:
        model = Path("devices", device.name, "model.safetensors")
        assert (tmp_path / "run" / model).read_bytes() == (path / model).read_bytes()


def test_one_finalist_is_chosen_before_recovery(prepared: Path, tiny: Callable[..., Fleet]) -> None:
    fleet = tiny(
        **{
            "backbone.distillation.recovery": {"epochs": 1, "learning_rate": 2e-3},
            "selection": {"finalists": 1},
        }
    )
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    shutil.rmtree(prepared / "edges")
    summary = customize(fleet, prepared, resume=True)
    assert not list((prepared / "cloud").glob("tried-*"))
    assert _shapes(summary) == set()


def _shapes(summary: Summary) -> set[Variant]:
    candidates = [c for cluster in summary.clusters for c in cluster.candidates]
    return {c.variant.trained for c in candidates if c.recovered_loss is not None}
