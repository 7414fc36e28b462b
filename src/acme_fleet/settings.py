"""Files of settings: YAML in, checked by pydantic, mistakes told so that they can be corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from acme_fleet.errors import FleetError

_WORDS = {
    "extra_forbidden": "unknown key; remove it or correct its spelling",
    "missing": "is missing; add it",
}


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_settings(path: Path, kind: str, example: str) -> dict[str, Any]:
    """The settings in a YAML file, not checked yet.

    Args:
        path: the file.
        kind: what the file is, for errors.
        example: where an example is found, for errors.

    Raises:
        FleetError: naming the file and what is wrong with it.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise FleetError(f"cannot read the {kind} {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no text, or no such date
        raise FleetError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise FleetError(f"{path} holds no settings; {example}")
    return content


def mistakes(error: ValidationError, where: str) -> str:
    """One line for each mistake: the place, the value, the remedy."""
    lines = []
    for item in error.errors(include_url=False):
        place = "".join(f"{part}." for part in item["loc"]).removesuffix(".")
        message = _WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
        value = item.get("input")
        shown = f" (got {value!r})" if isinstance(value, str | int | float) else ""
        lines.append(": ".join(filter(None, (where, place, message))) + shown)
    return "\n".join(lines)
