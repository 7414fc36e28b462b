"""The runner: images of every kind, texts, alone as in batches; its command line; no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acme_fleet.data.image import ImagePreprocessing, ImageSize, ShortestEdge
from acme_fleet.deploy.base import script
from acme_fleet_runtime.answers import Classified, Refused
from acme_fleet_runtime.cli import main
from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.images import ImageForm, open_image
from acme_fleet_runtime.inputs import Input
from acme_fleet_runtime.runner import Runner
from tiny_artifact import QUADRANTS, quadrant, write_artifact


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_artifact(folder, "images", channels=3)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_artifact(folder, "texts")
    return folder


def test_images_by_class_in_order(images: Path, tmp_path: Path):
    runner = Runner.open(images, threads=1)
    for number, mode in enumerate(("L", "RGB", "RGBA", "P")):
        quadrant(number, side=8 + number, mode=mode).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    inputs = [Input(str(tmp_path / f"{number}.png")) for number in (3, 4, 0, 1, 2)]
    answers = list(runner.classify(inputs))
    assert isinstance(answers[1], Refused)
    assert [next(iter(a.probabilities)) for a in answers if isinstance(a, Classified)] == [
        QUADRANTS[number] for number in (3, 0, 1, 2)
    ]
    for one, answer in zip(inputs, answers, strict=True):
        (alone,) = runner.classify([one])
        if isinstance(answer, Classified):
            assert isinstance(alone, Classified)
            assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
            assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)


def _photo(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


sides = st.integers(1, 20)
rules = st.builds(
    lambda channels, size, crop, resample: ImagePreprocessing(
        do_convert_rgb=channels == 3,
        size=size,
        resample=resample,
        do_center_crop=crop is not None,
        crop_size=crop,
        image_mean=(0.5,) * channels,
        image_std=(0.5,) * channels,
    ),
    st.sampled_from([1, 3]),
    st.builds(lambda h, w: ImageSize(height=h, width=w), sides, sides)
    | st.builds(lambda n: ShortestEdge(shortest_edge=n), sides),
    st.builds(lambda h, w: ImageSize(height=h, width=w), sides, sides),
    st.integers(0, 5),
)


def _by_script(rule: ImagePreprocessing, encoded: bytes) -> np.ndarray:
    scope: dict[str, Any] = {"__file__": "run.py", "__name__": "run"}
    exec(script("images"), scope)
    form = rule.form
    size = form.size if isinstance(form.size, int) else [*(form.size or ())]
    height, width = form.result
    described = {"channels": form.channels, "size": size, "resample": form.resample}
    described |= {"height": height, "width": width, "crop": form.crops}
    return scope["pixels"](BytesIO(encoded), described)


@given(
    rule=rules,
    mode=st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1"]),
    size=st.tuples(sides, sides),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_pixels_are_those_of_training(
    rule: ImagePreprocessing, mode: str, size: tuple[int, int], orientation: int, seed: int
):
    """The runner, run.py and the customiser make the same numbers of an image file, bit for bit."""
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    _photo(mode, size, seed).save(file, "PNG", exif=exif)
    pixels = rule.form.pixels(open_image(file.getvalue(), "it"))
    assert pixels.shape == (*rule.result, rule.channels)
    assert pixels.dtype == np.uint8
    expected = rule.pixel_values([open_image(file.getvalue(), "it")])[0].numpy()
    values = pixels.transpose(2, 0, 1).astype(np.float32) * np.float32(rule.rescale_factor)
    np.testing.assert_array_equal((values - np.float32(0.5)) / np.float32(0.5), expected)
    np.testing.assert_array_equal(_by_script(rule, file.getvalue()), pixels)


def test_images_that_cannot_be_meant():
    form = ImageForm(3, None, 2, (8, 8), crops=False)
    with pytest.raises(FleetError, match="9 × 8 pixels does not become 8 × 8"):
        form.pixels(_photo("RGB", (8, 9), 0))
    with pytest.raises(FleetError, match="more than 8 bits"):
        form.pixels(Image.new("I;16", (8, 8)))
    file = BytesIO()
    _photo("RGB", (9, 9), 0).save(file, "PNG")
    with pytest.raises(FleetError, match="9 × 9 pixels, more than 80"):
        open_image(file.getvalue(), "it", most_pixels=80)
    with pytest.raises(FleetError, match="Pillow knows no such format"):
        open_image(file.getvalue(), "it", formats=("JPEG",))


def test_texts_alone_as_in_a_batch(texts: Path):
    runner = Runner.open(texts, threads=1)
    said = ["light", "rain sun rain sun sun rain rain sun sun", "lamp light", "", "sun"]
    answers = list(runner.classify([Input("", text=text) for text in said]))
    assert [isinstance(answer, Refused) for answer in answers] == [False] * 3 + [True, False]
    best = [next(iter(a.probabilities)) for a in answers if isinstance(a, Classified)]
    assert best == ["house", "weather", "house", "weather"]
    for text, answer in zip(said, answers, strict=True):
        (alone,) = runner.classify([Input("", text=text)])
        if isinstance(answer, Classified):
            assert isinstance(alone, Classified)
            assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
    assert len(runner.tokens(said[1])) == 8  # cut as trained


def test_command_line(images: Path, texts: Path, tmp_path: Path, capsys: Any):
    quadrant(2).save(tmp_path / "a.png")
    assert main(["predict", str(images), str(tmp_path / "a.png"), "--json", "--top", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["class"], len(record["probabilities"])) == ("lower left", 2)
    for name in ("notes.txt", "._a.png"):
        (tmp_path / name).write_bytes(b"no image")
    assert main(["predict", str(images), str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("  lower left  1.000\n")
    assert told.err.startswith("skipped, no image: 2")
    (tmp_path / "b.png").write_bytes(b"noise")
    assert main(["predict", str(images), str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "a.png  lower left  1.000\n" in told.out
    assert "b.png as an image: Pillow knows no such format" in told.out
    assert "error: 1 of 2 could not be read" in told.err
    assert main(["predict", str(images), str(tmp_path / "b.png")]) == 1
    assert "1 of 1 could not be read" in capsys.readouterr().err
    assert main(["predict", str(texts), "--text", "light"]) == 0
    assert "house" in capsys.readouterr().out
    for arguments, words in (
        (["predict", str(images)], "name files"),
        (["predict", str(tmp_path), "x"], "manifest.json: no such file"),
        (["predict", str(images), "--text", "a"], "the model takes images"),
        (["serve", str(images), "--host", "0.0.0.0"], "set a --token"),
        (["serve", str(images), "--token", "short"], "at least 16"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("current/manifest.json", "a folder of releases: name {0}/current"),
        ("artifacts/cam-1/manifest.json", "a run: name an artifact in it, {0}/artifacts/cam-1"),
        ("fleet.yaml", "a run: `acme export {0} --all` makes artifacts of it"),
        (
            "model.safetensors",
            "a device's folder: `acme export {0} --out ARTIFACT` makes one of it",
        ),
    ],
)
@pytest.mark.parametrize("command", ["serve", "predict"])
def test_folders_of_another_kind_are_named(
    file: str, words: str, command: str, tmp_path: Path, capsys: Any
):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert main([command, str(tmp_path), *(["x.png"] if command == "predict" else [])]) == 2
    told = f"error: {tmp_path} is no artifact, but {words.format(tmp_path)}"
    assert capsys.readouterr().err.strip() == told


def _script_of(folder: Path, name: str, *arguments: str) -> str:
    (folder / "run.py").write_text(script(name))
    command = [sys.executable, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_scripts_answer_as_the_runner(images: Path, texts: Path, tmp_path: Path, capsys: Any):
    quadrant(3, mode="RGBA").save(tmp_path / "a.png")
    line = _script_of(images, "images", str(tmp_path / "a.png"))
    assert main(["predict", str(images), str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out == line  # the same columns
    name, label, probability = line.split("  ")
    (answer,) = Runner.open(images).classify([Input(name)])
    assert isinstance(answer, Classified)
    assert answer.probabilities[label] == pytest.approx(float(probability), abs=6e-4)
    (line,) = _script_of(texts, "texts", "light").splitlines()
    assert line.startswith("light  house")


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_scripts_go_on_behind_what_is_bad(kind: str, images: Path, texts: Path, tmp_path: Path):
    folder = {"images": images, "texts": texts}[kind]
    quadrant(3).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"noise")
    good, bad = {
        "images": (str(tmp_path / "a.png"), [str(tmp_path / "bad.png"), str(tmp_path / "no.png")]),
        "texts": ("light", ["", " "]),
    }[kind]
    (folder / "run.py").write_text(script(kind))
    command = [sys.executable, str(folder / "run.py")]
    told = subprocess.run([*command, *bad, good], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stdout.startswith(f"{good}  ")
    shown = bad if kind == "images" else map(repr, bad)
    lines = told.stderr.splitlines()
    for line, name in zip(lines, shown, strict=True):
        assert line.startswith(f"{name}: ")
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("usage: python run.py ")


def test_scripts_are_short():
    for kind in ("images", "texts", "executorch", "pytorch"):
        assert 30 <= len(script(kind).splitlines()) <= 52


def test_onnx_runtime_writes_and_sends_nothing(images: Path, tmp_path: Path):
    """Its telemetry would leave an identity of this machine in the user's folder."""
    quadrant(1).save(tmp_path / "a.png")
    (images / "run.py").write_text(script("images"))
    home = tmp_path / "home"
    home.mkdir()
    unset = ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    for command in (["-m", "acme_fleet_runtime", "predict", str(images)], [str(images / "run.py")]):
        subprocess.run(
            [sys.executable, *command, str(tmp_path / "a.png")],
            env={**environment, "HOME": str(home)},
            check=True,
        )
        assert list(home.rglob("*")) == []


@pytest.mark.parametrize("command", ["acme_fleet_runtime", "acme_fleet"])
def test_predicting_needs_no_torch(images: Path, tmp_path: Path, command: str):
    quadrant(1).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'scipy', 'sklearn', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['acme', 'predict', {str(images)!r}, {str(tmp_path / 'a.png')!r}]\n"
        "import runpy\n"
        f"runpy.run_module({command!r}, run_name='__main__')\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "upper right" in told.stdout
