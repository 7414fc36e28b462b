"""The folder that ships to a device, for acme-fleet, transformers and ``sha256sum -c``.

``config.json`` describes the whole classifier, ``model.safetensors`` holds its weights. Nothing in
the folder is trusted when it is read: an error names the file, and the tensor or key.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from acme_fleet.cost.size import SCALE
from acme_fleet.data.datasets import Preprocessing
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.errors import AcmeError, ProtocolError, RunError
from acme_fleet.messages.base import check_shapes
from acme_fleet.models.backbone.precision import pack
from acme_fleet.models.description import (
    IMAGE_TYPE,
    LANGUAGE_TYPE,
    TEXT_TYPE,
    Description,
    first_mistake,
    parse_description,
)
from acme_fleet.models.features import CustomizedModel, FeatureSizes, feature_sizes
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.models.storage import (
    CLASS_NAMES,
    CONFIG,
    HEADER,
    PREPROCESSING,
    TOKENIZER,
    WEIGHTS,
    backbone_from,
    config_document,
    saving,
    with_prefix,
    without_prefix,
)
from acme_fleet.outside import one_line, read_regular, reading, regular
from acme_fleet.runs.atomic import replacing
from acme_fleet.runs.directory import FLEET

SUMS, TOKENIZER_CONFIG = "SHA256SUMS", "tokenizer_config.json"
GENERATION = "generation_config.json"  # of language models only
PROCESSOR_CLASS, TOKENIZER_CLASS = "AcmeImageProcessor", "AcmeTokenizer"
SHIPPED_FILES = {
    *(CONFIG, HEADER, CLASS_NAMES, PREPROCESSING, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS),
    GENERATION,
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ROUNDED = (torch.int8, torch.uint8)  # where the precision says so
_LARGEST_DOCUMENT = 2**26
_MOST_PIXELS, _MOST_TOKENS = 4096, 4096  # that a message may ask for


class ImageModel(CustomizedModel):
    """A device's model of images: a plain PyTorch module from pixels to logits."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pixel_values: Tensor
    ) -> Tensor:
        """Logits of shape ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        return super().forward(pixel_values=pixel_values)


class TextModel(CustomizedModel):
    """A device's model of texts: a plain PyTorch module from tokens to logits.

    A language model's are of shape ``(batch, words, tokens)``: for the token after each.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of shape ``(batch, classes)``; both inputs have shape ``(batch, tokens)``."""
        if attention_mask is None:
            return super().forward(input_ids=input_ids)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


# --- writing ----------------------------------------------------------------------------------


def save_device_model(
    folder: Path,
    model: CustomizedModel,
    header: Header,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    trained_classes: Sequence[str],
) -> None:
    """Write all that is needed to use the model without the run.

    Args:
        folder: its files are replaced together, once all of them are written.
        model: a backbone, and the header.
        header: the same header, with its plan.
        class_names: in the order of the logits.
        preprocessing: how a file becomes the model's input.
        trained_classes: names of the classes in the device's train set.
    """
    images = isinstance(preprocessing, ImagePreprocessing)
    writes = isinstance(preprocessing, LanguagePreprocessing)
    description = Description(
        model_type=IMAGE_TYPE if images else LANGUAGE_TYPE if writes else TEXT_TYPE,
        backbone=config_document(model.backbone),
        header=header.plan,
        id2label={} if writes else dict(enumerate(class_names)),
        trained_classes=[] if writes else list(trained_classes),
    )
    write_folder(folder, description, model.state_dict(), preprocessing_documents(preprocessing))


def write_folder(
    folder: Path,
    description: Description,
    tensors: Mapping[str, Tensor],
    others: Mapping[str, Any],
) -> None:
    """Write a classifier's folder.

    Args:
        folder: its files are replaced together.
        description: the backbone's precision is that of the file.
        tensors: the model's, of any floating-point type.
        others: further documents by file name.
    """
    documents = {
        CONFIG: description.document(),
        HEADER: description.header.model_dump(mode="json"),
        **({} if description.writes else {CLASS_NAMES: description.class_names}),
        **others,
    }
    precision = description.backbone.get("precision", "float32")
    if precision != "float32":
        parts = (without_prefix("backbone", tensors), without_prefix("header", tensors))
        packed, plain = pack(parts[0], precision), pack(parts[1], "float32")
        tensors = with_prefix("backbone", packed) | with_prefix("header", plain)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with ExitStack() as files:  # leaving it puts all files in place, the last one first
        written = {
            name: files.enter_context(replacing(folder / name))
            for name in (SUMS, *documents, WEIGHTS)
        }
        for name, content in documents.items():
            written[name].write_text(json.dumps(content, indent=1), encoding="utf-8")
        with saving(folder / WEIGHTS):
            save_file(plain, written[WEIGHTS], metadata={"format": "pt"})
        # safetensors' files are the owner's alone, unlike their neighbours.
        written[WEIGHTS].chmod(written[CONFIG].stat().st_mode & 0o777)
        names = sorted((*documents, WEIGHTS))
        sums = "".join(f"{_digest(written[name])}  {name}\n" for name in names)
        written[SUMS].write_text(sums, encoding="ascii")


