"""The numbers that the cloud server trains with, in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import acme_fleet
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError
from acme_fleet.models.storage import read_tensors


def _references(tiny: Callable[..., Fleet], folder: Path, *told: str) -> list[dict[str, Tensor]]:
    """The reference and the elastic backbone of a run for each setting, tensor by tensor."""
    found = []
    for number, compute in enumerate(told):
        fleet = tiny(compute=compute, **{"personalization.rounds": 1, "search.steps": 1})
        out = folder / str(number)
        summary = acme_fleet.customize(fleet, out)
        assert summary.compute == compute
        names = ("reference", "elastic")
        tensors = [read_tensors(out / "cloud" / f"{name}.safetensors")[0] for name in names]
        found.append({f"{i}.{k}": v for i, each in enumerate(tensors) for k, v in each.items()})
    return found


def test_the_setting_decides_what_the_cloud_trains_with(
    tiny: Callable[..., Fleet], finished: Any, tmp_path: Path
) -> None:
    mixed, again = _references(tiny, tmp_path, "bfloat16", "bfloat16")
    assert all(torch.equal(mixed[key], again[key]) for key in mixed)
    plain, _ = read_tensors(finished.path / "cloud" / "reference.safetensors")
    assert any(not torch.equal(plain[key], mixed[f"0.{key}"]) for key in plain)
    assert all(value.isfinite().all() for value in mixed.values())


def test_unknown_numbers_are_refused(tiny: Callable[..., Fleet]) -> None:
    with pytest.raises(FleetError, match="compute"):
        tiny(compute="float16")
