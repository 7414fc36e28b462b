"""The numbers that the cloud server trains with, in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.models.storage import read_tensors
from acme_fleet.pipeline import customize
from tiny_fleet import SHORT


def test_the_setting_decides_what_the_cloud_trains_with(
    tiny: Callable[..., Fleet], tmp_path: Path
) -> None:
    tensors = {}
    for compute in ("float32", "bfloat16"):
        fleet = tiny(**SHORT, compute=compute)
        fleet = fleet.model_copy(update={"clusters": fleet.clusters[:1]})
        summary = customize(fleet, tmp_path / compute)
        assert summary.compute == compute
        for name in ("reference", "elastic"):
            path = tmp_path / compute / "cloud" / f"{name}.safetensors"
            tensors[compute, name], _ = read_tensors(path)
    for name in ("reference", "elastic"):
        plain, mixed = tensors["float32", name], tensors["bfloat16", name]
        assert any(not torch.equal(plain[key], mixed[key]) for key in plain)
        assert all(value.isfinite().all() for value in mixed.values())


def test_unknown_numbers_are_refused(tiny: Callable[..., Fleet]) -> None:
    with pytest.raises(FleetError, match="compute"):
        tiny(compute="float16")
