"""Rivals have the bytes and the rounding of what would ship."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from acme_fleet.config.devices import Cluster, Precision
from acme_fleet.models.backbone.precision import Int8Linear, rounded
from acme_fleet.seeding import seeded
from acme_research.frame.bench import Bench, Options
from acme_research.rivals.bounds import quantised, shipped_bytes
from acme_research.rivals.shapes import widest


def _cluster(*precisions: Precision) -> Cluster:
    device = {"name": "d", "storage": "100 kB", "precisions": precisions}
    return Cluster.model_validate({"name": "c", "devices": [device]})


def _bench(cluster: Cluster) -> Any:
    fleet = SimpleNamespace(
        backbone=SimpleNamespace(precisions=["float32", "int8", "int4"]), clusters=[cluster]
    )
    return SimpleNamespace(fleet=fleet, unprepared=fleet)


@pytest.mark.parametrize(
    ("able", "precision"),
    [(["float32"], "float32"), (["float32", "int8"], "int8"), (["int8", "int4"], "int4")],
)
def test_a_rival_is_rounded_to_the_smallest_precision_of_its_devices(
    able: list[Precision], precision: Precision
):
    with seeded(0):
        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=8,
            patch_size=4,
        )
        backbone = ViTModel(config, add_pooling_layer=False)
    before = copy.deepcopy(backbone.state_dict())
    cluster = _cluster(*able)
    bench = _bench(cluster)
    shipped = quantised(backbone, cluster, bench)
    expected = rounded(before, precision)
    for name, value in shipped.state_dict().items():
        assert torch.equal(value, expected[name])
        assert torch.equal(backbone.state_dict()[name], before[name]), "the given one is as it was"
    assert any(isinstance(part, Int8Linear) for part in shipped.modules()) == (precision == "int8")
    assert not any(isinstance(part, Int8Linear) for part in backbone.modules())
    plain = shipped_bytes(backbone, torch.nn.Identity(), _cluster("float32"), bench)
    share = shipped_bytes(backbone, torch.nn.Identity(), cluster, bench) / plain
    assert {"float32": 1, "int8": 0.25, "int4": 0.125}[precision] <= share
    assert share <= {"float32": 1, "int8": 0.6, "int4": 0.5}[precision]


def test_a_rival_from_scratch_is_wider_where_int8_ships(tmp_path: Path):
    bench = Bench(Options("smoke", 1, None, tmp_path, tmp_path), 0, "fig7a")

    def width(*precisions: Precision) -> int:
        fleet = _bench(_cluster(*precisions)).unprepared
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(vars(bench), "images", SimpleNamespace(channels=1, side=8, classes=10))
            patch.setitem(vars(bench), "unprepared", fleet)
            return widest("pvt", 100_000, bench) or 0

    assert 0 < width("float32") < width("float32", "int8") == width("int8", "int4")