def preprocessing_documents(preprocessing: Preprocessing) -> dict[str, Any]:
    """The files, by name, that say how an image or text becomes the model's input."""
    document = preprocessing.model_dump(mode="json")
    if isinstance(preprocessing, ImagePreprocessing):
        return {PREPROCESSING: {**document, "image_processor_type": PROCESSOR_CLASS}}
    tokenizer, special = preprocessing.ready(), document.get("special_tokens", {})
    del document["tokenizer"]
    if isinstance(preprocessing, LanguagePreprocessing):
        return _language_documents(preprocessing, document)
    return {
        PREPROCESSING: document,
        TOKENIZER: json.loads(tokenizer.to_str()),
        TOKENIZER_CONFIG: {
            "tokenizer_class": TOKENIZER_CLASS,
            "model_max_length": preprocessing.max_tokens,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",
            "truncation_side": "right",
            **special,
            "pad_token": tokenizer.id_to_token(preprocessing.pad_id),
        },
    }


def _language_documents(
    preprocessing: LanguagePreprocessing, document: dict[str, Any]
) -> dict[str, Any]:
    """A language model's, whose tokenizer neither cuts nor pads unless it is asked to."""
    ready, special = preprocessing.ready(), preprocessing.special_tokens
    template = preprocessing.chat_template
    numbers = {"eos_token_id": preprocessing.end, "pad_token_id": preprocessing.pad_id}
    if "bos_token" in special:
        numbers["bos_token_id"] = ready.token_to_id(special["bos_token"])
    return {
        PREPROCESSING: document,
        TOKENIZER: json.loads(ready.to_str()),
        TOKENIZER_CONFIG: {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "left",
            **special,
            "pad_token": ready.id_to_token(preprocessing.pad_id),
            **({} if template is None else {"chat_template": template}),
        },
        GENERATION: {name: number for name, number in numbers.items() if number is not None},
    }


def parse_preprocessing(
    document: Mapping[str, Any], what: str, kind: type[AcmeError] = ProtocolError
) -> Preprocessing:
    """The preprocessing that a document describes.

    Raises:
        AcmeError: of this ``kind``, if it describes none.
    """
    rule = TextPreprocessing if "tokenizer" in document else ImagePreprocessing
    if document.get("kind") == "language":
        rule = LanguagePreprocessing
    own = {key: document[key] for key in document if key != "image_processor_type"}
    try:
        return rule.model_validate(own)
    except ValidationError as error:
        raise kind(f"{what}: {first_mistake(error)}") from None


