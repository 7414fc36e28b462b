"""A language model behind HTTP, in the form of OpenAI's completions and chats."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from acme_fleet_runtime.bounds import Busy
from acme_fleet_runtime.errors import AcmeError, FleetError
from acme_fleet_runtime.handler import Handler, Refused
from acme_fleet_runtime.outside import one_line
from acme_fleet_runtime.writer import Piece, Wish, Writer

_COMPLETIONS, _CHATS, _MODELS = "/v1/completions", "/v1/chat/completions", "/v1/models"
_DEFAULT_TOKENS = {_COMPLETIONS: 16, _CHATS: 256}
_MOST_STOPS, _LONGEST_STOP, _MOST_MESSAGES = 4, 200, 1000
_ROLES = ("system", "developer", "user", "assistant", "tool")
_COMMON = {
    *("model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"),
    *("n", "user", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"),
}
_KEYS = {
    _COMPLETIONS: _COMMON | {"prompt", "echo", "best_of", "suffix"},
    _CHATS: _COMMON | {"messages", "max_completion_tokens", "top_logprobs", "store", "metadata"},
}
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), (None, 0)),
    **dict.fromkeys(("n", "best_of"), (None, 1)),
    **dict.fromkeys(("echo", "logprobs", "store"), (None, False)),
    **dict.fromkeys(("logit_bias",), (None, {})),
    **dict.fromkeys(("suffix", "top_logprobs"), (None,)),
}
"""Keys with the only values that are taken: the others ask for what is not there."""


@dataclass(frozen=True)
class _Asked:
    """A request that was read."""

    chat: bool
    prompt: list[int]
    wish: Wish
    stream: bool
    usage: bool


class CompletionsHandler(Handler):
    """Answers with what a :class:`~acme_fleet_runtime.writer.Writer` writes."""

    paths: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys((_COMPLETIONS, _CHATS), "POST"),
        **dict.fromkeys((_MODELS, "/health", "/metrics"), "GET"),
    }

    @property
    def _writer(self) -> Writer:
        writer = self.server.runner
        assert isinstance(writer, Writer)  # by the server
        return writer

    def error(self, told: str, code: int) -> dict[str, Any]:
        """See the base class."""
        kind = "invalid_request_error" if code < 500 else "server_error"
        return {"error": {"message": told, "type": kind, "param": None, "code": None}}

    def answered(self, path: str, length: int) -> Any:
        """See the base class."""
        if path == _MODELS:
            model = {"id": self._writer.manifest.name, "object": "model", "owned_by": "acme-fleet"}
            return {"object": "list", "data": [{**model, "created": self.server.started}]}
        server = self.server
        try:
            with server.bodies.having(length):
                asked = self._asked(path, self.body(length))
            pieces = self._pieces(asked)
            first = next(pieces)  # what is refused is refused before the answer begins
        except Busy:
            told = "too much is being written; ask again"
            raise Refused(503, told, {"Retry-After": "1"}) from None
        except FleetError as error:
            raise Refused(400, one_line(str(error), 500)) from error
        except AcmeError as error:
            raise Refused(500, one_line(str(error), 500)) from error
        form = _Form(asked, self._writer.manifest.name)
        if asked.stream:
            return self._events(form, first, pieces)
        with closing(pieces):
            every = [first, *pieces]
        return form.whole("".join(piece.text for piece in every), every[-1])

    def _pieces(self, asked: _Asked) -> Generator[Piece]:
        """The text; it has its room in the server's memory as long as it is being written."""
        need = self._writer.token_bytes * (len(asked.prompt) + asked.wish.most)
        with self.server.waiting.having(need):
            yield from self._writer.write(asked.prompt, asked.wish)

    def _events(self, form: _Form, first: Piece, pieces: Generator[Piece]) -> Iterator[bytes]:
        """Server-sent events."""
        with closing(pieces):
            piece: Piece | None = first
            yield from map(_event, form.begun())
            while piece is not None:
                yield from map(_event, form.part(piece))
                try:
                    piece = next(pieces, None)
                except AcmeError as error:
                    yield _event(self.error(one_line(str(error), 500), 500))
                    return
        yield b"data: [DONE]\n\n"

    # --- reading ------------------------------------------------------------------------------

    def _asked(self, path: str, body: bytes) -> _Asked:
        document = self.json(body)
        if not isinstance(document, dict):
            raise Refused(400, "send a JSON object")
        for key in document:
            if key not in _KEYS[path]:
                raise Refused(400, f"{one_line(key, 60)!r} is not supported here")
        for key, taken in _WITHOUT_EFFECT.items():
            if document.get(key) not in taken:
                shown = " or ".join(json.dumps(value) for value in taken if value is not None)
                raise Refused(
                    400, f"{key} is not supported; leave it out{shown and f', or {shown}'}"
                )
        self._check_model(document.get("model"))
        chat, writer = path == _CHATS, self._writer
        prompt = writer.asked(_messages(document)) if chat else writer.prompt(_prompt(document))
        limit = document.get("max_completion_tokens") or document.get("max_tokens")
        room = writer.rule.context - len(prompt)
        most = min(_DEFAULT_TOKENS[path], room) if limit is None else limit
        if room < 1 or type(most) is not int or most < 1:
            told = f"the prompt has {len(prompt)} tokens, the model takes {writer.rule.context}"
            raise Refused(400, told if room < 1 else "max_tokens must be a whole number from 1")
        writer.check_room(prompt, most)
        if writer.token_bytes * (len(prompt) + most) > self.server.limits.waiting_bytes:
            fitting = self.server.limits.waiting_bytes // writer.token_bytes
            raise Refused(400, f"prompt and max_tokens together may be {fitting} tokens here")
        options = document.get("stream_options") or {}
        if not isinstance(options, dict) or options.keys() - {"include_usage"}:
            raise Refused(400, "stream_options may have include_usage alone")
        wish = Wish(
            most,
            _number(document, "temperature", 1.0, lambda x: 0 <= x <= 2, "0 to 2"),
            _number(document, "top_p", 1.0, lambda x: 0 < x <= 1, "above 0, and at most 1"),
            _seed(document),
            _stops(document),
        )
        stream = _flag(document, "stream")
        return _Asked(chat, prompt, wish, stream, stream and _flag(options, "include_usage"))

    def _check_model(self, model: Any) -> None:
        name = self._writer.manifest.name
        if model is None:
            raise Refused(404, f"`model` is missing; this server has {name!r}")
        if model != name:
            shown = one_line(str(model), 60)
            raise Refused(404, f"there is no model {shown!r}; this server has {name!r}")


