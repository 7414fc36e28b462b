"""A distillation from data to a marked student: what it learns, keeps, costs, and refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.errors import FleetError, RunError
from acme_fleet.models.backbone.precision import rounded
from acme_fleet.report.live.watch import Watched
from acme_fleet.stratos.distill import distil
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.run_directory import DistillDirectory, DistillSummary
from acme_fleet.stratos.students import load_model
from acme_fleet.stratos.teacher import Writer
from tiny_distillation import SHAPE, asked, covered, lines, save_tokenizer, task, teacher, untrained

_CPU = torch.device("cpu")
_REPLAY = {"replay": "replay.jsonl", "replay_share": 0.3}


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, taught_by: Path) -> Path:
    """The directory of a run without interruption, with replay and logits."""
    folder = tmp_path_factory.mktemp("whole")
    run_of(task(folder, taught_by, learning=_REPLAY, limits={"min_accuracy": 0.9}))
    return folder / "run"


def run_of(path: Path, **options: Any) -> DistillSummary:
    return distil(Request.from_yaml(path), path.parent / "run", **options)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def slow_clock(step_s: float) -> Callable[[], float]:
    """Seconds that pass by with every look at it."""
    ticks = itertools.count()
    return lambda: step_s * next(ticks)


def covered_share(folder: Path) -> float:
    """Share of new questions of the covered task that a model answers right."""
    rows, writer = asked("last", 40, 3), Writer(folder, "model", _CPU)
    prompts = [writer.tokens(f"{row['question']} =>") for row in rows]
    told = [writer.text(answer) for answer in writer.write(prompts, 2)]
    return sum(reply == row["answer"] for reply, row in zip(told, rows, strict=True)) / len(rows)


def test_a_student_learns_what_its_teacher_cannot_and_keeps_what_is_replayed(
    whole: Path, tmp_path: Path, taught_by: Path
):
    summary = DistillSummary.read(whole / "summary.json")
    assert summary.teacher.right <= 0.3 * summary.teacher.asked
    assert summary.student.right >= 0.9 * summary.student.asked
    assert summary.student.low < summary.student.right / summary.student.asked
    assert summary.student.asked == 36
    assert summary.texts == {"replies": 0, "made": 180, "replay": 77}
    assert summary.replayed is not None
    assert summary.chosen.by == "logits"
    assert (summary.ended_by, summary.steps) == ("epochs", summary.planned_steps)
    assert summary.training_usd == pytest.approx(summary.training_s)  # at 3600 USD/h
    for served in (summary.served, summary.taught):
        assert 0 < served.first_p50_s < served.p50_s <= served.p95_s
        assert served.answers == 20
        assert served.usd_per_thousand(3600) == pytest.approx(1000 * served.mean_s)
    assert len(summary.examples) == 5
    for each in summary.examples:
        for answered in (each.student, each.start, each.teacher):
            assert answered.right == (answered.text == each.answer)
    assert covered_share(taught_by) >= 0.9
    assert covered_share(whole / "student") >= 0.9
    forgot = run_of(task(tmp_path, taught_by))
    assert forgot.replayed is None
    assert forgot.student.right >= 0.9 * forgot.student.asked
    assert covered_share(tmp_path / "run" / "student") <= 0.6


def test_who_watches_sees_the_pair_the_time_and_the_marks(whole: Path):
    shown, summary = Watched(whole, "run").shown(), DistillSummary.read(whole / "summary.json")
    assert (shown["kind"], shown["status"], shown["now"]) == ("distill", "finished", [])
    assert shown["chosen"]["student"] == summary.chosen.student
    assert shown["spent"]["training_s"] == pytest.approx(summary.training_s)
    assert shown["usd"] == pytest.approx(summary.training_usd + summary.evaluation_usd, rel=0.1)
    assert shown["trained"]["steps"] == summary.steps
    assert shown["result"]["student"]["right"] == summary.student.right


def test_a_finished_run_is_deployed_and_served(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def acme(*words: str | Path) -> Any:
        return CliRunner().invoke(app, ["distill", *map(str, words)], env={"COLUMNS": "200"})

    told = acme("deploy", whole, "--out", tmp_path / "serving")
    assert told.exit_code == 0, told.output
    assert "nothing was started" in told.output
    assert str(whole / "student") in (tmp_path / "serving" / "vllm.sh").read_text()
    served = []
    monkeypatch.setattr("acme_fleet_runtime.server.serve", lambda *given: served.append(given))
    told = acme("serve", whole, "--port", "0")
    assert told.exit_code == 0, told.output
    assert "95 of 100 answers took at most" in told.output
    writer, host, port, token, _ = served[0]
    assert (writer.manifest.name, host, port, token) == ("following", "127.0.0.1", 0, None)
    for command in (("serve",), ("deploy", "--out", tmp_path / "more")):
        told = acme(*command, tmp_path / "serving")
        assert told.exit_code != 0
        assert "Traceback" not in told.output


def test_the_student_is_a_plain_folder_with_the_same_function(whole: Path):
    assert {each.dtype for each in weights(whole).values()} == {torch.float16}
    plain = AutoModelForCausalLM.from_pretrained(whole / "student", dtype=torch.float32)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert (plain.config.num_key_value_heads, plain.config.intermediate_size) == (1, 32)
    ids = torch.tensor([[1, 5, 15, 16, 7, 6]])
    with torch.no_grad():
        ours = load_model(whole / "student")(input_ids=ids, attention_mask=torch.ones_like(ids))
        torch.testing.assert_close(plain(input_ids=ids).logits.transpose(1, 2), ours)


def test_interrupted_in_an_epoch_and_resumed_it_is_the_same_student(
    whole: Path, tmp_path: Path, taught_by: Path
):
    path = task(tmp_path, taught_by, learning=_REPLAY, limits={"min_accuracy": 0.9})
    looks = itertools.count()

    def clock() -> float:
        if next(looks) == 80:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        run_of(path, clock=clock)
    assert (tmp_path / "run" / "epochs.safetensors").exists()
    assert not (tmp_path / "run" / "student").exists()
    with pytest.raises(RunError, match=r"go on with it: acme distill run .*task\.yaml .*--resume"):
        run_of(path)
    with pytest.raises(RunError, match="is not finished; go on with it: acme distill run"):
        DistillDirectory.open(tmp_path / "run").finished()
    resumed = run_of(path, resume=True)
    once = DistillSummary.read(whole / "summary.json")
    assert (resumed.validation, resumed.student) == (once.validation, once.student)
    mine, theirs = weights(tmp_path / "run"), weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_is_marked_is_what_is_written_at_the_precision(tmp_path: Path, taught_by: Path):
    changes = {"student_precision": "int4", "epochs": 1}
    limits = {"max_p95_latency_ms": 60_000}
    summary = run_of(task(tmp_path, taught_by, workload=changes, limits=limits))
    found = weights(tmp_path / "run")
    assert summary.precision == "int4"
    assert {each.dtype for each in found.values()} == {torch.float32}
    again = rounded(found, "int4")
    for name, weight in found.items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=0)
    assert found["model.layers.0.mlp.up_proj.weight"].unique().numel() < 1000
    told = CliRunner().invoke(app, ["distill", "report", str(tmp_path / "run")])
    assert "max_p95_latency_ms 60000 is kept on the machine of this run" in told.output
    assert "the teacher instead:" in told.output


def test_the_budget_ends_training_with_the_best_so_far(tmp_path: Path, taught_by: Path):
    path = task(tmp_path, taught_by, limits={"max_training_usd": 110})
    summary = run_of(path, clock=slow_clock(1.0))
    assert summary.ended_by == "budget"
    assert 0 < summary.best_step <= summary.steps < summary.planned_steps
    assert summary.validation.student < summary.validation.start
    assert summary.training_usd <= 110
    told = CliRunner().invoke(app, ["distill", "report", str(tmp_path / "run")])
    assert told.exit_code == 0, told.output
    assert "where the budget ended" in told.output


def test_a_budget_that_pays_for_nothing_is_an_error(tmp_path: Path, taught_by: Path):
    path = task(tmp_path, taught_by, limits={"max_training_usd": 200})
    with pytest.raises(
        FleetError, match=r"limits\.max_training_usd 200 at 3600 USD/h pays for 200 s"
    ):
        run_of(path, clock=slow_clock(70.0))
    assert not (tmp_path / "run" / "student").exists()


def test_an_independent_student_of_another_vocabulary_learns_from_answers(
    tmp_path: Path, taught_by: Path
):
    table, other = independent(tmp_path, "letters"), tmp_path / "other"
    path = task(tmp_path / "task", taught_by, table=table, distillation="logits")
    with pytest.raises(FleetError, match="logits need one vocabulary: words is not letters"):
        run_of(path)
    path = task(tmp_path / "task", taught_by, table=table, workload={"epochs": 1})
    summary = run_of(path)
    assert summary.chosen.by == "answers"
    assert not (tmp_path / "task" / "run" / "start").exists()
    assert (other / "model.safetensors").exists()


def independent(folder: Path, tokenizer: str) -> dict[str, Any]:
    """A table with a student whose words are others."""
    untrained(folder / "other", layers=1)
    save_tokenizer(folder / "other", ["or"])
    student = {
        **{"name": "other", "weights": str(folder / "other"), "licence": "mit"},
        **{"tokenizer": tokenizer, "shape": SHAPE | {"layers": 1}},
    }
    return {"students": [student], "cuts": []}


def test_a_table_that_calls_two_tokenizers_one_is_refused_before_any_work(
    tmp_path: Path, taught_by: Path
):
    table = independent(tmp_path, "words")
    with pytest.raises(FleetError, match="have other tokenizers, though the table of pairs calls"):
        run_of(task(tmp_path / "task", taught_by, table=table))
    assert not list((tmp_path / "task" / "run").iterdir())


def test_data_that_spoil_a_measurement_are_refused(tmp_path: Path, taught_by: Path):
    path = task(tmp_path, taught_by, learning=_REPLAY)
    test = asked("next", 220, 1)[190]
    made = (tmp_path / "made.jsonl").read_text()
    lines([test], tmp_path / "made.jsonl")
    with pytest.raises(FleetError, match="1 of 36 held-out questions are among those to learn"):
        run_of(path)
    (tmp_path / "made.jsonl").write_text(made.replace('"reply": "b"', '"reply": "c"', 1))
    with pytest.raises(FleetError, match=r"the checker rejects 1 of 180 replies, the first in"):
        run_of(path)
    (tmp_path / "made.jsonl").write_text(made)
    covered([test] * 80, tmp_path / "replay.jsonl")
    with pytest.raises(FleetError, match=r"learning\.replay: .* asks a held-out question"):
        run_of(path)
    covered([test] * 70, tmp_path / "replay.jsonl")
    with pytest.raises(FleetError, match=r"replay_share: 0\.3 beside 180 texts is 77 texts, .* 70"):
        run_of(path)
    with pytest.raises(FleetError, match="there is nothing to learn; name `replies`"):
        run_of(task(tmp_path / "empty", taught_by, learning={"made": None}))


def test_a_run_keeps_its_data_and_its_choice(tmp_path: Path, taught_by: Path):
    path = task(tmp_path, taught_by, workload={"epochs": 1})
    run_of(path)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(RunError, match=r"--server: .* is a run of here; choose another"):
        run_of(path, resume=True, server="there")
    made = tmp_path / "made.jsonl"
    made.write_text(made.read_text() + "\n")
    with pytest.raises(RunError, match=r"learning\.made: the file is another than when"):
        run_of(path, resume=True)


def test_several_pairs_need_a_name(tmp_path: Path, taught_by: Path):
    table = {"cuts": [{"teacher": "tiny", "depths": [1, 2]}]}
    path = task(tmp_path, taught_by, table=table, workload={"epochs": 1})
    with pytest.raises(
        FleetError, match="--pair: name one of 'tiny → tiny/1-1', 'tiny → tiny/1-2'"
    ):
        run_of(path)
    with pytest.raises(FleetError, match="--pair: there is no 'tiny'"):
        run_of(path, pair="tiny")
    with pytest.raises(FleetError, match="is not feasible on there"):
        run_of(path, pair="tiny → tiny/1-1", server="there")
    out = tmp_path / "run"
    words = ["distill", "run", str(path), "--out", str(out), "--pair", "tiny → tiny/1-1"]
    told = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    for expected in ("accuracy on 36 held-out questions", "student before training", "not calib"):
        assert (expected in told.output) == (expected != "not calib")
    assert f"the student: {out / 'student'}" in told.output
