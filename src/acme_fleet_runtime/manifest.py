"""``manifest.json`` of an artifact: what is in the folder, how to run it, and how good it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acme_fleet_runtime.errors import ArtifactError
from acme_fleet_runtime.images import ImageForm
from acme_fleet_runtime.outside import listed, read_regular, reading, regular
from acme_fleet_runtime.strict import parse_json, parse_record, plain

MANIFEST, GRAPH, TOKENIZER = "manifest.json", "model.onnx", "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"  # of language models that have one
FORMAT, VERSION = "acme-artifact", 1
LARGEST_MANIFEST = 2**26  # bytes
DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)  # part of file names
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MOST_PIXELS, _MOST_TOKENS, _LONGEST_CONTEXT = 4096, 2**16, 2**24  # of a side, a text, a context


@dataclass(frozen=True)
class File:
    """A file of the folder."""

    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.sha256):
            raise ValueError("sha256 should be 64 hexadecimal digits")


def describe_file(path: Path) -> File:
    """The entry of a file as it is now."""
    with path.open("rb") as file:
        return File(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Port:
    """An input or output of the model; sizes with a name in place of a number are free."""

    name: str
    dtype: Literal["uint8", "int64", "float32"]
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Program:
    """The program that runs the model.

    Attributes:
        name: ``onnxruntime``, ``pytorch`` or another.
        minimum: the oldest version that may run it.
        opset: of the graph; none where there is no such thing.
    """

    name: str
    minimum: str
    opset: int | None


@dataclass(frozen=True)
class ImagePreparation:
    """Preparation of images.

    Attributes:
        channels: 1 for grey, 3 for colour.
        size: height and width that an image is resized to; one number is the shorter side, none:
            images come in the right size.
        resample: Pillow's number of the filter.
        height, width: of the result, which is cut out of the centre where ``crop`` is true.
        factor, mean, std: of bytes; the graph of ONNX Runtime does this itself.
    """

    channels: Literal[1, 3]
    size: tuple[int, int] | int | None
    resample: Literal[0, 1, 2, 3, 4, 5]
    height: int
    width: int
    crop: bool
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = self.size if isinstance(self.size, tuple) else (self.size or 1,)
        if not all(1 <= side <= _MOST_PIXELS for side in (*sizes, self.height, self.width)):
            raise ValueError(f"sides of images must be 1 to {_MOST_PIXELS} pixels")

    @property
    def form(self) -> ImageForm:
        """The steps before an image's values are scaled."""
        result = self.height, self.width
        return ImageForm(self.channels, self.size, self.resample, result, self.crop)


@dataclass(frozen=True)
class TextPreparation:
    """Preparation of texts with ``tokenizer.json``.

    Attributes:
        max_tokens: longer texts are cut.
        pad_id: what padded places hold, behind the text.
        vocabulary: tokens that the model knows.
    """

    max_tokens: int
    pad_id: int
    vocabulary: int

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= _MOST_TOKENS or self.pad_id >= self.vocabulary:
            raise ValueError(f"max_tokens must be 1 to {_MOST_TOKENS}, pad_id below vocabulary")


@dataclass(frozen=True)
class LanguagePreparation:
    """Preparation of texts that a language model goes on with, by ``tokenizer.json``.

    Attributes:
        context: tokens that the model takes, a prompt's and its own together.
        pad_id, vocabulary: see :class:`TextPreparation`.
        ends: numbers of the tokens that end a text.
        special_tokens: the tokenizer's own, by their part, for the chat template.
    """

    context: int
    pad_id: int
    vocabulary: int
    ends: tuple[int, ...]
    special_tokens: dict[str, str]

    def __post_init__(self) -> None:
        if not 1 <= self.context <= _LONGEST_CONTEXT or self.pad_id >= self.vocabulary:
            raise ValueError(f"context must be 1 to {_LONGEST_CONTEXT}, pad_id below vocabulary")


@dataclass(frozen=True)
class Reference:
    """The pre-trained model that this one was made from; none stands for unknown."""

    name: str
    license: str | None


@dataclass(frozen=True)
class Verification:
    """The comparison with PyTorch, made before the artifact was put in place.

    Attributes:
        data: ``validation`` of the device, ``samples`` that were named, or ``random`` inputs.
        samples: compared inputs.
        largest_difference, tolerance: of logits, relative to their spread; found, and accepted.
        same_class: share of the inputs with PyTorch's class, or of tokens with its next one.
        forced: true if it was written in spite of a refusal.
    """

    data: Literal["validation", "samples", "random"]
    samples: int
    largest_difference: float
    tolerance: float
    same_class: float
    forced: bool


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers on data of the device; ``interval`` is Wilson's of 95 %."""

    data: Literal["validation", "test"]
    samples: int
    artifact: float
    pytorch: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class TokenAccuracy:
    """Shares of a language model's next tokens that are the most probable ones, and losses."""

    data: Literal["validation", "test"]
    tokens: int
    artifact: float
    pytorch: float
    artifact_loss: float
    pytorch_loss: float


@dataclass(frozen=True)
class Latency:
    """Median time of one input on the machine that exported, and of PyTorch there."""

    median_ms: float
    pytorch_ms: float
    batch: int
    threads: int
    machine: str


@dataclass(frozen=True)
class Speed:
    """Speed of a language model on the machine that exported, and of PyTorch there.

    Attributes:
        first_token_ms: median time to the first token behind a prompt.
        tokens_per_s: after that.
        pytorch_first_token_ms, pytorch_tokens_per_s: of the device's model.
        prompt: tokens of the prompt.
        threads, machine: that computed.
    """

    first_token_ms: float
    tokens_per_s: float
    pytorch_first_token_ms: float
    pytorch_tokens_per_s: float
    prompt: int
    threads: int
    machine: str


