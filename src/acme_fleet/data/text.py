"""Texts: JSON Lines files, and the tokenizer that ships with every model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from tokenizers import Tokenizer
from torch import Tensor

from acme_fleet.data.checkpoint_files import config_content, located, shown, tokenizer_content
from acme_fleet.data.readers import Columns, RawSamples, as_objects, coded, require_columns
from acme_fleet.errors import FleetError
from acme_fleet.outside import reading


class TextPreprocessing(BaseModel):
    """How a text becomes ``input_ids`` and ``attention_mask``, all of one length.

    Attributes:
        tokenizer: the content of a Hugging Face ``tokenizer.json``.
        max_tokens: longer texts are cut, shorter ones padded, special tokens included.
        pad_id: what padded places hold.
        special_tokens: the tokenizer's own, by their part, such as ``cls_token``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text"] = "text"
    tokenizer: dict[str, Any]
    max_tokens: PositiveInt
    pad_id: NonNegativeInt
    special_tokens: dict[str, str] = {}

    @classmethod
    def of_checkpoint(
        cls, checkpoint: str | Path, max_tokens: int, revision: str | None = None
    ) -> TextPreprocessing:
        """What a checkpoint was trained with; none of its own code is run.

        Raises:
            FleetError: if the checkpoint has no tokenizer, or a slow one only.
        """
        from transformers import CONFIG_MAPPING, AutoTokenizer

        folder = located(checkpoint, revision)
        kind = config_content(checkpoint, folder).get("model_type")
        tokenizer_content(checkpoint, folder)
        place = (
            f"reference.checkpoint: {shown(checkpoint)} has no tokenizer that can be read; texts "
            f"need a BERT-like checkpoint with its tokenizer.json"
        )
        with reading(place):
            # Of its type, with none of its numbers: transformers allocates what they ask for.
            config = CONFIG_MAPPING[str(kind)]()
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, trust_remote_code=False
            )
            document = json.loads(tokenizer.backend_tokenizer.to_str())
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up where there is no file
            raise FleetError(f"reference.checkpoint: {checkpoint} has no tokenizer")
        # Padded places are masked: any token that exists will do where none is meant for it.
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        special = {part: str(token) for part, token in tokenizer.special_tokens_map.items()}
        return cls(tokenizer=document, max_tokens=max_tokens, pad_id=pad_id, special_tokens=special)

    def inputs(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """Tokenize texts.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 of shape ``(texts, max_tokens)``.
        """
        encoded = self._ready.encode_batch(list(texts))
        ids = torch.tensor([text.ids for text in encoded], dtype=torch.int64)
        mask = torch.tensor([text.attention_mask for text in encoded], dtype=torch.int64)
        shape = (len(encoded), self.max_tokens)
        return {"input_ids": ids.reshape(shape), "attention_mask": mask.reshape(shape)}

    def read(self, paths: Iterable[Path]) -> list[str]:
        """Read text files, each one sample.

        Raises:
            FleetError: naming the file that is missing or no text.
        """
        texts = []
        for path in paths:
            try:
                texts.append(path.read_text(encoding="utf-8").strip())
            except (OSError, UnicodeDecodeError) as error:
                raise FleetError(f"cannot read {path} as a text: {error}") from error
        return texts

    def ready(self) -> Tokenizer:
        """The tokenizer, set to cut and pad."""
        return self._ready

    @cached_property
    def _ready(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(json.dumps(self.tokenizer))
        tokenizer.enable_truncation(self.max_tokens)
        pad_token = tokenizer.id_to_token(self.pad_id) or "[PAD]"
        tokenizer.enable_padding(length=self.max_tokens, pad_id=self.pad_id, pad_token=pad_token)
        return tokenizer


def read_json_lines(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    """Read files with one JSON object a line: the text, the label and, optionally, whose it is.

    Raises:
        FleetError: naming the file and line that cannot be read, or the key that is missing.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FleetError(f"{where}: cannot read {path}: {error}") from error
        rows += [
            _row(line, columns, f"{where}: {path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    texts = [row[columns.item] for row in rows]
    labels, names = coded(np.array([row[columns.label] for row in rows]), where)
    groups = np.array([str(row[columns.group]) for row in rows]) if columns.group else None
    stored = np.array([len(text.encode()) for text in texts], dtype=np.int64)
    return RawSamples(as_objects(texts), labels, names, stored, groups, where)


def _row(line: str, columns: Columns, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise FleetError(f"{where} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise FleetError(f"{where} is no JSON object")
    require_columns(columns.wanted, list(row), where)
    if not isinstance(row[columns.item], str):
        raise FleetError(
            f"{where}: {columns.item!r} is {type(row[columns.item]).__name__}, no text"
        )
    if not isinstance(row[columns.label], str | int):
        raise FleetError(f"{where}: {columns.label!r} must be text or an integer")
    return row
