"""An artifact in ONNX Runtime: from files and texts to probabilities, without torch."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet_runtime.answers import Classifier
from acme_fleet_runtime.engine import onnx_runtime
from acme_fleet_runtime.errors import ArtifactError, FleetError
from acme_fleet_runtime.images import open_image
from acme_fleet_runtime.inputs import Input
from acme_fleet_runtime.manifest import (
    GRAPH,
    TOKENIZER,
    ImagePreparation,
    Manifest,
    TextPreparation,
    check_files,
    read_file,
    read_manifest,
)
from acme_fleet_runtime.outside import reading, resolved
from acme_fleet_runtime.texts import Tokens, read_text

PROGRAM = "onnxruntime"
_EXACT_INT8 = ("session.x64quantprecision", "1")  # slower; see docs/deploy.md
_LARGEST_PAIR = (  # a graph: MatMulInteger of two unsigned bytes and two signed ones, both 127
    b'\x08\x05\x12\x00:V\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01g*\r\x08\x02\x08\x01'
    b"\x10\x03B\x01bJ\x02\x7f\x7fZ\x13\n\x01a\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x02b"
    b"\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\n"
)


class Runner(Classifier[np.ndarray]):
    """An artifact that is ready to answer. Threads may share it."""

    def __init__(self, folder: Path, manifest: Manifest, session: Any) -> None:
        self.folder, self.manifest, self._session = folder, manifest, session
        self._tokens: Tokens | None = None
        rule = manifest.preparation
        if isinstance(rule, TextPreparation):
            document = read_file(folder, manifest, TOKENIZER).decode()
            self._tokens = Tokens(document, rule.max_tokens, rule.pad_id, rule.vocabulary)

    @staticmethod
    def open(folder: str | Path, threads: int = 0) -> Runner:
        """Check an artifact's files, and start it.

        Args:
            folder: of the artifact.
            threads: that compute one answer; 0: as many as there are cores.

        Raises:
            ArtifactError: if it is damaged, a language model, or this machine cannot run it.
        """
        place, manifest, session = opened(folder, threads)
        if manifest.writes:
            raise ArtifactError(f"{folder} is a language model, which has no classes")
        return Runner(place, manifest, session)

    @property
    def labels(self) -> Sequence[str]:
        """See the base class."""
        return self.manifest.labels

    @property
    def takes_images(self) -> bool:
        """See the base class."""
        return self.manifest.takes_images

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample as the model takes it, at most."""
        rule = self.manifest.preparation
        if isinstance(rule, ImagePreparation):
            return rule.height * rule.width * rule.channels
        assert isinstance(rule, TextPreparation)  # by ``open``
        return 8 * rule.max_tokens

    def prepared(self, one: Input) -> np.ndarray:
        """An image's bytes, or a text's tokens; see the base class."""
        if self.takes_images:
            return self.pixels(open_image(Path(one.file), one.file))
        return self.tokens(read_text(Path(one.file)) if one.text is None else one.text)

    def pixels(self, image: Any) -> np.ndarray:
        """A PIL image as the model takes it.

        Raises:
            FleetError: if it cannot be brought to that, or the model takes texts.
        """
        rule = self.manifest.preparation
        if not isinstance(rule, ImagePreparation):
            raise FleetError("the model takes texts, and this is an image")
        return rule.form.pixels(image)

    def tokens(self, text: str) -> np.ndarray:
        """A text's tokens.

        Raises:
            FleetError: if it cannot be tokenized, or the model takes images.
        """
        if self._tokens is None:
            raise FleetError("the model takes images, and this is a text")
        return self._tokens.numbers(text)

    def probabilities(self, samples: Sequence[np.ndarray]) -> list[list[float]]:
        """See the base class.

        Raises:
            ArtifactError: if the model fails, or gives what is no probability.
        """
        return self._run("probabilities", samples)

    def logits(self, samples: Sequence[np.ndarray]) -> list[list[float]]:
        """For each sample the model's numbers before the softmax.

        Raises:
            ArtifactError: if the model fails, or gives what is no number.
        """
        return self._run("logits", samples)

    def _run(self, output: str, samples: Sequence[np.ndarray]) -> list[list[float]]:
        with reading(f"{self.folder}: the model cannot be used", ArtifactError):
            rows = self._session.run([output], self._inputs(samples))[0].tolist()
        if not all(math.isfinite(value) for row in rows for value in row):
            raise ArtifactError(f"{self.folder / GRAPH}: the answers are no finite numbers")
        return rows

    def _inputs(self, samples: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        if self._tokens is not None:
            return self._tokens.padded(samples)
        return {self.manifest.inputs[0].name: np.stack(samples)}


def opened(folder: str | Path, threads: int) -> tuple[Path, Manifest, Any]:
    """An artifact's folder, its manifest and its graph in ONNX Runtime; all files are checked.

    Raises:
        ArtifactError: if it is damaged, or this machine cannot run it.
    """
    folder = Path(folder)
    if folder.is_symlink():
        folder = resolved(folder)  # one release, also if the link is switched meanwhile
    manifest = read_manifest(folder)
    if manifest.program.name != PROGRAM:
        raise ArtifactError(
            f"{folder} runs in {manifest.program.name}, and not in ONNX Runtime; export it "
            f"with --format onnx"
        )
    # From memory: the bytes that were checked are those that run.
    graph = read_file(folder, manifest, GRAPH)
    check_files(folder, manifest, manifest.files.keys() - {GRAPH})
    session = start(graph, manifest.program.minimum, threads)
    _check_ports(folder, manifest, session)
    return folder, manifest, session


def start(graph: bytes, minimum: str, threads: int) -> Any:
    """A session of ONNX Runtime on the CPU.

    Raises:
        ArtifactError: if ONNX Runtime is missing, too old, or refuses the graph.
    """
    onnxruntime = runtime(minimum)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, too
    if _overflows(onnxruntime):
        options.add_session_config_entry(*_EXACT_INT8)
    with reading("ONNX Runtime does not take the graph", ArtifactError):
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@functools.cache
def _overflows(onnxruntime: Any) -> bool:
    """True where pairs of products of bytes are added in 16 bits: on x86 without VNNI."""
    session = onnxruntime.InferenceSession(_LARGEST_PAIR, providers=["CPUExecutionProvider"])
    (total,) = session.run(None, {"a": np.full((1, 2), 255, np.uint8)})
    return int(total.item()) != 2 * 255 * 127


def runtime(minimum: str) -> Any:
    """The module of ONNX Runtime.

    Raises:
        ArtifactError: if it is missing, or older than ``minimum``.
    """
    onnxruntime = onnx_runtime()
    installed = onnxruntime.__version__
    if _numbers(installed) < _numbers(minimum):
        raise ArtifactError(
            f"the artifact needs onnxruntime {minimum} or newer, {installed} is installed: "
            f"pip install -U onnxruntime"
        )
    return onnxruntime


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _check_ports(folder: Path, manifest: Manifest, session: Any) -> None:
    """The graph must have the inputs and outputs that the manifest names."""
    for kind, ports, entries in (
        ("inputs", manifest.inputs, session.get_inputs()),
        ("outputs", manifest.outputs, session.get_outputs()),
    ):
        named, there = [port.name for port in ports], [entry.name for entry in entries]
        if named != there:
            raise ArtifactError(
                f"{folder / GRAPH} has the {kind} {', '.join(there)}; the manifest names "
                f"{', '.join(named)}"
            )
