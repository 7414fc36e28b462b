"""Manifests: read as they were written, and refused whatever else they hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acme_fleet_runtime.errors import ArtifactError
from acme_fleet_runtime.manifest import (
    Manifest,
    Program,
    TextPreparation,
    check_files,
    read_manifest,
)
from acme_fleet_runtime.runner import Runner
from acme_fleet_runtime.strict import parse_json, parse_record
from tiny_artifact import change_manifest, write_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "own", "images")
    return tmp_path / "own"


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_read_as_written(tmp_path: Path, kind: Any):
    written = write_artifact(tmp_path, kind)
    assert read_manifest(tmp_path) == written
    check_files(tmp_path, written, written.files.keys())
    assert isinstance(written.preparation, TextPreparation) == (kind == "texts")


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = to

    return change


def _drop(*path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        del document[path[-1]]

    return change


_FILE = {"size_bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("surprise", to=1), "surprise: unknown key"),
        (_set("limit", "colour", to=1), "colour: unknown key"),
        (_drop("labels"), "labels: is missing"),
        (_set("format", to="zip"), "no manifest of an artifact"),
        (_set("version", to=2), "of version 2"),
        (_set("precision", to="int3"), "expected float32 or float16 or int8 or int4"),
        (_set("files", "../evil.onnx", to=_FILE), "no name of a file in this folder"),
        (_set("files", "/etc/passwd", to=_FILE), "no name of a file in this folder"),
        (_set("files", "manifest.json", to=_FILE), "no name of a file in this folder"),
        (_set("files", "a\\b", to=_FILE), "no name of a file in this folder"),
        (_set("files", "model.onnx", "sha256", to="x" * 64), "64 hexadecimal"),
        (_set("files", "model.onnx", "size_bytes", to=-1), "a whole number from 0"),
        (_set("files", "model.onnx", "size_bytes", to=1e300), "a whole number from 0"),
        (_set("files", "model.onnx", "size_bytes", to=True), "expected int"),
        (_set("files", to=[]), "files: expected an object"),
        (_set("labels", to=["a", "a", "b", "c"]), "no two may be equal"),
        (_set("labels", to=["a"]), "at least two"),
        (_set("labels", to="abcd"), "labels: expected a list"),
        (_set("labels", to=["a", "x" * 20_000]), "at most 10,000 characters"),
        (_set("trained_labels", to=["z"]), "'z' is no label"),
        (_set("preparation", "height", to=10**9), "1 to 4096 pixels"),
        (_set("preparation", "channels", to=2), "expected 1 or 3"),
        (_set("preparation", "resample", to=9), "expected 0 or 1"),
        (_set("preparation", to={"max_tokens": 10**9, "pad_id": 0, "vocabulary": 5}), "max_tokens"),
        (_set("accuracy", 0, "interval", to=[0.1]), "a list of 2"),
        (_set("latency", to=3), "latency: expected an object"),
        (lambda _: [1], "no manifest"),
    ],
)
def test_mistakes_are_named(artifact: Path, change: Any, words: str):
    change_manifest(artifact, change)
    with pytest.raises(ArtifactError) as error:
        read_manifest(artifact)
    assert words in str(error.value)
    assert "manifest.json" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"format": "acme-artifact", "version": NaN}', b"null"],
)
def test_no_json_is_an_error(artifact: Path, content: bytes):
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(artifact)


def test_a_key_that_stands_twice_is_refused(artifact: Path):
    text = (artifact / "manifest.json").read_text()
    (artifact / "manifest.json").write_text(text.replace('"name"', '"name": "other", "name"', 1))
    with pytest.raises(ArtifactError, match="stands twice"):
        read_manifest(artifact)


def test_a_pipe_or_a_large_file_is_not_read(artifact: Path):
    path = artifact / "manifest.json"
    with path.open("r+b") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ArtifactError, match="too many for such a file"):
        read_manifest(artifact)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match="no regular file"):
        read_manifest(artifact)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_files_must_be_those_that_were_written(tmp_path: Path, name: str):
    write_artifact(tmp_path, "texts")
    whole = (tmp_path / name).read_bytes()
    damaged = bytes([*whole[:-1], whole[-1] ^ 1])
    for content, words in ((damaged, "SHA-256"), (whole[:-1], "bytes, the manifest says")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=words) as error:
            Runner.open(tmp_path)
        assert name in str(error.value)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        Runner.open(tmp_path)


def test_what_this_machine_cannot_run(tmp_path: Path):
    write_artifact(tmp_path / "new", "images", program=Program("onnxruntime", "99.1", 18))
    with pytest.raises(ArtifactError, match=r"needs onnxruntime 99\.1 or newer.*pip install -U"):
        Runner.open(tmp_path / "new")
    write_artifact(tmp_path / "other", "images", program=Program("pytorch", "2.9", None))
    with pytest.raises(ArtifactError, match="runs in pytorch"):
        Runner.open(tmp_path / "other")
    manifest = write_artifact(tmp_path / "ports", "images")
    port = manifest.inputs[0].__class__("colours", "uint8", ("batch", 4, 4, 1))
    write_artifact(tmp_path / "ports", "images", inputs=(port,))
    with pytest.raises(ArtifactError, match="has the inputs pixels; the manifest names colours"):
        Runner.open(tmp_path / "ports")


def test_a_graph_that_is_none_is_refused(artifact: Path):
    content = b"no graph"
    (artifact / "model.onnx").write_bytes(content)
    entry = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(artifact, _set("files", "model.onnx", to=entry))
    with pytest.raises(ArtifactError, match="does not take the graph"):
        Runner.open(artifact)


_SOME = (None, True, -1, 0.5, 1e400, "x", [], [1, "a"], {}, {"a": None})


def _places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*at, key)
        if isinstance(value[key], dict | list):
            yield from _places(value[key], (*at, key))


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_any_value_in_any_place_is_read_or_refused(tmp_path: Path, kind: Any):
    """Never another error than ValueError, and what is read is written as it was."""
    text = write_artifact(tmp_path, kind).written()
    refused = 0
    for place in _places(json.loads(text)):
        for value in _SOME:
            document = json.loads(text)
            _set(*place, to=value)(document)
            try:
                found = parse_record(Manifest, document)
            except ValueError:
                refused += 1
            else:
                assert parse_record(Manifest, parse_json(found.written().encode())) == found
    assert refused > 300
