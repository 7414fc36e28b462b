"""Checks of a model that transformers has loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from acme_fleet.errors import FleetError


def check_complete(folder: str, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a model that transformers filled up with random numbers, or loaded in part.

    Args:
        folder: where it was loaded from.
        info: what transformers tells of the loading.

    Raises:
        FleetError: naming the first tensors that do not fit the configuration.
    """
    kinds = ("missing", "lacks"), ("unexpected", "also has"), ("mismatched", "has another shape of")
    for kind, what in kinds:
        if keys := info.get(f"{kind}_keys"):
            names = sorted(key if isinstance(key, str) else key[0] for key in keys)
            raise FleetError(
                f"cannot use {folder}: its file disagrees with its configuration, it {what} "
                f"{', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
            )
