"""The files of a Hugging Face checkpoint: found, and looked at before any library reads them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, read_regular, reading
from acme_fleet_runtime.texts import check_numbers

PRETRAINING, WEIGHT_SUMS = "pretraining.json", "weights_sha256"
"""The record of ``acme pretrain`` in its folder; it has a test result once it is finished."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_WANTED = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors")
_LARGEST_DOCUMENT, _LARGEST_TOKENIZER = 2**24, 2**26
_WITH_A_TOWER = ("clip", "siglip")
"""Model types of which the image encoder alone is taken."""


def located(checkpoint: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint: as named, or downloaded from the hub.

    A text that names a folder is that folder.

    Args:
        checkpoint: a folder, or a name on the hub.
        revision: a commit, branch or tag on the hub; of a folder there is only one.

    Raises:
        FleetError: if there is no such folder, and nothing of this name on the hub.
    """
    folder = Path(checkpoint)
    with reading(f"cannot use {shown(checkpoint)}"):
        if folder.is_dir():
            return folder
        there = folder.is_symlink() or folder.exists()
    if there:
        dangling = "a link to nothing" if folder.is_symlink() else "a file"
        raise FleetError(f"cannot use {shown(checkpoint)}: it is {dangling}, no folder")
    name = str(checkpoint)
    if isinstance(checkpoint, Path) or name.startswith((".", "/")):
        raise FleetError(f"cannot use {shown(checkpoint)}: there is no such folder")
    nowhere = f"cannot use {shown(checkpoint)}: there is no such folder"
    if not _HUB_NAME.fullmatch(name):
        raise FleetError(f"{nowhere}, and a name on the hub is NAME or OWNER/NAME")
    from huggingface_hub import snapshot_download

    advice = "without a network, give a folder to --checkpoint or reference.checkpoint"
    with reading(f"{nowhere}, and the hub gave no model of this name ({advice})"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))


def config_content(checkpoint: str | Path, folder: Path) -> dict[str, Any]:
    """A checkpoint's ``config.json``; of a CLIP or SigLIP with both encoders the image encoder's.

    Args:
        checkpoint: its name, for errors.
        folder: where it lies, see :func:`located`.

    Raises:
        FleetError: if it is missing or no JSON object, if the weights are quantised, if the
            checkpoint brings code of its own, or if it is an unfinished pre-training.
    """
    place = f"cannot use {shown(checkpoint)}"
    if is_unfinished(folder):
        raise FleetError(
            f"{place}: it is an unfinished pre-training; finish it with: "
            f"the same `acme pretrain … --out {shown(checkpoint)}` that began it"
        )
    if not (folder / "config.json").exists():
        raise FleetError(f"{place}: it has no config.json; name the folder that has the model's")
    content = read_object(folder / "config.json", f"{place}: config.json")
    if content.get("quantization_config"):
        raise FleetError(
            f"{place}: quantization_config: its weights are quantised; use the checkpoint that "
            f"they were made from, in floating point"
        )
    refuse_code(content, f"{place}: config.json")
    return vision_tower(content)


def vision_tower(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the image encoder in that of a model of images and texts."""
    family = content.get("model_type")
    if family not in _WITH_A_TOWER:
        return content
    tower = content.get("vision_config")
    return {**(tower if isinstance(tower, dict) else {}), "model_type": f"{family}_vision_model"}


def tokenizer_content(checkpoint: str | Path, folder: Path) -> dict[str, Any]:
    """A checkpoint's ``tokenizer_config.json``; empty where there is none.

    Raises:
        FleetError: if it is no JSON object, or brings code of its own; or if a file of the
            tokenizer numbers more tokens than any model knows.
    """
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            place = f"cannot use {shown(checkpoint)}: {name}"
            document = read_object(folder / name, place, _LARGEST_TOKENIZER)
            whole = document if name == "tokenizer.json" else {"model": {"vocab": document}}
            with reading(place):
                check_numbers(whole)
    if not (folder / "tokenizer_config.json").exists():
        return {}
    place = f"cannot use {shown(checkpoint)}: tokenizer_config.json"
    content = read_object(folder / "tokenizer_config.json", place)
    refuse_code(content, place)
    with reading(place):
        check_numbers({"added_tokens": _added_in(content)})
    return content


def _added_in(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tokens that a ``tokenizer_config.json`` adds, as ``tokenizer.json`` lists them."""
    numbered = content.get("added_tokens_decoder")
    added = [
        {"id": int(number), "content": number}
        for number in (numbered if isinstance(numbered, dict) else {})
    ]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        named = content.get(key)
        added += [{"content": name} for name in (named if isinstance(named, list | dict) else ())]
    return added


def refuse_code(content: Mapping[str, Any], place: str) -> None:
    """Refuse a document that names code to run.

    Raises:
        FleetError: if it has an ``auto_map``.
    """
    if content.get("auto_map"):
        raise FleetError(
            f"{place}: auto_map: it brings code of its own, which is never run; use a checkpoint "
            f"of the library's own classes"
        )


def is_unfinished(folder: Path) -> bool:
    """True if a folder holds a pre-training that has not ended.

    Raises:
        FleetError: if its record cannot be read.
    """
    record = folder / PRETRAINING
    if not record.exists():
        return False
    return "test" not in read_object(record, f"cannot read {record}")


def weight_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a folder's weights, by name."""
    sums = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def weight_files(folder: Path, place: str) -> list[Path]:
    """The files of a folder's weights, all of them in the folder itself; none if it has none.

    Raises:
        FleetError: beginning with ``place``, if the list of several files cannot be read, or names
            one that is missing or elsewhere.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        return []
    listed = read_object(folder / INDEX, f"{place}: {INDEX}").get("weight_map")
    named: list[Any] = list(listed.values()) if isinstance(listed, dict) else [None]
    names = {str(name): name for name in named}
    for name in names.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise FleetError(
                f"{place}: {INDEX}: weight_map names {one_line(repr(name), 60)}, and not a "
                f"safetensors file of this folder"
            )
        if not (folder / name).is_file():
            raise FleetError(f"{place}: {name}, which {INDEX} names, is not there")
    return [folder / name for name in sorted(names)]


def check_weights(folder: Path, place: str) -> None:
    """Compare the weights with the checksums that ``acme pretrain`` has written beside them.

    Raises:
        FleetError: beginning with ``place``, naming the file that is another.
    """
    record = folder / PRETRAINING
    if not record.exists():
        return
    told = read_object(record, f"cannot read {record}").get(WEIGHT_SUMS, {})
    with reading(place):
        found = weight_sums(folder)
    if told and (
        wrong := [name for name in {**found, **told} if found.get(name) != told.get(name)]
    ):
        raise FleetError(
            f"{place}: {wrong[0]} is damaged or another model's: {PRETRAINING} tells of another "
            f"file; if the change is meant, remove {PRETRAINING}"
        )


def read_object(path: Path, place: str, most_bytes: int = _LARGEST_DOCUMENT) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FleetError: beginning with ``place``, if it cannot be read or holds something else.
    """
    with reading(place):
        content = json.loads(read_regular(path, most_bytes).decode("utf-8-sig"))
    if not isinstance(content, dict):
        raise FleetError(f"{place}: it holds a {type(content).__name__}, no JSON object")
    return content


def shown(checkpoint: str | Path) -> str:
    """A checkpoint's name, safe to show."""
    return one_line(str(checkpoint), 300)
