"""Learning from what the student itself writes: what is refused, and one run by TRL."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acme_fleet.errors import FleetError
from acme_fleet.stratos import on_policy
from acme_fleet.stratos.budget import Budget, Meter
from acme_fleet.stratos.distill import distil
from acme_fleet.stratos.request import OnPolicy, Request
from acme_fleet.stratos.run_directory import DistillSummary
from tiny_distillation import asked, lines, task, teacher, untrained


def covered_task(folder: Path, weights: Path, **changes: Any) -> Path:
    """``last``, from the teacher's replies."""
    learning = {"made": None, "replies": "replies.jsonl", "on_policy": {"steps": 4}}
    path = task(folder, weights, **{"learning": learning} | changes)
    rows = asked("last", 120, 5)
    for name, part in (("train", rows[:80]), ("test", rows[80:]), ("replies", rows[:80])):
        lines(part, folder / f"{name}.jsonl")
    return path


def run_of(path: Path, **options: Any) -> DistillSummary:
    return distil(Request.from_yaml(path), path.parent / "run", **options)


def test_what_it_cannot_be_done_with_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights = untrained(tmp_path / "teacher")
    wrong: dict[str, dict[str, Any]] = {
        "the pair has no vocabulary in common": {"distillation": "answers"},
        "the teacher reads the student's prompt": {"data": {"student_prompt": "{question}"}},
    }
    for told, changes in wrong.items():
        with pytest.raises(FleetError, match=rf"learning\.on_policy: {told}"):
            run_of(covered_task(tmp_path / "task", weights, **changes))
    path = task(tmp_path / "task", weights, learning={"on_policy": {}})
    with pytest.raises(FleetError, match=r"it asks the questions of learning\.replies"):
        run_of(path)
    monkeypatch.setattr(on_policy, "find_spec", lambda name: None)
    with pytest.raises(FleetError, match=r'needs TRL: pip install "acme-fleet\[distill\]"'):
        run_of(covered_task(tmp_path / "task", weights))
    assert not (tmp_path / "task" / "run" / "choice.json").exists()


@pytest.mark.slow
def test_a_student_learns_from_its_own_answers_within_the_budget(tmp_path: Path):
    pytest.importorskip("trl", reason="pip install trl")
    importlib.import_module("datasets")
    weights = teacher(tmp_path / "teacher")
    settings = {"steps": 6, "batch_size": 20, "learning_rate": 0.003}
    learning = {"made": None, "replies": "replies.jsonl", "on_policy": settings}
    changes: dict[str, Any] = {"learning": learning, "workload": {"epochs": 1}}
    found = run_of(covered_task(tmp_path / "task", weights, **changes))
    assert found.planned_steps == found.steps == 4 + 6
    before = load_file(tmp_path / "task" / "run" / "on-policy" / "model.safetensors")
    assert before
    assert found.validation.student < found.validation.start
    plain = run_of(
        covered_task(
            tmp_path / "plain", weights, **changes | {"learning": learning | {"on_policy": None}}
        )
    )
    assert found.validation.student <= plain.validation.student
    ticks = itertools.count()
    meter = Meter(tmp_path / "spent.json", Budget(3600, 30.0), lambda: float(next(ticks)))
    prompts = [f"{row['question']} =>" for row in asked("last", 40, 6)]
    made = on_policy.learn_on_policy(
        tmp_path / "task" / "run" / "on-policy",
        str(weights),
        prompts,
        OnPolicy(steps=50, batch_size=10),
        *(2, 0, torch.device("cpu"), meter, 1.0),
    )
    assert 0 < made < 30
    assert meter.spent().training <= 30
