"""Classes of a data set: all, those that are kept, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unicodedata import category, normalize

import numpy as np
from pydantic import TypeAdapter, ValidationError

from acme_fleet.data.raw import RawSamples, both_named, same_but_for_spaces
from acme_fleet.errors import FleetError
from acme_fleet.messages.base import ClassNames
from acme_fleet.outside import one_line

_SENT = TypeAdapter(ClassNames)


def class_names(raw: RawSamples) -> list[str]:
    """The names that the data set tells, or the numbers that occur as labels."""
    return raw.names or [str(label) for label in np.unique(raw.labels)]


def chosen_classes(chosen: list[str] | int | None, known: list[str], least: int = 2) -> list[str]:
    """The names of the classes kept, in the order of their new labels; at least so many.

    Raises:
        FleetError: naming what is unknown, named twice, or too few.
    """
    if isinstance(chosen, int):
        if chosen > len(known):
            raise FleetError(f"data.classes: {chosen} classes asked for, there are {len(known)}")
        names = known[:chosen]
    else:
        names = known if chosen is None else [normalize("NFC", name) for name in chosen]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FleetError(
            f"data.classes: unknown {_listing(unknown)}; the data set has {_listing(known)}"
        )
    if len(set(names)) != len(names):
        raise FleetError(f"data.classes: a class is named more than once in {_listing(names)}")
    if len(names) < least:
        raise FleetError(f"data.classes: {len(names)} class; telling apart needs 2 or more")
    if alike := same_but_for_spaces(known):
        raise FleetError(f"data.classes: the classes {both_named(alike)}")
    _check_names(names)
    return names


def _check_names(names: list[str]) -> None:
    """Refuse names that no message could carry, or no line could show, before any training."""
    for name in names:
        if not name.strip() or any(category(letter) == "Cc" for letter in name):
            raise FleetError(
                f"data.classes: {one_line(repr(name), 60)} is no class name; "
                f"it is empty or has control characters"
            )
    try:
        _SENT.validate_python(names)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = names[first["loc"][0]] if first["loc"] else ""  # type: ignore[call-overload]
        raise FleetError(
            f"data.classes: {one_line(repr(name), 60)} is no class name: {first['msg']}"
        ) from error


def check_known(raw: RawSamples, known: list[str]) -> None:
    """Refuse samples of classes that are not ``known``, see :func:`relabelled`.

    Raises:
        FleetError: naming them.
    """
    _, called = _called(raw, known)
    unknown = [name for name in called if name not in set(known)]
    if unknown:
        raise FleetError(
            f"{raw.where}: class {_listing(unknown)} is not known to the reference; "
            f"it knows {_listing(known)}"
        )


def relabelled(raw: RawSamples, known: list[str], classes: list[str]) -> RawSamples:
    """The samples whose class is among ``classes``, labelled in that order.

    Classes are matched by name. Labels without names count in ``known`` or, where these names are
    all numbers, are such names themselves.

    Raises:
        FleetError: if there is none.
    """
    inverse, called = _called(raw, known)
    place = {name: label for label, name in enumerate(classes)}
    new_labels = np.array([place.get(name, -1) for name in called], dtype=np.int64)[inverse]
    kept = np.flatnonzero(new_labels >= 0)
    if not len(kept):
        raise FleetError(f"{raw.where}: no sample of {_listing(classes)}")
    return replace(replace(raw, names=None)[kept], codes=new_labels[kept], names=classes)


def _called(raw: RawSamples, known: list[str]) -> tuple[np.ndarray, list[str]]:
    """Each sample's place in a list of the classes that occur, and their names."""
    present, inverse = np.unique(raw.labels, return_inverse=True)
    names = raw.names
    if names is None and not all(name.isascii() and name.isdigit() for name in known):
        names = known
    called = [
        names[label] if names is not None and label < len(names) else str(label)
        for label in present.tolist()
    ]
    return inverse, called


def _listing(names: Sequence[str]) -> str:
    """Names with commas, cut where there are too many to read."""
    shown = ", ".join(one_line(name, 60) for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"
