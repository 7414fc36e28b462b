"""Texts as numbers of tokens, cut and padded as a model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.outside import one_line, read_regular, reading
from acme_fleet_runtime.strict import parse_json

if TYPE_CHECKING:
    from tokenizers import Encoding

LONGEST_TEXT = 2**24
"""Bytes of a text to classify."""
MOST_TOKENS, MOST_ADDED = 2**22, 2**14
"""Tokens that a tokenizer may number, and that it may add to its model's; far more than any has."""
LEAST_TOKENS = 2
"""Of a batch: graphs are made for two tokens or more."""


class Tokens:
    """A tokenizer that cuts texts, and says which ones a model cannot take."""

    def __init__(self, document: str, max_tokens: int, pad_id: int, vocabulary: int | None) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise FleetError("reading texts needs tokenizers: pip install tokenizers") from error
        with reading("the tokenizer"):
            check_numbers(parse_json(document.encode()))
            self._tokenizer: Any = Tokenizer.from_str(document)
            self._tokenizer.enable_truncation(max_tokens)
            self._tokenizer.no_padding()
        self._max_tokens, self._pad_id, self._vocabulary = max_tokens, pad_id, vocabulary

    def numbers(self, text: str) -> np.ndarray:
        """The tokens of a text, int64.

        Raises:
            FleetError: if it cannot be tokenized, has no token but special ones, or one that the
                model does not know.
        """
        with reading("the text cannot be tokenized"):
            encoded = self._tokenizer.encode(text)
        check_tokens(encoded, text, self._max_tokens, self._vocabulary)
        return np.array(encoded.ids, np.int64)

    def padded(self, texts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs of a batch: padding stands behind each text, up to the longest one."""
        width = max(LEAST_TOKENS, *map(len, texts))
        ids = np.full((len(texts), width), self._pad_id, np.int64)
        mask = np.zeros((len(texts), width), np.int64)
        for row, numbers in enumerate(texts):
            ids[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def check_numbers(document: Any) -> None:
    """Refuse a ``tokenizer.json`` whose numbers of tokens would fill the memory.

    Raises:
        ValueError: naming the token.
    """
    model, added = (document.get(name) for name in ("model", "added_tokens"))
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbered = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    entries = [one for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    if len(entries) > MOST_ADDED:
        raise ValueError(f"{len(entries):,} added tokens are more than {MOST_ADDED:,}")
    for token, number in [*numbered, *((one.get("content"), one.get("id")) for one in entries)]:
        if isinstance(number, int) and number >= MOST_TOKENS:
            raise ValueError(
                f"the token {one_line(str(token), 60)!r} has the number {number:,}, more than any "
                f"model knows"
            )


def check_tokens(tokens: Encoding, text: str, max_tokens: int, vocabulary: int | None) -> None:
    """Refuse a text that a model cannot take.

    Raises:
        FleetError: if it has no token but special ones, more than ``max_tokens``, or one that is
            not below ``vocabulary``.
    """
    shown = f"the text {one_line(text, 60)!r}"
    if all(tokens.special_tokens_mask):
        raise FleetError(f"{shown} has no token that stands for a word in the first {max_tokens}")
    if len(tokens.ids) > max_tokens:
        raise FleetError(
            f"{shown} has {len(tokens.ids):,} tokens, also when it is cut to {max_tokens}: the "
            f"tokenizer adds too many special ones"
        )
    highest = max(tokens.ids)
    if vocabulary is not None and highest >= vocabulary:
        word = tokens.tokens[tokens.ids.index(highest)]
        raise FleetError(
            f"{shown} has the token {one_line(word, 60)!r}, number {highest}; "
            f"the model knows {vocabulary} tokens, from 0"
        )


def read_text(path: Path) -> str:
    """A file's text, without the space around it.

    Raises:
        FleetError: naming the file that is missing or no text.
    """
    with reading(f"cannot read {path} as a text"):
        return read_regular(path, LONGEST_TEXT).decode("utf-8-sig").strip()
