"""A chosen backbone that learns on, alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import acme_fleet
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import World, load_world
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.storage import read_tensors
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
    summary = acme_fleet.customize(fleet, prepared, resume=True)
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
