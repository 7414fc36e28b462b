"""Frozen dataclasses from JSON of unknown origin: every key is known, every value of its type."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from acme_fleet_runtime.outside import one_line

_LONGEST_TEXT, _MOST_ENTRIES, _LARGEST_NUMBER = 10_000, 2**20, 2**53
Record = TypeVar("Record")


def parse_json(content: bytes) -> Any:
    """A JSON document without a key that stands twice, and without NaN.

    Raises:
        ValueError: if it is none.
    """
    return json.loads(content, object_pairs_hook=unique_keys, parse_constant=_refuse)


def parse_record(kind: type[Record], value: Any, place: str = "") -> Record:
    """A dataclass from JSON's objects, by the types of its fields.

    Fields are text, numbers, booleans, ``None``, ``Literal``, tuples ``tuple[X, ...]`` or of a
    fixed length, ``dict[str, X]``, other dataclasses, and unions of those. Of two dataclasses
    the first whose keys are the object's is meant. Fields with a default may be missing.

    Raises:
        ValueError: naming the place of the first mistake, and what is expected there.
    """
    return _parsed(kind, value, place)


def _parsed(kind: Any, value: Any, place: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, place)
    if origin is Literal:
        if value not in get_args(kind) or isinstance(value, bool):
            raise _wrong(place, value, " or ".join(map(str, get_args(kind))))
        return value
    if origin is tuple:
        return _items(get_args(kind), value, place)
    if origin is dict:
        if not isinstance(value, dict) or len(value) > _MOST_ENTRIES:
            raise _wrong(place, value, "an object")
        entry = get_args(kind)[1]
        named = ((_text(name, place), each) for name, each in value.items())
        return {name: _parsed(entry, each, f"{place}.{name}") for name, each in named}
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, place)
    return _scalar(kind, value, place)


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    left = [kind for kind in kinds if kind is not type(None)]
    if isinstance(value, dict):
        fitting = [k for k in left if dataclasses.is_dataclass(k) and not _misfits(k, value)]
        return _parsed((fitting or left)[0], value, place)
    for kind in left[:-1]:
        try:
            return _parsed(kind, value, place)
        except ValueError:
            continue
    return _parsed(left[-1], value, place)


def _items(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    open_ended = len(kinds) == 2 and kinds[1] is Ellipsis
    if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
        raise _wrong(place, value, "a list")
    if not open_ended and len(value) != len(kinds):
        raise _wrong(place, value, f"a list of {len(kinds)}")
    each = [kinds[0]] * len(value) if open_ended else list(kinds)
    numbered = enumerate(zip(each, value, strict=True))
    return tuple(_parsed(kind, one, f"{place}.{number}") for number, (kind, one) in numbered)


def _record(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(place, value, "an object")
    for name in _misfits(kind, value):
        state = "unknown key" if name in value else "is missing"
        raise ValueError(f"{place}.{one_line(str(name), 60)}: {state}".lstrip("."))
    hints = _hints(kind)
    fields = {name: _parsed(hints[name], value[name], f"{place}.{name}") for name in value}
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{place}: {error}".lstrip(".: ")) from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _misfits(kind: Any, value: dict[str, Any]) -> set[str]:
    """Keys that are unknown, or missing without a default."""
    fields = dataclasses.fields(kind)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    return (value.keys() - {field.name for field in fields}) | (needed - value.keys())


def _scalar(kind: Any, value: Any, place: str) -> Any:
    if kind is str:
        return _text(value, place)
    if kind is bool and isinstance(value, bool):
        return value
    if isinstance(value, bool):
        raise _wrong(place, value, kind.__name__)
    if kind is int and isinstance(value, int) and 0 <= value <= _LARGEST_NUMBER:
        return value
    if kind is float and isinstance(value, int | float) and abs(value) <= _LARGEST_NUMBER:
        return float(value)
    expected = {int: "a whole number from 0", float: "a number"}.get(kind, kind.__name__)
    raise _wrong(place, value, expected)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise _wrong(place, value, f"text of at most {_LONGEST_TEXT:,} characters")
    return value


def _wrong(place: str, value: Any, expected: str) -> ValueError:
    shown = one_line(json.dumps(value)[:200] if not isinstance(value, float) else str(value), 60)
    return ValueError(f"{place}: expected {expected}, found {shown}".lstrip(".: "))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for ``json.loads(object_pairs_hook=...)``.

    Raises:
        ValueError: naming a key that stands twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {one_line(repeated, 60)!r} stands twice")
    return content


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def plain(record: Any) -> Any:
    """The JSON objects of a dataclass, for :func:`parse_record`."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        fields = dataclasses.fields(record)
        return {field.name: plain(getattr(record, field.name)) for field in fields}
    if isinstance(record, dict):
        return {name: plain(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [plain(value) for value in record]
    if isinstance(record, float) and not math.isfinite(record):
        raise ValueError(f"{record} is no number of JSON")
    return record
