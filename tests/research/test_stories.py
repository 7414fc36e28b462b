"""Every story of the paper's evaluation, from end to end on the embedded data."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.training.loop import fit
from acme_research.ablations import personalisation, personalisation_fleets
from acme_research.frame.bench import Bench, Options
from acme_research.frame.page import STORIES
from acme_research.frame.story import run
from acme_research.stories import fig9, fig11


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories share what they have in common: one run of the fleet serves all."""
    return tmp_path_factory.mktemp("pieces")


_FLEETS = [name for name in STORIES if not name.startswith("stratos")]
_SLOW = {"table1", "fig12", "fig13"}  # it searches several times; fig7a on other data


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs in fig11 and repetitions in fig9, which no scale's file decides."""
    monkeypatch.setattr(fig9, "DRAWS", 3)
    short = {"epochs": 1, "last_epochs": 1, "rounds": 1}
    methods = {name: replace(personalisation.METHODS[name], **short) for name in fig11.METHODS}
    monkeypatch.setattr(personalisation, "METHODS", methods)
    monkeypatch.setattr(personalisation_fleets, "fit", _fit_once)


def _fit_once(
    task: Any, module: Any, samples: Any, training: Training, *others: Any, **options: Any
) -> None:
    fit(task, module, samples, training.model_copy(update={"epochs": 1}), *others, **options)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in _FLEETS]
)
def test_smoke(name: str, pieces: Path, tmp_path: Path):
    story = importlib.import_module(f"acme_research.stories.{name}").STORY
    result = run(story, Options("smoke", 1, None, pieces, tmp_path))
    assert story.name == name
    assert result["headline"]
    assert (tmp_path / f"{name}-smoke.svg").stat().st_size > 1000
    for goal in result["goals"]:
        assert isinstance(goal["met"], bool)
        assert goal["text"]


def test_a_story_writes_its_result_and_picture(pieces: Path, tmp_path: Path):
    options = Options("smoke", 1, None, pieces, tmp_path)
    before = {path.name for path in pieces.glob("*.npz")}
    result = run(fig9.STORY, options)
    stored = json.loads((tmp_path / "fig9-smoke.json").read_text())
    assert stored == json.loads(json.dumps(result))
    means = stored["seeds"][0]["means"]
    # Greedy-Size is by its definition the largest; the choice by Eq. 13 cannot cost more energy.
    assert means["Greedy-Size"]["size"] >= max(row["size"] for row in means.values())
    assert means[fig9.OURS]["energy"] <= means[fig9.RIVAL]["energy"]
    assert (tmp_path / "fig9-smoke.svg").read_text().startswith("<?xml")
    assert {path.name for path in pieces.glob("*.npz")} == before, "another story's data"
    again = run(fig9.STORY, options)
    assert again["seeds"] == result["seeds"], "finished pieces are not computed again"


def test_training_what_is_recovered_leaves_the_elastic_model_alone(pieces: Path):
    """Rivals start from it, and train it."""
    bench = Bench(Options("smoke", 1, None, pieces, pieces), 0, "fig7a")
    whole = bench.elastic.classifier
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    trainable = [p.requires_grad for p in whole.parameters()]
    model = bench.recovered(Variant(0.5, 2))
    assert not any(p.requires_grad for p in model.parameters())
    for parameter in model.requires_grad_(True).parameters():
        parameter.data.add_(1.0)
    assert [p.requires_grad for p in whole.parameters()] == trainable
    assert all((value == before[name]).all() for name, value in whole.state_dict().items())
    head = bench.recovered(Variant(0.5, 2)).head.weight
    assert (head + 1 == model.head.weight).all()
