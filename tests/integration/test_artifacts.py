"""``acme export``: from a run to an artifact that answers as the run does, or to a refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.deploy import export as exporting
from acme_fleet.deploy.base import Format, Logits, Written, eager, script
from acme_fleet.deploy.formats import FORMATS
from acme_fleet.errors import ArtifactError
from acme_fleet.inspection.predict import DeviceModel, open_model
from acme_fleet_runtime.answers import Classified
from acme_fleet_runtime.inputs import Input
from acme_fleet_runtime.manifest import Port, Program, is_artifact, read_manifest
from acme_fleet_runtime.runner import Runner


def _acme(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a device of the run. Not to be changed."""
    import jaxtyping

    out = tmp_path_factory.mktemp("exported") / "cam-1"
    jaxtyping.config.update("jaxtyping_disable", True)  # checks would fix the traced sizes
    try:
        told = _acme("export", finished.path, "--device", "cam-1", "--out", out)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert told.exit_code == 0, told.output
    assert "accuracy on validation" in told.stdout
    return out


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    draw, places = np.random.default_rng(0), []
    for number, mode in enumerate(("L", "RGB", "RGBA")):
        pixels = draw.integers(0, 256, (9 + number, 8, 4), np.uint8)
        places.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels, "RGBA").convert(mode).save(places[-1])
    return places


# --- the artifact -----------------------------------------------------------------------------


def test_answers_as_the_run(finished, exported: Path, photos: list[Path]):
    inputs = [Input(str(path)) for path in photos]
    ours = list(Runner.open(exported).classify(inputs))
    theirs = list(open_model(finished.path, "cam-1").classify(inputs))
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, Classified)
        assert isinstance(other, Classified)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_predict_of_an_artifact_looks_like_that_of_a_run(
    finished, exported: Path, photos: list[Path]
):
    told = _acme("predict", exported, *photos)
    assert told.output == _acme("predict", finished.path, "--device", "cam-1", *photos).output
    told = _acme("predict", exported)
    assert told.exit_code == 2
    assert "only a run directory knows test data" in told.stderr


def test_manifest_tells_what_was_measured(finished, exported: Path):
    manifest = read_manifest(exported)
    device = next(each for each in finished.summary.devices if each.name == "cam-1")
    assert manifest.name == "cam-1"
    assert manifest.labels == tuple(str(digit) for digit in range(10))
    assert len(manifest.trained_labels) == 5
    assert {"README.md", "model.onnx", "run.py"} == manifest.files.keys()
    validation, test = manifest.accuracy
    assert (test.data, test.samples) == ("test", device.test_samples)
    assert test.pytorch == pytest.approx(device.accuracy, abs=1e-9)
    assert test.artifact == test.pytorch
    assert test.interval[0] < test.artifact < test.interval[1] or test.artifact in (0, 1)
    assert manifest.verification.samples == validation.samples
    assert manifest.verification.largest_difference < 1e-3
    assert not manifest.verification.forced
    assert manifest.limit is not None
    assert manifest.limit.storage_bytes == 60_000
    assert manifest.limit.model_bytes == (exported / "model.onnx").stat().st_size
    assert manifest.latency.median_ms > 0
    assert [port.shape for port in manifest.inputs] == [("batch", 8, 8, 1)]