class _Form:
    """OpenAI's objects around a text."""

    def __init__(self, asked: _Asked, model: str) -> None:
        self._asked = asked
        kind = "chat.completion" if asked.chat else "text_completion"
        self._object = f"{kind}.chunk" if asked.chat and asked.stream else kind
        prefix = "chatcmpl" if asked.chat else "cmpl"
        self._fixed = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": self._object,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        """The answer in one piece."""
        content: dict[str, Any] = {"text": text}
        if self._asked.chat:
            content = {"message": {"role": "assistant", "content": text}}
        return {**self._choices(content, last.reason), "usage": self._usage(last)}

    def begun(self) -> Iterator[dict[str, Any]]:
        """Objects before the first piece."""
        if self._asked.chat:
            yield self._choices({"delta": {"role": "assistant", "content": ""}}, None)

    def part(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Objects for one piece."""
        if piece.text or (piece.reason and not self._asked.chat):
            yield self._choices(
                self._content(piece.text), None if self._asked.chat else piece.reason
            )
        if piece.reason and self._asked.chat:
            yield self._choices({"delta": {}}, piece.reason)
        if piece.reason and self._asked.usage:
            yield {**self._fixed, "choices": [], "usage": self._usage(piece)}

    def _content(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._asked.chat else {"text": text}

    def _choices(self, content: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "finish_reason": reason, "logprobs": None}
        return {**self._fixed, "choices": [choice]}

    def _usage(self, last: Piece) -> dict[str, int]:
        prompt = len(self._asked.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": last.tokens,
            "total_tokens": prompt + last.tokens,
        }


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, allow_nan=False).encode() + b"\n\n"


def _refuse(key: str, expected: str) -> NoReturn:
    raise Refused(400, f"{key} must be {expected}")


def _prompt(document: Mapping[str, Any]) -> str:
    prompt = document.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    return _text(prompt, "prompt")


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        _refuse(key, "one text")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(key, "Unicode text")
    return value


def _messages(document: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MOST_MESSAGES:
        _refuse("messages", f"a list of 1 to {_MOST_MESSAGES}")
    found = []
    for number, message in enumerate(messages):
        place = f"messages.{number}"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            _refuse(place, f"an object with content and a role, one of {', '.join(_ROLES)}")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part if isinstance(part, dict) else {} for part in content]
            if any(part.get("type") != "text" for part in parts):
                _refuse(f"{place}.content", "a text, or parts of the type text")
            content = "".join(_text(part.get("text"), f"{place}.content") for part in parts)
        found.append({"role": message["role"], "content": _text(content, f"{place}.content")})
    return found


def _number(
    document: Mapping[str, Any], key: str, default: float, fits: Callable[[float], bool], told: str
) -> float:
    value = document.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value) or not fits(value):
        _refuse(key, told)
    return float(value)


def _seed(document: Mapping[str, Any]) -> int | None:
    seed = document.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        _refuse("seed", "a whole number from 0")
    return seed


def _stops(document: Mapping[str, Any]) -> tuple[str, ...]:
    stops = document.get("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    fitting = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    if not fitting or not all(isinstance(x, str) and 0 < len(x) <= _LONGEST_STOP for x in stops):
        _refuse("stop", f"at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters")
    return tuple(stops)


def _flag(document: Mapping[str, Any], key: str) -> bool:
    value = document.get(key)
    if value not in (None, True, False) or type(value) is int:
        _refuse(key, "true or false")
    return bool(value)
