"""A language model's artifact in ONNX Runtime: it goes on with texts, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acme_fleet_runtime.chat import ChatTemplate
from acme_fleet_runtime.errors import ArtifactError, FleetError
from acme_fleet_runtime.manifest import (
    CHAT_TEMPLATE,
    TOKENIZER,
    LanguagePreparation,
    Manifest,
    read_file,
)
from acme_fleet_runtime.outside import one_line, reading
from acme_fleet_runtime.runner import Runner, opened
from acme_fleet_runtime.steps import Steps, most_probable
from acme_fleet_runtime.strict import parse_json
from acme_fleet_runtime.texts import check_numbers

_BROKEN = "\ufffd"  # of a letter whose last bytes are still to come


@dataclass(frozen=True)
class Wish:
    """A wish for the text that is to come.

    Attributes:
        most: new tokens, at most.
        temperature: 0 takes the most probable token each time.
        top_p: tokens are drawn among the most probable ones that have this share together.
        seed: of the draws.
        stops: texts before which it ends.
    """

    most: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some text, perhaps none; ``reason`` ends it: ``stop`` or ``length``.

    Attributes:
        tokens: new ones so far.
    """

    text: str
    tokens: int
    reason: str | None = None


class Writer:
    """A language model that is ready to write. Threads may share it."""

    takes_images = False

    def __init__(self, folder: Path, manifest: Manifest, session: Any) -> None:
        self.folder, self.manifest = folder, manifest
        self.steps = Steps(session, str(folder))
        rule = manifest.preparation
        assert isinstance(rule, LanguagePreparation)  # by ``open_artifact``
        self.rule = rule
        self._tokenizer = _tokenizer(read_file(folder, manifest, TOKENIZER))
        self._template: ChatTemplate | None = None
        if CHAT_TEMPLATE in manifest.files:
            source = read_file(folder, manifest, CHAT_TEMPLATE).decode()
            self._template = ChatTemplate(source, rule.special_tokens)

    @property
    def chats(self) -> bool:
        """True if there is a chat template."""
        return self._template is not None

    @property
    def token_bytes(self) -> int:
        """Bytes that the model remembers for each token."""
        return self.steps.token_bytes

    # --- tokens -------------------------------------------------------------------------------

    def prompt(self, text: str) -> list[int]:
        """Tokens of a text that is to be continued.

        Raises:
            FleetError: if it has none, or one that the model does not know.
        """
        numbers = self._numbers(text, begun=False)
        while numbers and numbers[-1] in self.rule.ends:
            numbers.pop()
        return self._checked(numbers, text)

    def asked(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a chat, up to where the next answer begins.

        Raises:
            FleetError: if there is no chat template, or it does not take these messages.
        """
        if self._template is None:
            raise FleetError("the model has no chat template; let it complete a prompt instead")
        text = self._template.written(messages)
        return self._checked(self._numbers(text, begun=True), text)

    def _numbers(self, text: str, *, begun: bool) -> list[int]:
        with reading("the text cannot be tokenized"):
            return list(self._tokenizer.encode(text, add_special_tokens=not begun).ids)

    def _checked(self, numbers: list[int], text: str) -> list[int]:
        shown = f"the prompt {one_line(text, 60)!r}"
        if not numbers:
            raise FleetError(f"{shown} has no token")
        if (highest := max(numbers)) >= self.rule.vocabulary:
            raise FleetError(
                f"{shown} has the token number {highest}; the model knows {self.rule.vocabulary} "
                f"tokens, from 0"
            )
        return numbers

    def check_room(self, prompt: Sequence[int], most: int) -> None:
        """Refuse what is longer than the model takes.

        Raises:
            FleetError: with the numbers.
        """
        if len(prompt) + most > self.rule.context:
            raise FleetError(
                f"the prompt has {len(prompt)} tokens; with {most} new ones that is more than the "
                f"{self.rule.context} that the model takes"
            )

    def write(self, prompt: Sequence[int], wish: Wish) -> Iterator[Piece]:
        """Text behind a prompt, piece by piece; the last piece has a reason.

        Args:
            prompt: tokens.
            wish: most tokens that are new and fit behind the prompt.

        Raises:
            FleetError: if there is no room for it.
            ArtifactError: if the model fails.
        """
        self.check_room(prompt, wish.most)
        draw = np.random.default_rng(wish.seed)
        numbers: list[int] = []
        told, longest = 0, max(map(len, wish.stops), default=1) - 1
        for number in self.steps.go_on(prompt, lambda logits: _chosen(logits, wish, draw)):
            if number in self.rule.ends:
                break
            numbers.append(number)
            text, done = self.text(numbers), len(numbers) == wish.most
            places = [at for stop in wish.stops if (at := text.find(stop)) >= 0]
            if places:
                yield Piece(text[told : min(places)], len(numbers), "stop")
                return
            if done:
                yield Piece(text[told:], len(numbers), "length")
                return
            # What may be the beginning of a stop, or of a letter, is kept back.
            sure = len(text.rstrip(_BROKEN)) if text.endswith(_BROKEN) else len(text)
            sure = max(told, sure - longest)
            yield Piece(text[told:sure], len(numbers))
            told = sure
        yield Piece(self.text(numbers)[told:], len(numbers), "stop")

    def text(self, numbers: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self._tokenizer.decode(list(numbers), skip_special_tokens=True)

    def complete(self, prompt: Sequence[int], wish: Wish) -> str:
        """The whole text behind a prompt; see :meth:`write`."""
        return "".join(piece.text for piece in self.write(prompt, wish))

    def answer(self, text: str, most: int, chat: bool) -> str:
        """The most probable text behind a prompt, or to what a user says in a ``chat``."""
        says = [{"role": "user", "content": text}]
        return self.complete(self.asked(says) if chat else self.prompt(text), Wish(most))


def open_artifact(folder: str | Path, threads: int = 0) -> Runner | Writer:
    """Check an artifact's files, and start it, whatever it does.

    Args:
        folder: of the artifact.
        threads: that compute one answer; 0: as many as there are cores.

    Raises:
        ArtifactError: if it is damaged, or this machine cannot run it.
    """
    place, manifest, session = opened(folder, threads)
    return (Writer if manifest.writes else Runner)(place, manifest, session)


def _tokenizer(document: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise FleetError("reading texts needs tokenizers: pip install tokenizers") from error
    with reading("the tokenizer", ArtifactError):
        check_numbers(parse_json(document))
        tokenizer = Tokenizer.from_str(document.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def _chosen(logits: np.ndarray, wish: Wish, draw: np.random.Generator) -> int:
    """The next token."""
    if wish.temperature == 0:
        return most_probable(logits)
    scaled = (logits - logits.max()).astype(np.float64) / wish.temperature
    shares = np.exp(scaled)
    shares /= shares.sum()
    order = shares.argsort(kind="stable")[::-1]
    sums = shares[order].cumsum()
    kept = order[: int((sums < wish.top_p).sum()) + 1]
    weights = shares[kept] / shares[kept].sum()
    return int(draw.choice(kept, p=weights))
