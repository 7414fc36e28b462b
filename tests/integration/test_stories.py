"""Every story of the paper's evaluation, from end to end on the embedded data."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "experiments"))

from reproduction.bench import Bench, Options
from reproduction.frame import run
from reproduction.page import STORIES


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories share what they have in common: one run of the fleet serves all."""
    return tmp_path_factory.mktemp("pieces")


_SLOW = {"fig13"}  # fig7a on other data


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in STORIES]
)
def test_smoke(name: str, pieces: Path, tmp_path: Path):
    story = importlib.import_module(name).STORY
    result = run(story, Options("smoke", 1, None, pieces, tmp_path))
    assert story.name == name
    assert result["headline"]
    assert (tmp_path / f"{name}-smoke.svg").stat().st_size > 1000
    for goal in result["goals"]:
        assert isinstance(goal["met"], bool)
        assert goal["text"]


def test_training_what_is_recovered_leaves_the_elastic_model_alone(pieces: Path):
    """Rivals start from it, and train it."""
    bench = Bench(Options("smoke", 1, None, pieces, pieces), 0, "fig7a")
    whole = bench.elastic.classifier
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    trainable = [p.requires_grad for p in whole.parameters()]
    model = bench.recovered(0.5, 2)
    assert not any(p.requires_grad for p in model.parameters())
    for parameter in model.requires_grad_(True).parameters():
        parameter.data.add_(1.0)
    assert [p.requires_grad for p in whole.parameters()] == trainable
    assert all((value == before[name]).all() for name, value in whole.state_dict().items())
    head = bench.recovered(0.5, 2).head.weight
    assert (head + 1 == model.head.weight).all()