@dataclass(frozen=True)
class Limit:
    """The device's storage for its model, against the bytes of the model's file."""

    storage_bytes: int
    model_bytes: int
    fits: bool


@dataclass(frozen=True)
class Manifest:
    """All that is known of an artifact.

    Attributes:
        format, version: of this document.
        name: of the device.
        task: what was learned.
        precision: numbers that weights are stored in.
        program: what runs it.
        files: of the folder, without this document.
        inputs, outputs: of the model.
        preparation: from an image or text to the inputs.
        labels: class names in the order of the outputs; a language model has none.
        trained_labels: classes of which the device had samples to learn from.
        reference: none if the model was trained from nothing.
        verification, accuracy, latency: measured at the export, if the program is there.
        limit: none where the device's is not known.
        versions: of the libraries at the export.
        notes: what differs from the device's model.
    """

    format: Literal["acme-artifact"]
    version: Literal[1]
    name: str
    task: str
    precision: Literal["float32", "float16", "int8", "int4"]
    program: Program
    files: dict[str, File]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    preparation: ImagePreparation | TextPreparation | LanguagePreparation
    labels: tuple[str, ...]
    trained_labels: tuple[str, ...]
    reference: Reference | None
    verification: Verification
    accuracy: tuple[Accuracy | TokenAccuracy, ...]
    latency: Latency | Speed | None
    limit: Limit | None
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the artifact: of all its files, this document among them."""
        own = len(self.written().encode())
        return own + sum(file.size_bytes for file in self.files.values())

    def __post_init__(self) -> None:
        for name in self.files:
            if not _NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"files: {name[:60]!r} is no name of a file in this folder")
        if self.writes:
            if self.labels:
                raise ValueError("labels: a language model has none")
        elif len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: at least two are needed, and no two may be equal")
        if unknown := set(self.trained_labels) - set(self.labels):
            raise ValueError(f"trained_labels: {min(unknown)[:60]!r} is no label")

    @property
    def takes_images(self) -> bool:
        """True for images, False for texts."""
        return isinstance(self.preparation, ImagePreparation)

    @property
    def writes(self) -> bool:
        """True of a language model, False of a classifier."""
        return isinstance(self.preparation, LanguagePreparation)

    def written(self) -> str:
        """The document."""
        return json.dumps(plain(self), indent=1, ensure_ascii=False) + "\n"


def is_artifact(folder: Path) -> bool:
    """True if a folder looks like an artifact."""
    try:
        return (folder / MANIFEST).is_file()
    except (OSError, ValueError):
        return False


def read_manifest(folder: Path) -> Manifest:
    """An artifact's manifest; the files that it lists are not looked at.

    Raises:
        ArtifactError: if it is missing, of another version, or damaged.
    """
    path = folder / MANIFEST
    if folder.is_dir() and not path.exists() and (advice := _advice(folder)):
        raise ArtifactError(f"{folder} is no artifact, but {advice}")
    with reading(f"cannot read {path}", ArtifactError):
        content = read_regular(path, LARGEST_MANIFEST)
    return parse_manifest(content, path)


def _advice(folder: Path) -> str:
    """A folder of another kind that acme-fleet writes, and how to get to an artifact from it."""
    if is_artifact(folder / "current"):
        return f"a folder of releases: name {folder / 'current'}"
    made = [str(path.parent) for path in sorted(folder.glob(f"artifacts/*/{MANIFEST}"))]
    if made:
        return f"a run: name an artifact in it, {listed(made)}"
    if (folder / "fleet.yaml").exists() or (folder / "summary.json").exists():
        return f"a run: `acme export {folder} --all` makes artifacts of it"
    if (folder / "header.json").exists() or (folder / "model.safetensors").exists():
        return f"a device's folder: `acme export {folder} --out ARTIFACT` makes one of it"
    return ""


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """The manifest in a file's content; ``path`` is for messages.

    Raises:
        ArtifactError: if it is of another version, or damaged.
    """
    with reading(f"cannot read {path}", ArtifactError):
        document = parse_json(content)
    known = isinstance(document, dict) and document.get("format") == FORMAT
    if not known:
        raise ArtifactError(f"{path} is no manifest of an artifact of acme-fleet")
    if document.get("version") != VERSION:
        raise ArtifactError(
            f"{path} is of version {str(document.get('version'))[:20]}, this program reads "
            f"{VERSION}; install the acme-fleet that wrote it, or export again"
        )
    with reading(f"{path} is damaged", ArtifactError):
        return parse_record(Manifest, document)


def check_files(folder: Path, manifest: Manifest, names: Collection[str]) -> None:
    """Compare listed files with their sizes and checksums.

    Raises:
        ArtifactError: naming the file that is missing, damaged or another one.
    """
    for name in sorted(names):
        read_file(folder, manifest, name)


def read_file(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The content of a listed file, which is as it was written.

    Raises:
        ArtifactError: if it is not listed, missing or damaged.
    """
    path, entry = folder / name, manifest.files.get(name)
    if entry is None:
        raise ArtifactError(f"{folder / MANIFEST} lists no {name}")
    with reading(f"cannot read {path}", ArtifactError):
        size = regular(path).stat().st_size
        if size != entry.size_bytes:
            raise ArtifactError(
                f"{path} has {size:,} bytes, the manifest says {entry.size_bytes:,}: it is damaged "
                f"or another artifact's"
            )
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ArtifactError(
            f"{path} is damaged or another artifact's: its SHA-256 is not the manifest's"
        )
    return content
