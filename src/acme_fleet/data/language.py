"""Texts that a language model learns to write: read, brought into tokens, and labelled.

A sample is a text, a prompt with its answer, or messages of a chat. Each token's label is the token
that follows it, where that is to be learned: everywhere in a text, in answers alone otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Int64
from tokenizers import Tokenizer
from torch import Tensor

from acme_fleet.config.data import ABSENT
from acme_fleet.data.raw import Columns, RawSamples, as_objects, coded, joined, owners
from acme_fleet.data.sources.files import require_columns
from acme_fleet.data.text import TextPreprocessing, json_lines, json_object, text_of
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, reading

UNLABELLED = "texts"
"""The one class of texts that have no label to be shared out by."""
_PROMPT, _ANSWER, _MESSAGES = "prompt", "answer", "messages"
_LEARNED = "assistant"  # the role whose messages are learned

Item = Mapping[str, Any]
"""A sample: ``text``, or ``prompt`` and ``answer``, or ``messages``."""
Segments = list[tuple[str, bool]]
"""Texts one behind the other, each with whether its tokens are learned."""


class LanguagePreprocessing(TextPreprocessing):
    """From a text, or a prompt and its answer, to tokens and the token after each.

    Attributes:
        chat_template: the checkpoint's, which writes messages as a text; none has none.
    """

    kind: Literal["language"] = "language"  # pyright: ignore[reportIncompatibleVariableOverride]
    chat_template: str | None = None

    @classmethod
    def _further(cls, tokenizer: Any) -> dict[str, Any]:
        template = tokenizer.chat_template
        return {"chat_template": template if isinstance(template, str) else None}

    @property
    def end(self) -> int | None:
        """Number of the token that ends a text; none if the tokenizer has none."""
        token = self.special_tokens.get("eos_token")
        return None if token is None else self._ready.token_to_id(token)

    def learned(
        self, items: Iterable[Item]
    ) -> tuple[dict[str, Tensor], Int64[Tensor, "texts tokens"]]:
        """Inputs and labels of samples.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 of shape ``(texts, max_tokens)``, and the
            labels, in the same shape: the token that follows, or :data:`ABSENT`.

        Raises:
            FleetError: naming the text that is too long or short, has messages without a template,
                or a token that the model does not know.
        """
        rows = [self._row(item) for item in items]
        ids = torch.full((len(rows), self.max_tokens), self.pad_id)
        labels = torch.full_like(ids, ABSENT)
        mask = torch.zeros_like(ids)
        for row, (numbers, known) in enumerate(rows):
            length = len(numbers)
            ids[row, :length] = torch.tensor(numbers)
            mask[row, :length] = 1
            following = [n if k else ABSENT for n, k in zip(numbers[1:], known[1:], strict=True)]
            labels[row, : length - 1] = torch.tensor(following)
        return {"input_ids": ids, "attention_mask": mask}, labels

    def inputs(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """Tokens of plain texts, see :meth:`learned`."""
        return self.learned({"text": text} for text in texts)[0]

    def prompt(self, text: str) -> list[int]:
        """Tokens of a text that is to be continued.

        Raises:
            FleetError: if it has none.
        """
        numbers = self._numbers(text, first=True)
        if not numbers:
            raise FleetError(f"the prompt {one_line(text, 60)!r} has no token")
        self._check_known(numbers, text)
        return numbers

    def asked(self, text: str) -> list[int]:
        """Tokens of a chat in which the user has said this, up to where the answer begins.

        Raises:
            FleetError: if the checkpoint had no chat template.
        """
        written = self._written([{"role": "user", "content": text}], answered=True)
        numbers = self._numbers(written, first=False)
        self._check_known(numbers, text)
        return numbers

    def text(self, numbers: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self._ready.decode(list(numbers), skip_special_tokens=True)

    def length(self, item: Item) -> int:
        """Tokens of a sample, its end included, whatever ``max_tokens`` is.

        Raises:
            FleetError: as :meth:`learned`.
        """
        return len(self._tokens(item)[0])

    def _row(self, item: Item) -> tuple[list[int], list[bool]]:
        numbers, known, shown = self._tokens(item)
        if len(numbers) > self.max_tokens:
            raise FleetError(
                f"{shown} has {len(numbers)} tokens, more than the {self.max_tokens} of "
                f"data.max_tokens; raise it, or shorten the text (a smaller backbone.vocabulary "
                f"lengthens all)"
            )
        return numbers, known

    def _tokens(self, item: Item) -> tuple[list[int], list[bool], str]:
        """Tokens, true where one is learned, and the sample in words for errors."""
        segments, ended = self._segments(item)
        numbers: list[int] = []
        known: list[bool] = []
        for place, (text, learned) in enumerate(segments):
            own = self._numbers(text, first=place == 0 and not ended)
            numbers += own
            known += [learned] * len(own)
        shown = f"the text {one_line(''.join(text for text, _ in segments), 60)!r}"
        if not ended and self.end is not None:
            numbers.append(self.end)
            known.append(segments[-1][1])
        if len(numbers) < 2 or not any(known[1:]):
            raise FleetError(f"{shown} has no token that could be learned")
        self._check_known(numbers, shown)
        return numbers, known, shown

    def _segments(self, item: Item) -> tuple[Segments, bool]:
        """Texts of a sample, and whether they have their special tokens already."""
        if _MESSAGES not in item:
            if _PROMPT in item:
                return [(item[_PROMPT], False), (item[_ANSWER], True)], False
            return [(item["text"], True)], False
        messages, segments, before = item[_MESSAGES], Segments(), ""
        for number, message in enumerate(messages):
            if message["role"] != _LEARNED:
                continue
            asked = self._written(messages[:number], answered=True)
            answered = self._written(messages[: number + 1], answered=False)
            if not (asked.startswith(before) and answered.startswith(asked)):
                raise FleetError(
                    "the checkpoint's chat template does not write messages one behind the other, "
                    "so it is not known what an answer is; give prompt and answer instead"
                )
            segments += [(asked.removeprefix(before), False), (answered.removeprefix(asked), True)]
            before = answered
        return segments, True

    def _written(self, messages: Sequence[Mapping[str, str]], *, answered: bool) -> str:
        """A chat as a text; ``answered`` adds what an answer begins with."""
        from transformers.utils.chat_template_utils import render_jinja_template

        if self.chat_template is None:
            raise FleetError(
                "messages need a chat template, and the checkpoint has none; give prompt and "
                "answer, or text, or name a checkpoint with a chat_template"
            )
        with reading("the checkpoint's chat template cannot write the messages"):
            written, _ = cast("Any", render_jinja_template)(
                [list(messages)],
                chat_template=self.chat_template,
                add_generation_prompt=answered,
                **self.special_tokens,
            )
        return written[0]

    def _numbers(self, text: str, *, first: bool) -> list[int]:
        """Tokens of a part of a text; the ``first`` one begins as the tokenizer begins a text."""
        with reading("the texts cannot be tokenized"):
            numbers = list(self._ready.encode(text, add_special_tokens=first).ids)
        while first and numbers and numbers[-1] == self.end:
            numbers.pop()
        return numbers

    def _check_known(self, numbers: Sequence[int], text: str) -> None:
        highest = max(numbers)
        if self.vocabulary is not None and highest >= self.vocabulary:
            word = self._ready.id_to_token(highest)
            raise FleetError(
                f"{one_line(text, 80)} has the token {one_line(str(word), 60)!r}, number "
                f"{highest}; the model knows {self.vocabulary} tokens, from 0"
            )

    @cached_property
    def _ready(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self.document())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def read_language(paths: Sequence[Path], columns: Columns, where: str) -> RawSamples:
    """Read files with one JSON object a line: ``text``, ``prompt`` and ``answer``, or ``messages``.

    The label decides who gets a text and nothing else; all lines of a file have it or none has.

    Raises:
        FleetError: naming the file and line that cannot be read, or the key that is missing.
    """
    return joined([_read(path, columns, where) for path in paths], where)


def _read(path: Path, columns: Columns, where: str) -> RawSamples:
    places = json_lines(path, where)
    rows = [json_object(line, place) for place, line in places]
    named = zip(rows, places, strict=True)
    items = [read_item(row, columns.item, place) for row, (place, _) in named]

    def place(number: int) -> str:
        return places[number][0]

    stored = np.array([len(line.encode()) for _, line in places], dtype=np.int64)
    labelled = any(columns.label in row for row in rows)
    for number, row in enumerate(rows):
        wanted = [columns.label] * labelled + [columns.group] * bool(columns.group)
        require_columns([name for name in wanted if name], list(row), place(number))
    values = [row[columns.label] if labelled else UNLABELLED for row in rows]
    codes, names, named = coded(values, None, place)
    groups = owners([row[columns.group] for row in rows], place) if columns.group else None
    return RawSamples(as_objects(items), codes, names, stored, groups, f"{where}: {path}", named)


def read_item(row: Mapping[str, Any], text: str, where: str) -> Item:
    """The sample in a row.

    Raises:
        FleetError: naming the key that is missing or wrong.
    """
    if _MESSAGES in row:
        return {_MESSAGES: _messages(row[_MESSAGES], where)}
    if _PROMPT in row or _ANSWER in row:
        require_columns([_PROMPT, _ANSWER], list(row), where)
        return {key: text_of(row, key, where) for key in (_PROMPT, _ANSWER)}
    require_columns([text], list(row), where)
    return {"text": text_of(row, text, where)}


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise FleetError(f"{where}: 'messages' is no list of objects with role and content")
    messages = []
    for number, message in enumerate(value, 1):
        place = f"{where}, message {number}"
        require_columns(["role", "content"], list(message), place)
        messages.append({key: text_of(message, key, place) for key in ("role", "content")})
    if not any(message["role"] == _LEARNED for message in messages):
        raise FleetError(f"{where}: no message is of the role {_LEARNED!r}, which is learned")
    return messages
