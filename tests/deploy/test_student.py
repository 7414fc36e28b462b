"""A student as an artifact: the same answers in another program, at the precision of its run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.deploy.export import export
from acme_fleet.deploy.student import origin_of_student
from acme_fleet.errors import RunError
from acme_fleet.stratos.distill import distil
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.run_directory import DistillDirectory, DistillSummary
from acme_fleet_runtime.manifest import TokenAccuracy
from acme_fleet_runtime.writer import open_artifact
from tiny_distillation import SHAPE, task, teacher
from tiny_language import bytewise_decoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    written = task(folder, teacher(folder / "teacher"), workload={"student_precision": "int8"})
    distil(Request.from_yaml(written), folder / "run")
    return folder / "run"


def test_a_student_answers_alike_in_its_artifact(run: Path, tmp_path: Path):
    said = CliRunner().invoke(
        app, ["distill", "export", str(run), "--format", "onnx", "--out", str(tmp_path / "out")]
    )
    assert said.exit_code == 0, said.output
    assert "loss per token on validation" in said.output
    writer = open_artifact(tmp_path / "out")
    summary = DistillSummary.read(run / "summary.json")
    manifest = writer.manifest
    assert (manifest.name, manifest.precision) == (summary.name, "int8")
    assert manifest.reference is not None
    assert manifest.reference.name == summary.chosen.pair
    (measured,) = manifest.accuracy
    assert measured.data == "validation"
    assert measured.artifact == pytest.approx(measured.pytorch, abs=0.05)
    size = manifest.files["model.onnx"].size_bytes
    assert size < (run / "student" / "model.safetensors").stat().st_size
    told = (tmp_path / "out" / "README.md").read_text()
    assert "for the task `following`" in told
    assert "device" not in told
    # The student as the run marked it, without rounded inputs, writes the same.
    plain = AutoModelForCausalLM.from_pretrained(run / "student").eval()
    same = 0
    prompts = torch.randint(4, SHAPE["vocabulary"], (20, 6), generator=torch.manual_seed(0))
    for prompt in prompts:
        with torch.no_grad():
            wanted = int(plain(input_ids=prompt[None]).logits[0, -1].argmax())
        found = next(writer.steps.go_on(prompt.tolist(), lambda logits: int(logits.argmax())))
        same += found == wanted
    assert same >= 18


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path):
    safetensors = ["--format", "safetensors", "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, ["distill", "export", str(run), *safetensors])
    assert said.exit_code == 2
    assert f"{run / 'student'} is that already" in said.output
    unfinished = tmp_path / "run"
    DistillDirectory.create(unfinished, Request.from_yaml(run.parent / "task.yaml"), resume=False)
    with pytest.raises(RunError, match="not finished"):
        origin_of_student(DistillDirectory.open(unfinished))


def test_it_is_verified_on_the_texts_that_chose_it(run: Path, tmp_path: Path):
    origin = origin_of_student(DistillDirectory.open(run))
    done = export(origin, "onnx", tmp_path / "out", force=False)
    assert done.manifest.verification.data == "validation"
    assert done.manifest.verification.samples == len(origin.evidence.first)
    assert not done.refusals


def test_a_student_with_a_byte_level_tokenizer_is_written_for_llama_cpp(run: Path, tmp_path: Path):
    pytest.importorskip("gguf", reason="pip install 'acme-fleet[gguf]'")
    of_bytes = tmp_path / "run"
    shutil.copytree(run, of_bytes)
    shutil.rmtree(of_bytes / "student")
    bytewise_decoder(of_bytes / "student")
    origin = origin_of_student(DistillDirectory.open(of_bytes))
    done = export(origin, "gguf", tmp_path / "out", force=False)
    assert (tmp_path / "out" / "model.gguf").stat().st_size < 0.5 * done.shipped_bytes
    (measured,) = done.manifest.accuracy
    assert isinstance(measured, TokenAccuracy)
    assert measured.artifact_loss == pytest.approx(measured.pytorch_loss, abs=0.01)
