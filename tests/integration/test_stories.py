"""Every story of the paper's evaluation, from end to end on the embedded data."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "experiments"))

from reproduction.bench import Options
from reproduction.frame import run
from reproduction.page import STORIES


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories share what they have in common: one run of the fleet serves all."""
    return tmp_path_factory.mktemp("pieces")


@pytest.mark.parametrize("name", STORIES)
def test_smoke(name: str, pieces: Path, tmp_path: Path):
    story = importlib.import_module(name).STORY
    result = run(story, Options("smoke", 1, None, pieces, tmp_path))
    assert story.name == name
    assert result["headline"]
    assert (tmp_path / f"{name}-smoke.svg").stat().st_size > 1000
    for goal in result["goals"]:
        assert isinstance(goal["met"], bool)
        assert goal["text"]
