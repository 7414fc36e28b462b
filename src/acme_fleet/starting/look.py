"""Data looked at before there is a fleet file: classes, counts, sizes, and what cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from acme_fleet.config.data import Data
from acme_fleet.data.datasets import list_source, said_of
from acme_fleet.data.language import LanguagePreprocessing, read_item
from acme_fleet.data.sources.archives import data_at
from acme_fleet.data.sources.files import require_columns
from acme_fleet.data.text import TextPreprocessing, check_label, json_lines, json_object, text_of
from acme_fleet.errors import FleetError
from acme_fleet.outside import listed, one_line, optional, reading, resolved
from acme_fleet.starting.have import Template
from acme_fleet.starting.shape import is_known
from acme_fleet_runtime.images import open_image, plain_array

Progress = Callable[[int, int], None]
_TEXTS = ("text", "sentence", "utterance", "query", "content", "review")
_LABELS = ("label", "intent", "category", "class", "target", "topic")
_OWNERS = ("device", "user", "speaker", "client", "owner", "writer", "site", "author", "domain")
_FEW = 10  # samples of a class
_SHOWN = 12  # classes
_OFTEN = 0.95  # of the texts
_STRETCH = 2  # times as long as these: so much padding is accepted to cut no text
_LONGEST = {"text": 512, "assistant": 4096}  # tokens
_TOKENS_A_CHARACTER = 0.4  # where the checkpoint is not here to count them; rather too many


@dataclass(frozen=True)
class Found:
    """Somebody's data.

    Attributes:
        template: the kind of fleet that they are for.
        settings: of a fleet file's ``data``.
        samples: their number, those that cannot be read left out.
        classes: samples of each class; none where texts have no labels.
        side: usual side of an image in pixels: the median of the shorter one; 0 of texts.
        channels: of images: 1 where all are grey, else 3; 0 of texts.
        tokens: to which texts are cut or padded; 0 of images.
        owners: different values of the column that says whose a sample is; none without one.
        told: what was seen, a line each.
        broken: what cannot be read, a line each; a run would refuse it.
        texts: as they were read; none of images.
    """

    template: Template
    settings: dict[str, Any]
    samples: int
    classes: Mapping[str, int]
    side: int = 0
    channels: int = 0
    tokens: int = 0
    owners: int | None = None
    told: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    texts: Sequence[Mapping[str, Any]] = field(default=(), repr=False)


# --- images -----------------------------------------------------------------------------------


def look_at_images(path: Path, progress: Progress) -> Found:
    """Every image of a folder, a parquet or an .npz file; each is decoded once.

    Args:
        path: as for ``acme pretrain --data``.
        progress: is told how many images of all were decoded.

    Raises:
        FleetError: if there are no images in classes, or none that can be read.
    """
    try:
        return _images(data_at(path), progress)
    except FleetError as error:
        told = str(error).replace("--data", "--images").replace("data.train", "--images")
        raise FleetError(told) from error


def look_at_dataset(name: str, progress: Progress) -> Found:
    """A data set of the Hugging Face hub or a folder that ``datasets`` reads; or the digits.

    Raises:
        FleetError: if it cannot be loaded, or has no column of images or none of labels.
    """
    if name == "digits":
        return _images(Data(), progress)
    datasets = optional("datasets", '--dataset needs datasets: pip install "acme-fleet[data]"')
    with reading(f"--dataset: {one_line(name, 200)} cannot be loaded"):
        there = datasets.load_dataset(name)
    if "train" not in there:
        raise FleetError(f"--dataset: {name} has no split 'train': {', '.join(map(str, there))}")
    features = there["train"].features
    image = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    label = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label = label or [key for key in _LABELS if key in features]
    if not image or not label:
        raise FleetError(
            f"--dataset: {name} has no column of images with one of labels: {', '.join(features)}; "
            f"texts are read from JSON Lines, which datasets writes: "
            f"load_dataset({name!r})['train'].to_json('train.jsonl'), then --text train.jsonl"
        )
    train = str(resolved(Path(name))) if Path(name).is_dir() else name
    data = Data(
        source="huggingface",
        train=train,
        test="test" if "test" in there else None,
        image_column=image[0],
        label_column=label[0],
    )
    return _images(data, progress)


def _images(data: Data, progress: Progress) -> Found:
    listed = list_source(data)
    parts = (listed.train, listed.test)
    total, done = sum(len(part.labels) for part in parts), 0
    sides: list[int] = []
    grey, counts, broken = True, Counter[str](), list[str]()
    for part in parts:
        for item, label in zip(part.items, part.labels.tolist(), strict=True):
            name = str(item) if isinstance(item, Path) else f"image {done + 1}"
            progress(done, total)
            done += 1
            try:
                shape = _pixels(item, name)
            except FleetError as error:
                broken.append(str(error))
                continue
            sides.append(min(shape[:2]))
            grey &= len(shape) == 2 or shape[2] == 1
            counts[listed.classes[label]] += 1
    progress(total, total)
    if not sides:
        raise FleetError(f"{data.train}: none of {total:,} images can be read: {broken[0]}")
    keys = ("source", "train", "test", "image_column", "label_column")
    defaults = Data()
    settings = {
        key: value
        for key in keys
        if (value := getattr(data, key)) is not None
        and (key in ("source", "train", "test") or value != getattr(defaults, key))
    }
    kinds = f"{min(sides)} pixels" if min(sides) == max(sides) else f"{min(sides)} to {max(sides)}"
    told = [
        f"{len(sides):,} images of {len(counts)} classes, {'grey' if grey else 'in colour'}; "
        f"shorter side {kinds}, the median {median_low(sides)}",
        *_about_classes(counts),
    ]
    return Found(
        *("vision", settings, len(sides), dict(counts)),
        side=median_low(sides),
        channels=1 if grey else 3,
        told=told,
        broken=broken,
    )


def _pixels(item: Any, name: str) -> tuple[int, ...]:
    """Height, width and, in colour, channels of an image, which is decoded."""
    if isinstance(item, np.ndarray):
        return item.shape
    image = open_image(item, name)
    with said_of(f"cannot read {name}"):
        return plain_array(image, 1 if image.mode in ("1", "L", "LA") else 3).shape


def _about_classes(counts: Mapping[str, int]) -> list[str]:
    """The classes with their samples, of many the smallest and the largest; and those with few."""
    if not counts:
        return []
    order = sorted(counts, key=lambda name: (counts[name], name))
    shown = [f"{one_line(name, 30)} {counts[name]:,}" for name in order]
    if len(shown) > _SHOWN:
        half = _SHOWN // 2
        shown = [*shown[:half], f"… {len(shown) - 2 * half} more …", *shown[-half:]]
    few = [name for name in order if counts[name] < _FEW]
    told = [f"samples of each class, the smallest first: {', '.join(shown)}"]
    if few:
        named = ", ".join(one_line(name, 30) for name in few[:5])
        told.append(f"fewer than {_FEW} samples: {named}{', …' if len(few) > 5 else ''}")
    return told


# --- texts ------------------------------------------------------------------------------------


def look_at_texts(path: Path, checkpoint: str | Path, template: Template | None) -> Found:
    """Every line of a JSON Lines file.

    Prompts with answers, messages, and texts without a label are for an assistant; texts with a
    label are to be classified, unless ``template`` says otherwise.

    Args:
        path: of the file.
        checkpoint: whose tokenizer counts the tokens, if it is here.
        template: ``text``, ``assistant``, or none to let the lines decide.

    Raises:
        FleetError: if it cannot be read, or no line can be used.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    broken: list[str] = []
    for place, line in json_lines(path, "--text"):
        try:
            rows.append((place, json_object(line, place)))
        except FleetError as error:
            broken.append(str(error))
    if not rows:
        raise FleetError(f"--text: {path} has no line with a JSON object; {_FORMS}")
    kind = template or _kind(rows[0][1])
    text = _column(rows, _TEXTS)
    label = _column(rows, _LABELS)
    keys = ", ".join(one_line(key, 40) for key in rows[0][1])
    if kind == "text" and (text is None or label is None):
        raise FleetError(
            f"{rows[0][0]} has the keys {keys}; to classify, it needs one of "
            f"{', '.join(_TEXTS)} and one of {', '.join(_LABELS)}; {_FORMS}"
        )
    if kind == "assistant" and text is None and not {"prompt", "messages"} & rows[0][1].keys():
        raise FleetError(f"{rows[0][0]} has the keys {keys}; {_FORMS}")
    owner = _owner([row for _, row in rows])
    items: list[Mapping[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for place, row in rows:
        try:
            item = _item(row, kind, text or "text", label, place)
            if owner is not None and not _is_owner(row.get(owner)):
                raise FleetError(f"{place} lacks {owner}, which says whose the other texts are")
        except FleetError as error:
            broken.append(str(error))
            continue
        items.append(item)
        kept.append(row)
    if not items:
        raise FleetError(f"--text: none of {len(rows):,} lines can be used: {broken[0]}")
    values = sorted({str(row[owner]) for row in kept}) if owner else []
    if len(values) < 2:
        owner, values = None, []
    # Each line of a file has a label or none has.
    counts = Counter[str]()
    if label is not None and all(label in row for row in kept):
        counts.update(str(row[label]) for row in kept)
    tokens, counted = _tokens(kind, items, checkpoint)
    settings: dict[str, Any] = {
        "source": "text" if kind == "text" else "language",
        "train": path,
        **({"text_column": text} if text not in (None, "text") else {}),
        **({"label_column": label} if label not in (None, "label") and counts else {}),
        "max_tokens": tokens,
    }
    if owner is not None:
        settings["partition"] = {"scheme": "natural", "column": owner}
    told = [
        f"{len(items):,} texts{f' of {len(counts)} classes' if counts else ''}",
        counted,
        *_about_classes(counts),
        *(
            [f"{owner} says whose a text is: {len(values)} of them, {listed(values, 6)}"]
            if owner
            else []
        ),
    ]
    return Found(
        *(kind, settings, len(items), dict(counts)),
        tokens=tokens,
        owners=len(values) or None,
        told=told,
        broken=broken,
        texts=items,
    )


def counted_again(found: Found, known: TextPreprocessing, checkpoint: str | Path) -> Found:
    """The same texts, with their length in the tokens of another vocabulary.

    Args:
        found: from :func:`look_at_texts`.
        known: a tokenizer of that vocabulary.
        checkpoint: the model's.
    """
    size, lengths = len(known.tokenizer["model"]["vocab"]), _lengths(found.texts, known)
    source = f"in a vocabulary that is cut to {size:,} tokens, those of your texts first"
    most = _most(found.template, checkpoint)
    tokens, counted = _kept_length(found.template, lengths, most, source)
    # The line after the number of texts is the one of their length.
    told = [found.told[0], counted, *found.told[2:]]
    settings = {**found.settings, "max_tokens": tokens}
    return replace(found, tokens=tokens, settings=settings, told=told)


_FORMS = (
    'a line is {"text": …, "label": …} to classify; {"text": …}, {"prompt": …, "answer": …} or '
    '{"messages": [{"role": …, "content": …}, …]} for an assistant'
)


def _kind(row: Mapping[str, Any]) -> Template:
    labelled = any(key in row for key in _LABELS)
    return "text" if labelled and not {"prompt", "messages"} & row.keys() else "assistant"


def _column(rows: Sequence[tuple[str, Mapping[str, Any]]], usual: Sequence[str]) -> str | None:
    return next((name for name in usual if name in rows[0][1]), None)


def _item(
    row: Mapping[str, Any], kind: Template, text: str, label: str | None, place: str
) -> Mapping[str, Any]:
    if kind == "assistant":
        return read_item(row, text, place)
    assert label is not None
    require_columns([text, label], list(row), place)
    check_label(row, label, place)
    return {"text": text_of(row, text, place)}


def _owner(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A column with a usual name for the owner, and several values in most of the rows.

    Where a few rows lack it, these are in need of repair: dealt alike, everybody's would mix.
    """
    for name in _OWNERS:
        values = [str(row[name]) for row in rows if _is_owner(row.get(name))]
        if len({*values}) > 1 and len(values) > len(rows) / 2:
            return name
    return None


def _is_owner(value: object) -> bool:
    return isinstance(value, str | int)


def _tokens(
    kind: Template, items: Sequence[Mapping[str, Any]], checkpoint: str | Path
) -> tuple[int, str]:
    """The tokens to which texts are cut or padded, and a line about their lengths."""
    if is_known(checkpoint):
        lengths = [int(_TOKENS_A_CHARACTER * len(str(item))) + 3 for item in items]
        return _kept_length(kind, lengths, _LONGEST[kind], "by their characters")
    from acme_fleet.models.backbone.checkpoints import check_kind

    check_kind(checkpoint, images=False, writes=kind == "assistant")
    reader = TextPreprocessing if kind == "text" else LanguagePreprocessing
    lengths = _lengths(items, reader.of_checkpoint(checkpoint, _LONGEST[kind]))
    return _kept_length(kind, lengths, _most(kind, checkpoint), "by the checkpoint's tokenizer")


def _lengths(items: Sequence[Mapping[str, Any]], known: TextPreprocessing) -> list[int]:
    """Tokens of each text, none of which is cut."""
    if isinstance(known, LanguagePreprocessing):
        return [known.length(item) for item in items]
    tokenizer = Tokenizer.from_str(known.document())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(each.ids) for each in tokenizer.encode_batch([item["text"] for item in items])]


def _most(kind: Template, checkpoint: str | Path) -> int:
    """Tokens of the longest text that a model takes, or that anybody should want of it."""
    from acme_fleet.models.backbone.checkpoints import read_checkpoint
    from acme_fleet.models.families import family_of, most_tokens

    config = read_checkpoint(checkpoint).config
    if family_of(config).grid == "image":  # refused where its shape is read
        return _LONGEST[kind]
    return min(_LONGEST[kind], most_tokens(config))


def _kept_length(kind: Template, lengths: list[int], most: int, source: str) -> tuple[int, str]:
    """The tokens to which texts are cut or padded, and a line about it.

    No text is cut, unless a few to classify are far longer than the others.
    """
    lengths = sorted(lengths)
    usual, wanted = lengths[int(_OFTEN * len(lengths))], lengths[-1]
    if kind == "text" and wanted > _STRETCH * usual:
        wanted = usual
    tokens = min(max(8, 8 * -(-wanted // 8)), most)
    told = f"{lengths[len(lengths) // 2]} tokens in the median, {lengths[-1]} at most, {source}"
    if cut := sum(length > tokens for length in lengths):
        told += (
            f"; max_tokens: {tokens} cuts {cut:,} of them"
            if kind == "text"
            else f"; {cut:,} are longer than the {tokens} that can be learned: shorten them"
        )
    return tokens, told
