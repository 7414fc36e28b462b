"""Numbers of training: decided by the processor and a measured step, kept, and overridden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acme_fleet.config.training import Training
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training import precision
from acme_fleet.training.loop import fit
from acme_fleet.training.precision import mixed_precision, training_numbers

_CPU = torch.device("cpu")


class _Step:
    """A step with a loss, on a clock that it turns itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gain: float, *, hardware: bool) -> None:
        self.module, self.dtypes, self._gain = nn.Linear(4, 4), list[torch.dtype](), gain
        self._now = 0.0
        monkeypatch.setattr(precision.time, "perf_counter", lambda: self._now)
        monkeypatch.setattr(precision, "has_bfloat16", lambda device: hardware)

    def __call__(self) -> Tensor:
        logits = self.module(torch.ones(2, 4))
        self.dtypes.append(logits.dtype)
        self._now += 1.0 if logits.dtype == torch.float32 else 1.0 / self._gain
        return logits.float().sum()


@pytest.mark.parametrize(
    ("gain", "hardware", "expected"),
    [(2.0, True, "bfloat16"), (1.1, True, "float32"), (9.0, False, "float32")],
)
def test_auto_takes_bfloat16_where_a_measured_step_gains(
    gain: float, hardware: bool, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step, path = _Step(monkeypatch, gain, hardware=hardware), tmp_path / "compute.json"
    assert training_numbers("auto", step.module, step, path) == expected
    assert (torch.bfloat16 in step.dtypes) == hardware
    assert step.module.weight.grad is None
    # Kept, whatever the next measurement says.
    later = _Step(monkeypatch, 1 / gain, hardware=not hardware)
    assert training_numbers("auto", later.module, later, path) == expected
    assert not later.dtypes


@pytest.mark.parametrize("told", ["float32", "bfloat16"])
def test_a_setting_is_not_measured(
    told: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = _Step(monkeypatch, 2.0, hardware=True)
    assert training_numbers(told, step.module, step, tmp_path / "compute.json") == told
    assert not step.dtypes
    assert not list(tmp_path.iterdir())


def test_matrix_products_are_in_the_numbers_that_are_asked() -> None:
    module, x = nn.Linear(4, 4), torch.ones(2, 4)
    for numbers, dtype in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        with mixed_precision(_CPU, numbers):
            assert module(x).dtype == dtype


def test_training_in_bfloat16_keeps_weights_in_float32_and_learns(
    make_classifier: Any, make_samples: Any
) -> None:
    samples, plan = make_samples(32), Training(epochs=2, batch_size=16, learning_rate=1e-2)

    def trained(numbers: Any) -> dict[str, Tensor]:
        model = make_classifier()
        draw = torch.Generator().manual_seed(0)
        fit(CLASSIFICATION, model, samples, plan, draw, numbers=numbers)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    start, plain, mixed = make_classifier().state_dict(), trained("float32"), trained("bfloat16")
    for first, again in ((plain, trained(None)), (mixed, trained("bfloat16"))):
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    moved = sum(float((plain[name] - start[name]).square().sum()) for name in plain)
    apart = sum(float((plain[name] - mixed[name]).square().sum()) for name in plain)
    assert 0 < apart < moved
