"""A language model as an ONNX graph with a memory: what it writes is what PyTorch writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.devices import Precision
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.deploy.export import Exported, export, origin_alone
from acme_fleet.inspection import complete
from acme_fleet.messages.header_plan import Block, Genotype
from acme_fleet_runtime.delivery.selftest import answers, check_answers
from acme_fleet_runtime.errors import ArtifactError, FleetError
from acme_fleet_runtime.manifest import Speed
from acme_fleet_runtime.runner import Runner
from acme_fleet_runtime.writer import Wish, Writer, open_artifact
from tiny_language import bytewise_decoder, writer_folder

SEARCHED = Genotype(
    blocks=(
        Block(inputs=(0, 1), operations=("conv3", "downsample")),
        Block(inputs=(2, 1), operations=("avg_pool", "max_pool")),
    ),
    cells=1,
    channels=4,
)
TEXTS = ("turn the light on", "what", "wind and sun, rain")


@contextmanager
def _untyped() -> Iterator[None]:
    """Checks of shapes would fix the traced sizes."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def _exported(
    checkpoint: Path,
    folder: Path,
    precision: Precision,
    share: float = 1.0,
    header: Genotype = SEARCHED,
) -> Exported:
    own = writer_folder(checkpoint, folder / "own", header, precision, share)
    with _untyped():
        return export(origin_alone(own, ()), "onnx", folder / "artifact", force=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    checkpoint = bytewise_decoder(tmp_path_factory.mktemp("decoder"), num_hidden_layers=1)
    return _exported(checkpoint, tmp_path_factory.mktemp("language"), "int4")


@pytest.fixture(scope="module")
def writer(done: Exported) -> Writer:
    opened = open_artifact(done.folder, threads=1)
    assert isinstance(opened, Writer)
    return opened


@pytest.fixture(scope="module")
def shipped(done: Exported) -> complete.Writer:
    opened = complete.Writer.open(done.folder.parent / "own", None)
    assert opened is not None
    return opened


def test_a_header_that_remembers_nothing(tmp_path: Path):
    """Of identities alone, as where there are too few texts for a search."""
    blocks = tuple(Block(inputs=own, operations=("identity",) * 2) for own in ((0, 0), (2, 2)))
    checkpoint = bytewise_decoder(tmp_path / "decoder", num_hidden_layers=1)
    header = Genotype(blocks=blocks, cells=1, channels=4)
    done = _exported(checkpoint, tmp_path, "int8", header=header)
    assert [port.name for port in done.manifest.inputs][2:] == ["past.0.key", "past.0.value"]
    assert done.manifest.verification.same_class > 0.98


def test_it_is_verified_at_once_and_token_by_token(done: Exported):
    manifest = done.manifest
    assert manifest.verification.largest_difference < 1e-4
    assert manifest.verification.same_class == 1
    assert isinstance(manifest.latency, Speed)
    assert manifest.latency.tokens_per_s > 0
    names = [port.name for port in manifest.inputs]
    assert names == ["input_ids", "attention_mask", "past.0.key", "past.0.value", "past.header"]
    # The language head is the table of words, once: 300 words of 64 channels at 4 bits.
    assert manifest.files["model.onnx"].size_bytes < 1.25 * done.shipped_bytes


def test_what_a_token_goes_through_is_few_operations(done: Exported):
    """One for each norm and rotation; keys and values of a group are not repeated."""
    nodes = list(onnx.load(done.folder / "model.onnx").graph.node)
    kinds = [node.op_type for node in nodes]
    assert kinds.count("RMSNormalization") == 3
    assert kinds.count("RotaryEmbedding") == 2
    assert not {"ReduceMean", "Neg"} & set(kinds)
    attention = nodes[kinds.index("Attention")]
    assert list(attention.input)[1:3] == ["present.0.key", "present.0.value"]


def test_older_runtimes_know_all_attributes(done: Exported):
    """ONNX Runtime adds its own operations' newest ones when it folds constants."""
    nodes = onnx.load(done.folder / "model.onnx").graph.node
    found = [{each.name for each in node.attribute} for node in nodes if node.domain]
    assert found
    assert all(names == {"K", "N", "bits", "block_size", "accuracy_level"} for names in found)


def test_it_writes_what_pytorch_writes(writer: Writer, shipped: complete.Writer):
    for text, theirs in zip(TEXTS, shipped.complete(TEXTS, 20), strict=True):
        assert writer.prompt(text) == shipped.preprocessing.prompt(text)
        assert writer.complete(writer.prompt(text), Wish(20)) == theirs.text


def test_logits_cached_uncached_and_of_pytorch_agree(writer: Writer, shipped: complete.Writer):
    ids = np.random.default_rng(0).integers(3, 250, (2, 23))
    real = np.ones_like(ids)
    real[1, :9] = 0  # padding stands before a text
    whole = writer.steps.step(ids, writer.steps.empty(2), real)
    memory, parts, start = writer.steps.empty(2), [], 0
    for size in (11, 1, 1, 4, 1, 5):
        part = slice(start, start + size)
        parts.append(writer.steps.step(ids[:, part], memory, real[:, part]))
        start += size
    cached = np.concatenate(parts, axis=1)
    with torch.no_grad():
        inputs = [torch.from_numpy(each) for each in (ids, real)]
        theirs = shipped.model(input_ids=inputs[0], attention_mask=inputs[1]).logits.numpy()
    for found in (whole, cached):
        np.testing.assert_allclose(found[real != 0], theirs[real != 0], rtol=1e-4, atol=1e-4)


def test_a_chat_is_written_as_in_training(writer: Writer, shipped: complete.Writer):
    assert isinstance(shipped.preprocessing, LanguagePreprocessing)
    says = [{"role": "user", "content": "turn light on"}]
    assert writer.asked(says) == shipped.preprocessing.asked("turn light on")
    assert writer.chats


def test_stops_and_draws(writer: Writer):
    prompt = writer.prompt("what")
    text = writer.complete(prompt, Wish(20))
    stop = text[7:9]
    cut = list(writer.write(prompt, Wish(20, stops=(stop, "never there"))))
    assert "".join(piece.text for piece in cut) == text[: text.index(stop)]
    assert cut[-1].reason == "stop"
    drawn = [writer.complete(prompt, Wish(12, 1.5, 0.9, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert writer.complete(prompt, Wish(12, 5.0, 1e-9, 3)) == writer.complete(prompt, Wish(12))
    pieces = list(writer.write(prompt, Wish(6)))
    assert (pieces[-1].reason, pieces[-1].tokens) == ("length", 6)


def test_a_prompt_that_cannot_be_answered_is_refused(writer: Writer):
    with pytest.raises(FleetError, match="the prompt has 2 tokens; with 127 new ones"):
        next(writer.write([1, 5], Wish(127)))
    with pytest.raises(FleetError, match="more than the 128 that the model takes"):
        writer.check_room([1] * 129, 1)


def test_commands_run_it_without_torch(done: Exported, shipped: complete.Writer):
    told = CliRunner().invoke(app, ["predict", str(done.folder), "what", "--tokens", "8", "--json"])
    (theirs,) = shipped.complete(["what"], 8)
    assert json.loads(told.stdout) == {"prompt": "what", "text": theirs.text}
    own = subprocess.run(
        [sys.executable, "run.py", "what"], cwd=done.folder, capture_output=True, text=True
    )
    assert own.stdout.startswith(f"what{theirs.text}")
    assert own.returncode == 0, own.stderr
    asked = subprocess.run(
        [sys.executable, "run.py", "--chat", "what"],
        cwd=done.folder,
        capture_output=True,
        text=True,
    )
    (answer,) = shipped.complete(["what"], 32, chat=True)
    assert asked.stdout.strip() == f"what | {answer.text}".strip()
    card = (done.folder / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "tokens a second" in card


def test_a_device_tests_it_before_it_switches(done: Exported):
    expected = answers(done.folder)
    check_answers(done.folder, expected, 1e-3)
    with pytest.raises(ArtifactError, match="is a language model, which has no classes"):
        Runner.open(done.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "precision", "sizes"),
    [
        ("llama", "float32", {}),
        ("llama", "float16", {"tie_word_embeddings": False}),
        ("llama", "int8", {}),
        ("mistral", "int8", {"sliding_window": 8}),
        ("qwen2", "int4", {}),
        ("qwen3", "float32", {}),
        ("smollm3", "int4", {"num_hidden_layers": 4}),
        ("gemma3_text", "float32", {"sliding_window": 8}),
        ("gemma3_text", "int8", {}),
        ("gemma3_text", "int4", {}),
    ],
)
def test_families(tmp_path: Path, family: str, precision: Precision, sizes: dict[str, Any]):
    checkpoint = bytewise_decoder(tmp_path / "decoder", family, **sizes)
    share = 0.5 if family != "smollm3" else 1.0
    done = _exported(checkpoint, tmp_path, precision, share)
    assert done.manifest.verification.same_class > 0.95
    assert done.manifest.files["model.onnx"].size_bytes < 1.6 * done.shipped_bytes
