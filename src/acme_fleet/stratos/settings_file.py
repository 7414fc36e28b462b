"""YAML files of Stratos, read as settings of one kind."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from acme_fleet.config.base import Settings, mistakes, read_settings
from acme_fleet.errors import FleetError

Kind = TypeVar("Kind", bound=Settings)


def read_as(kind: type[Kind], path: Path, what: str, example: str) -> Kind:
    """The settings in a file.

    Args:
        kind: their class. path: the file.
        what: what the file is. example: where an example is found, for errors.

    Raises:
        FleetError: naming the key, its value and what would be right.
    """
    content = read_settings(path, what, example)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise FleetError(mistakes(error, str(path), kind)) from error
