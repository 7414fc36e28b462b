"""Files of settings: YAML in, checked by pydantic, mistakes told so that they can be corrected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from acme_fleet.config.yaml_file import read_yaml
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line

_Entry = TypeVar("_Entry")
_WORDS = {
    "extra_forbidden": "unknown key; remove it or correct its spelling",
    "missing": "is missing; add it",
}


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def chosen(entries: Mapping[str, _Entry], name: str, setting: str) -> _Entry:
    """The entry of a table that a setting names.

    Raises:
        FleetError: naming the setting and the entries that there are.
    """
    if name not in entries:
        names = ", ".join(sorted(entries))
        raise FleetError(f"{setting}: there is no {one_line(name, 60)!r}; choose one of {names}")
    return entries[name]


def read_settings(path: Path, kind: str, example: str) -> dict[str, Any]:
    """The settings in a YAML file, not checked yet.

    Args:
        path: the file.
        kind: what the file is, for errors.
        example: where an example is found, for errors.

    Raises:
        FleetError: naming the file and what is wrong with it.
    """
    content = read_yaml(path, kind)
    if not isinstance(content, dict):
        raise FleetError(f"{path} holds no settings; {example}")
    return content


def mistakes(error: ValidationError, where: str, kind: type[Settings]) -> str:
    """One line for each mistake in settings of a kind: the place, the value, the remedy."""
    lines = []
    for item in error.errors(include_url=False):
        place = "".join(f"{part}." for part in item["loc"]).removesuffix(".")
        message = _WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
        if item["type"] == "extra_forbidden":
            close = get_close_matches(str(item["loc"][-1]), _keys_at(kind, item["loc"][:-1]), n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        value = item.get("input")
        shown = f" (got {value!r})" if isinstance(value, str | int | float) else ""
        lines.append(": ".join(filter(None, (where, place, message))) + shown)
    return "\n".join(lines)


def differences(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """Differences of two settings, as plain values: ``place: value there, value here``."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys((*there, *here)):
            yield from differences(there.get(key), here.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for number, pair in enumerate(zip(there, here, strict=True)):
            yield from differences(*pair, f"{place}.{number}")
    elif there != here:
        yield f"{place}: {_brief(there)} there, {_brief(here)} here"


def _brief(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else "other entries"


def _keys_at(kind: type[Settings], place: Sequence[int | str]) -> list[str]:
    """The keys that settings of a kind know at a place of theirs."""
    kinds = [kind]
    for part in place:
        fields = [k.model_fields[part] for k in kinds if part in k.model_fields]
        # Neither a number in a list nor the name of one of several kinds is a key.
        kinds = [k for field in fields for k in _kinds_in(field.annotation)] or kinds
    return [key for k in kinds for key in k.model_fields]


def _kinds_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds_in(part)]
