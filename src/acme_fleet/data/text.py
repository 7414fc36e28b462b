"""Texts: JSON Lines and CSV files, and the tokenizer that ships with every model."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, field_validator
from tokenizers import Tokenizer
from torch import Tensor

from acme_fleet.data.checkpoint_files import config_content, located, shown, tokenizer_content
from acme_fleet.data.raw import Columns, RawSamples, as_objects, coded, joined, owners
from acme_fleet.data.samples import Samples
from acme_fleet.data.sources.files import require_columns
from acme_fleet.data.vocabulary import cut_tokenizer, kept_tokens
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, read_regular, reading
from acme_fleet_runtime.strict import unique_keys
from acme_fleet_runtime.texts import check_numbers, check_tokens, read_text

_JSON_SPACE = " \t\r"


class TextPreprocessing(BaseModel):
    """From a text to ``input_ids`` and ``attention_mask``, all of one length.

    Attributes:
        tokenizer: the content of a Hugging Face ``tokenizer.json``.
        max_tokens: longer texts are cut, shorter ones padded, special tokens included.
        pad_id: what padded places hold.
        vocabulary: tokens that the model knows, where its configuration says so.
        special_tokens: the tokenizer's own, by their part, such as ``cls_token``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text"] = "text"
    tokenizer: dict[str, Any]
    max_tokens: PositiveInt
    pad_id: NonNegativeInt
    vocabulary: PositiveInt | None = None
    special_tokens: dict[str, str] = {}

    @field_validator("tokenizer")
    @classmethod
    def _bounded(cls, document: dict[str, Any]) -> dict[str, Any]:
        """A text's tokens are the same each time: merges are not left out at random."""
        check_numbers(document)
        model = document.get("model")
        if isinstance(model, dict) and model.get("dropout"):
            return {**document, "model": {**model, "dropout": None}}
        return document

    @classmethod
    def of_checkpoint(
        cls, checkpoint: str | Path, max_tokens: int, revision: str | None = None
    ) -> TextPreprocessing:
        """The tokenizer that a checkpoint was trained with; none of its own code is run.

        Raises:
            FleetError: if the checkpoint has no tokenizer, or a slow one only.
        """
        from transformers import CONFIG_MAPPING, AutoTokenizer

        folder = located(checkpoint, revision)
        content = config_content(checkpoint, folder)
        tokenizer_content(checkpoint, folder)
        place = (
            f"reference.checkpoint: {shown(checkpoint)} has no tokenizer that can be read; texts "
            f"need a BERT-like checkpoint with its tokenizer.json"
        )
        with reading(place):
            # Of its type, with none of its numbers: transformers allocates what they ask for.
            config = CONFIG_MAPPING[str(content.get("model_type"))]()
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, trust_remote_code=False
            )
            document = json.loads(tokenizer.backend_tokenizer.to_str())
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up where there is no file
            raise FleetError(f"reference.checkpoint: {checkpoint} has no tokenizer")
        # Padded places are masked: any token that exists will do where none is meant for it.
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        size = content.get("vocab_size")
        special = {part: str(token) for part, token in tokenizer.special_tokens_map.items()}
        return cls(
            tokenizer=document,
            max_tokens=max_tokens,
            pad_id=pad_id,
            vocabulary=size if isinstance(size, int) and size > 0 else None,
            special_tokens=special,
            **cls._further(tokenizer),
        )

    @classmethod
    def _further(cls, tokenizer: Any) -> dict[str, Any]:
        """Fields of a subclass, from the checkpoint's tokenizer."""
        return {}

    def kept_tokens(self, samples: Sequence[Samples], size: int) -> list[int]:
        """Numbers of the tokens of a smaller vocabulary, see :func:`vocabulary.kept_tokens`.

        Args:
            samples: texts whose tokens come first.
            size: of the new vocabulary.

        Raises:
            FleetError: if it cannot be made.
        """
        uses = Counter[int]()
        for texts in samples:
            real = texts.inputs["input_ids"][texts.inputs["attention_mask"] != 0]
            uses.update(real.tolist())
        return kept_tokens(self.tokenizer, uses, size)

    def cut(self, kept: Sequence[int]) -> Self:
        """The same, for a model that knows these tokens alone, numbered anew."""
        cut = {
            "tokenizer": cut_tokenizer(self.tokenizer, kept),
            # Where no token is meant for padding it is any, and need not have stayed.
            "pad_id": list(kept).index(self.pad_id) if self.pad_id in kept else 0,
            "vocabulary": len(kept),
        }
        return type(self).model_validate({**self.model_dump(), **cut})

    def inputs(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """Tokenize texts.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 of shape ``(texts, max_tokens)``.

        Raises:
            FleetError: naming the text that cannot be tokenized, that has no token but special
                ones, or one that the model does not know.
        """
        texts = list(texts)
        with reading("the texts cannot be tokenized"):
            encoded = self._ready.encode_batch(texts)
        for text, tokens in zip(texts, encoded, strict=True):
            check_tokens(tokens, text, self.max_tokens, self.vocabulary)
        ids = torch.tensor([text.ids for text in encoded], dtype=torch.int64)
        mask = torch.tensor([text.attention_mask for text in encoded], dtype=torch.int64)
        shape = (len(encoded), self.max_tokens)
        return {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}

    def read(self, paths: Iterable[Path]) -> list[str]:
        """Read text files, each one sample.

        Raises:
            FleetError: naming the file that is missing or no text.
        """
        return [read_text(path) for path in paths]

    def ready(self) -> Tokenizer:
        """The tokenizer, set to cut and pad."""
        return self._ready

    def document(self) -> str:
        """The content of ``tokenizer.json``."""
        return json.dumps(self.tokenizer)

    @cached_property
    def _ready(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self.document())
        tokenizer.enable_truncation(self.max_tokens)
        pad_token = tokenizer.id_to_token(self.pad_id) or "[PAD]"
        tokenizer.enable_padding(length=self.max_tokens, pad_id=self.pad_id, pad_token=pad_token)
        return tokenizer


def read_json_lines(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    """Read files with one JSON object a line: the text, the label and, optionally, whose it is.

    Where the label is optional, all lines of a file have it or none has.

    Raises:
        FleetError: naming the file and line that cannot be read, or the key that is missing.
    """
    return joined([_read_lines(path, columns, where) for path in paths], where)


def json_lines(path: Path, where: str) -> list[tuple[str, str]]:
    """Lines of a file that are not empty, each after what to call it in an error.

    The rows of a ``.csv`` file are such lines too: objects with its first row's names as keys.

    Raises:
        FleetError: if the file cannot be read, or a row has other columns than the first.
    """
    with reading(f"{where}: cannot read {path}"):
        content = read_regular(path)
    with reading(f"{where}: cannot read {path} as UTF-8"):
        text = content.decode("utf-8-sig")
    if path.suffix.lower() == ".csv":
        return _csv_rows(text, f"{where}: {path}")
    lines = text.split("\n")  # only these end a line; U+2028 and U+0085 may stand in a text
    return [
        (f"{where}: {path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip(_JSON_SPACE)
    ]


def _csv_rows(text: str, where: str) -> list[tuple[str, str]]:
    """The rows of a table as JSON, each after what to call it; see :func:`json_lines`."""
    with reading(where):
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    rows = [row for row in rows if row]
    if rows and len({*rows[0]}) < len(rows[0]):
        raise FleetError(f"{where}, row 1: two columns have one name: {', '.join(rows[0])}")
    found = []
    for number, row in enumerate(rows[1:], 2):
        place = f"{where}, row {number}"
        if len(row) != len(rows[0]):
            raise FleetError(
                f"{place} has {len(row)} cells, the first row has {len(rows[0])}; a text with a "
                f'comma stands in "quotes"'
            )
        found.append((place, json.dumps(dict(zip(rows[0], row, strict=True)))))
    return found


def _read_lines(path: Path, columns: Columns, where: str) -> RawSamples:
    places = json_lines(path, where)
    rows = [_row(line, columns, place) for place, line in places]

    def place(number: int) -> str:
        return places[number][0]

    texts = [row[columns.item] for row in rows]
    stored = np.array([len(text.encode()) for text in texts], dtype=np.int64)
    label = f"{where}: {path}"
    if columns.label_optional and not any(columns.label in row for row in rows):
        return RawSamples(as_objects(texts), None, None, stored, None, label)
    for number, row in enumerate(rows):
        require_columns(columns.wanted, list(row), place(number))
    codes, names, text_labels = coded([row[columns.label] for row in rows], None, place)
    groups = owners([row[columns.group] for row in rows], place) if columns.group else None
    return RawSamples(as_objects(texts), codes, names, stored, groups, label, text_labels)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The object of a line.

    Raises:
        FleetError: if it is none.
    """
    with reading(f"{where} is no JSON"):
        row = json.loads(line, object_pairs_hook=unique_keys)
    if not isinstance(row, dict):
        raise FleetError(f"{where} is no JSON object")
    return row


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """The text at a key.

    Raises:
        FleetError: if it is no text, or empty.
    """
    text = row[key]
    if not isinstance(text, str):
        raise FleetError(f"{where}: {key!r} is {one_line(json.dumps(text), 40)}, no text")
    with reading(f"{where}: {key!r} is no Unicode text"):
        text.encode()
    if not text.strip():
        raise FleetError(f"{where}: {key!r} is empty")
    return text


def _row(line: str, columns: Columns, where: str) -> dict[str, Any]:
    row = json_object(line, where)
    require_columns(columns.within(row), list(row), where)
    text_of(row, columns.item, where)
    if columns.label in row:
        check_label(row, columns.label, where)
    return row


def check_label(row: Mapping[str, Any], key: str, where: str) -> None:
    """Refuse a label that is neither text nor an integer.

    Raises:
        FleetError: naming it.
    """
    label = row[key]
    if isinstance(label, bool) or not isinstance(label, str | int):
        told = one_line(json.dumps(label), 40)
        raise FleetError(f"{where}: {key!r} must be text or an integer, and is {told}")