def sent_preprocessing(document: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that came in a message, by which the receiver reads its own data.

    Raises:
        ProtocolError: if it is none, or would make images or texts larger than any model takes.
    """
    rule = parse_preprocessing(document, "the preprocessing that was sent")
    if isinstance(rule, TextPreprocessing):
        largest, most, unit = rule.max_tokens, _MOST_TOKENS, "tokens a text"
    else:
        sides = rule.size.model_dump().values()
        largest, most, unit = max(*sides, *rule.result), _MOST_PIXELS, "pixels a side"
    if largest > most:
        raise ProtocolError(
            f"the preprocessing that was sent makes {largest} {unit}, at most {most} are accepted"
        )
    return rule


# --- reading ----------------------------------------------------------------------------------


def load_device_model(folder: str | Path) -> CustomizedModel:
    """A device's model from its folder alone, in eval mode.

    In memory weights are float32; at int8 it computes as runtimes do, see
    :mod:`acme_fleet.models.backbone.precision`.

    Called by position or by name: ``model(pixel_values)``, ``model(input_ids, attention_mask)``.

    Raises:
        RunError: naming the file that is missing or damaged, and the tensor or key that is wrong.
    """
    return load_described(Path(folder))[0]


def load_described(folder: Path) -> tuple[CustomizedModel, Description]:
    """As :func:`load_device_model`, with the model's description.

    Raises:
        RunError: as there.
    """
    check_sums(folder)
    description = read_description(folder)
    tensors = _read_weights(folder / WEIGHTS)
    strangers = [name for name in tensors if not name.startswith(("backbone.", "header."))]
    header_tensors, plan = without_prefix("header", tensors), description.header
    try:
        check_shapes(dict.fromkeys(strangers, torch.empty(0)), {}, "the file")
        check_shapes(header_tensors, plan.shapes(), "the header")
        backbone = backbone_from(description.backbone, without_prefix("backbone", tensors))
    except ProtocolError as error:
        raise RunError(f"{folder / CONFIG} and {WEIGHTS} do not fit: {error}") from error
    config = backbone.config
    kind = ImageModel if description.model_type == IMAGE_TYPE else TextModel
    sizes = FeatureSizes(plan.hidden, plan.axes, 0 if plan.causal else plan.pooled_size)
    if sizes != feature_sizes(config) or (plan.axes == 1) != (kind is TextModel):
        raise RunError(f"{folder / CONFIG}: the header is not one for such a backbone")
    header = build_header(plan, {name: tensor.float() for name, tensor in header_tensors.items()})
    return kind(backbone, header.requires_grad_(False)).eval(), description


def read_description(folder: Path) -> Description:
    """A folder's ``config.json``.

    Raises:
        RunError: if it is missing or damaged, or differs from ``header.json``.
    """
    path = folder / CONFIG
    document = _read_document(path)
    description = parse_description(document, str(path))
    if (folder / HEADER).exists():
        plan = _read_document(folder / HEADER)
        if plan != description.header.model_dump(mode="json"):
            raise RunError(f"{folder / HEADER} is not the header that {CONFIG} describes")
    return description


def read_class_names(folder: Path) -> list[str]:
    """Class names in the order of the logits.

    Raises:
        RunError: if they are missing or damaged.
    """
    return read_description(folder).class_names


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read the preprocessing beside a device's model.

    Raises:
        RunError: if it is missing or damaged.
    """
    path = folder / PREPROCESSING
    document = _read_document(path)
    if not isinstance(document, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    if (folder / TOKENIZER).exists():
        document["tokenizer"] = _read_document(folder / TOKENIZER)
    return parse_preprocessing(document, f"{path} is damaged", RunError)


def check_sums(folder: Path) -> None:
    """Compare the files with the checksums beside them; a folder without these passes.

    Raises:
        RunError: naming the file that is missing, damaged or another device's.
    """
    with reading(f"cannot read {folder}", RunError):
        there = folder.is_dir()
    if not there:
        raise RunError(f"cannot read {folder}: there is no such folder")
    if (folder / FLEET).exists():
        raise RunError(f"{folder} holds a whole run; name a device's folder: {folder}/devices/NAME")
    path = folder / SUMS
    if not path.exists():
        return
    with reading(f"cannot read {path}", RunError):
        lines = read_regular(path, _LARGEST_DOCUMENT).decode("ascii").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = {name for name in SHIPPED_FILES if (folder / name).exists()}
    if len(sums) != len(lines) or not {WEIGHTS, CONFIG} <= sums.keys() <= SHIPPED_FILES:
        raise RunError(f"{path} is damaged: it is no list of checksums of this folder's files")
    for name in sorted(present | sums.keys()):
        with reading(f"cannot read {folder / name}", RunError):
            digest = _digest(regular(folder / name))
        if digest != sums.get(name):
            raise RunError(
                f"{folder / name} is damaged or another model's: {SUMS} tells of another file; if "
                f"the change is meant, remove {SUMS}"
            )


def _read_weights(path: Path) -> dict[str, Tensor]:
    with reading(f"cannot read {path}", RunError):
        tensors = load_file(regular(path))
    kinds = defaultdict[str, set[torch.dtype]](set)  # of each part
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not name.endswith(SCALE):
            kinds[name.partition(".")[0]].add(tensor.dtype)
    for name, tensor in tensors.items():
        wrong, others = None, kinds[name.partition(".")[0]]
        if tensor.dtype not in (*_FLOATS, *_ROUNDED):
            wrong = f"is of type {_named(tensor.dtype)}, weights are floating-point numbers"
        elif len(others) > 1 and tensor.dtype in others - {torch.float32}:
            wrong = f"is of type {_named(tensor.dtype)}, other weights are of another"
        elif not bool(torch.isfinite(tensor).all()):
            wrong = "holds values that are not finite"
        if wrong:
            raise RunError(f"{path}: {one_line(name, 100)} {wrong}")
    return tensors


def _named(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _read_document(path: Path) -> Any:
    with reading(f"cannot read {path}", RunError):
        return json.loads(read_regular(path, _LARGEST_DOCUMENT))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