def test_run_py_answers_from_the_folder_alone(exported: Path, photos: list[Path]):
    command = [sys.executable, str(exported / "run.py"), *map(str, photos)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    answers = Runner.open(exported).classify(Input(str(path)) for path in photos)
    for line, answer in zip(told.stdout.splitlines(), answers, strict=True):
        assert isinstance(answer, Classified)
        label, probability = answer.best(1)[0]
        assert line == f"{answer.input.file}  {label}  {probability:.3f}"


def test_model_card(exported: Path):
    text = (exported / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "pipeline_tag": "image-classification",
        "library_name": "onnxruntime",
        "tags": ["acme-fleet", "float32"],
    }
    for words in ("# cam-1", "pip install onnxruntime numpy pillow", "| test |", "5 of 10 classes"):
        assert words in body


# --- where it is written ----------------------------------------------------------------------


@pytest.fixture
def quick_format(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A format that is added from outside, ``npz``; ``wrong`` is added to its logits."""
    state: dict[str, Any] = {"wrong": 0.0, "models": {}}

    def write(model: DeviceModel, folder: Path) -> Written:
        tensors = {name: x.numpy() for name, x in model.model.state_dict().items()}
        np.savez(folder / "model.npz", **tensors)
        state["models"][folder] = model
        ports = (Port("pixels", "uint8", ("batch", 8, 8, 1)),)
        outputs = (Port("logits", "float32", ("batch", 10)),)
        return Written(Program("numpy", "2", None), "model.npz", script("images"), ports, outputs)

    def start(folder: Path, threads: int) -> Logits:
        logits = eager(state["models"][folder])
        return lambda inputs: logits(inputs) + state["wrong"] * np.arange(10, dtype=np.float32)

    monkeypatch.setitem(FORMATS, "npz", Format("npz", "numpy", write, start))
    monkeypatch.setattr("acme_fleet.deploy.verify._SECONDS", 0.0)
    return state


def test_a_format_from_outside(finished, quick_format: Any, tmp_path: Path):
    told = _acme("export", finished.path, "--all", "--format", "npz", "--out", tmp_path)
    assert told.exit_code == 0, told.output
    names = ["badge-1", "badge-2", "cam-1", "cam-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert read_manifest(tmp_path / name).program.name == "numpy"
        assert told.output.count(f"wrote {tmp_path / name}\n") == 1
    told = _acme("predict", tmp_path / "cam-1", "x.png")
    assert (told.exit_code, "neither a run directory" in told.stderr) == (2, True)


def test_a_registry_has_what_was_exported(finished, quick_format: Any, tmp_path: Path):
    pytest.importorskip("alembic", reason="pip install 'acme-fleet[registry]'")
    from acme_fleet.deploy.registry.store import Registry

    where = tmp_path / "fleet.db"
    arguments = ("--all", "--format", "npz", "--out", tmp_path / "out", "--registry", where)
    assert _acme("export", finished.path, *arguments).exit_code == 0
    registry = Registry.open(str(where))
    newest = registry.newest()
    assert [each.device for each in newest] == ["badge-1", "badge-2", "cam-1", "cam-2"]
    assert {each.fleet for each in newest} == {finished.fleet.name}
    assert {each.run for each in newest} == {str(finished.path)}
    assert newest[0].manifest == read_manifest(tmp_path / "out" / "badge-1")
    registry.close()


def test_the_default_place_and_an_older_artifact(finished, quick_format: Any, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    for _ in range(2):
        told = _acme("export", run, "--device", "cam-1", "--format", "npz")
        assert told.exit_code == 0, told.output
        (place,) = (run / "artifacts").iterdir()
        assert place == run / "artifacts" / "cam-1"
        assert is_artifact(place)
    (place / "model.npz").write_bytes(b"old")  # is replaced, too
    assert _acme("export", run, "--device", "cam-1", "--format", "npz").exit_code == 0
    assert (place / "model.npz").stat().st_size > 3
    before = (place / "manifest.json").read_bytes()
    told = _acme("export", run, "--device", "cam-1", "--format", "safetensors")
    assert told.exit_code == 2
    assert "cam-1 holds an artifact for numpy; this one is for pytorch" in " ".join(
        told.stderr.split()
    )
    assert (place / "manifest.json").read_bytes() == before


def test_a_folder_of_something_else_is_not_touched(finished, quick_format: Any, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    told = _acme("export", finished.path, "--device", "cam-1", "--format", "npz", "--out", tmp_path)
    assert told.exit_code == 2
    assert "no artifact's folder and is not empty" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "manifest.json").write_text('{"name": "a web page", "files": ["x"]}')
    told = _acme("export", finished.path, "--device", "cam-1", "--format", "npz", "--out", tmp_path)
    assert told.exit_code == 2
    assert "holds manifest.json, thesis.tex, which its manifest.json does not list" in told.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "manifest.json"}


def test_the_folder_where_one_is(
    finished, quick_format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    run = finished.path.absolute()
    told = _acme("export", run, "--device", "cam-1", "--format", "npz", "--out", ".")
    assert told.exit_code == 0, told.output
    assert is_artifact(place)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}"], "name a device with --device, or ask for --all: cam-1, cam-2"),
        (["{run}", "--device", "tv"], "the run has no device 'tv'"),
        (["{run}", "--device", "cam-1", "--format", "zip"], "--format: there is no 'zip'; choose"),
        (["{run}/devices/cam-1"], "name a folder with --out"),
        (["{run}/nowhere", "--out", "{out}"], "no such folder"),
        (["{run}", "--device", "cam-1", "--samples", "{run}/x"], "no such file"),
    ],
)
def test_what_is_missing_is_said(finished, tmp_path: Path, arguments: list[str], words: str):
    places = {"run": finished.path, "out": tmp_path / "out"}
    told = _acme("export", *(each.format(**places) for each in arguments))
    assert told.exit_code == 2
    assert words in told.stderr
    assert not (tmp_path / "out").exists()


# --- refusals ---------------------------------------------------------------------------------


def test_a_wrong_artifact_is_refused_with_the_numbers(finished, quick_format: Any, tmp_path: Path):
    arguments = ("export", finished.path, "--device", "cam-1", "--format", "npz")
    out = tmp_path / "out"
    assert _acme(*arguments, "--out", out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    quick_format["wrong"] = 5.0
    told = _acme(*arguments, "--out", out)
    assert told.exit_code == 2
    assert "logits differ from PyTorch's by " in told.stderr
    assert "at most 0.001 is accepted" in told.stderr
    assert "accuracy is 0." in told.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    told = _acme(*arguments, "--out", out, "--force")
    assert told.exit_code == 0
    assert "forced: logits differ" in told.stderr
    manifest = read_manifest(out)
    assert manifest.verification.forced
    assert manifest.verification.largest_difference > 0.1
    assert manifest.accuracy[0].artifact < manifest.accuracy[0].pytorch
    assert "refused, and written by force" in (out / "README.md").read_text()


def test_numbers_that_are_none_are_refused(finished, quick_format: Any, tmp_path: Path):
    quick_format["wrong"] = float("nan")
    out = tmp_path / "out"
    told = _acme("export", finished.path, "--device", "cam-1", "--format", "npz", "--out", out)
    assert told.exit_code == 2
    assert "by nan of their spread" in told.stderr
    assert not out.exists()


def test_one_of_all_that_fails_spoils_no_other(
    finished, quick_format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = exporting.export

    def picky(origin: Any, *others: Any, **options: Any) -> Any:
        if origin.name == "cam-2":
            raise ArtifactError("cam-2 is wrong")
        return whole(origin, *others, **options)

    monkeypatch.setattr(exporting, "export", picky)
    told = _acme("export", finished.path, "--all", "--format", "npz", "--out", tmp_path)
    assert told.exit_code == 1
    assert told.stderr.startswith("error: cam-2 is wrong\n")
    assert told.stderr.endswith("error: 1 of 4 were not written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["badge-1", "badge-2", "cam-1"]


def test_without_the_data_there_is_a_way(
    finished, quick_format: Any, tmp_path: Path, photos: list[Path]
):
    """A folder alone is verified on random inputs, or on files that are named."""
    folder = finished.path / "devices" / "cam-1"
    told = _acme("export", folder, "--format", "npz", "--out", tmp_path / "a")
    assert told.exit_code == 0, told.output
    manifest = read_manifest(tmp_path / "a")
    assert (manifest.verification.data, manifest.verification.samples) == ("random", 32)
    assert (manifest.accuracy, manifest.limit) == ((), None)
    samples = [argument for path in photos for argument in ("--samples", str(path))]
    told = _acme("export", folder, "--format", "npz", "--out", tmp_path / "b", *samples)
    assert told.exit_code == 0, told.output
    manifest = read_manifest(tmp_path / "b")
    assert (manifest.verification.data, manifest.verification.samples) == ("samples", 3)


def test_safetensors_is_the_devices_folder_with_a_manifest(
    finished, tmp_path: Path, photos: list[Path]
):
    out = tmp_path / "out"
    told = _acme(
        "export", finished.path, "--device", "cam-1", "--format", "safetensors", "--out", out
    )
    assert told.exit_code == 0, told.output
    manifest = read_manifest(out)
    assert manifest.program.name == "pytorch"
    shipped = finished.path / "devices" / "cam-1"
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (shipped / name).read_bytes()
    assert manifest.verification.largest_difference < 1e-6
    answers = _acme("predict", out, *photos, "--json").stdout
    assert json.loads(answers.splitlines()[0])["class"]
    assert answers == _acme("predict", shipped, *photos, "--json").stdout
