"""Which classes a data set has, which of them are kept, and how they are numbered then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acme_fleet.data.readers import RawSamples
from acme_fleet.errors import FleetError


def class_names(raw: RawSamples) -> list[str]:
    """The names that the data set tells, or the labels' numbers."""
    return raw.names or [str(label) for label in range(int(raw.labels.max()) + 1)]


def chosen_classes(chosen: list[str] | int | None, known: list[str]) -> list[str]:
    """The names of the classes kept, in the order of their new labels.

    Raises:
        FleetError: naming what is unknown, named twice, or too few.
    """
    if isinstance(chosen, int):
        if chosen > len(known):
            raise FleetError(f"data.classes: {chosen} classes asked for, there are {len(known)}")
        names = known[:chosen]
    else:
        names = known if chosen is None else chosen
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FleetError(
            f"data.classes: unknown {_listing(unknown)}; the data set has {_listing(known)}"
        )
    if len(set(names)) != len(names):
        raise FleetError(f"data.classes: a class is named more than once in {_listing(names)}")
    if len(names) < 2:
        raise FleetError(f"data.classes: {len(names)} class; telling apart needs 2 or more")
    return names


def check_known(raw: RawSamples, known: list[str]) -> None:
    """Refuse samples of classes that are not ``known``; without names, labels count in them.

    Raises:
        FleetError: naming them.
    """
    names = raw.names or known
    present = [int(label) for label in np.unique(raw.labels)]
    called = [names[label] if label < len(names) else str(label) for label in present]
    unknown = [name for name in called if name not in known]
    if unknown:
        raise FleetError(
            f"{raw.where}: class {_listing(unknown)} is not known to the reference; "
            f"it knows {_listing(known)}"
        )


def relabelled(raw: RawSamples, known: list[str], classes: list[str]) -> RawSamples:
    """The samples whose class is among ``classes``, labelled in that order.

    Raises:
        FleetError: if there is none.
    """
    names = raw.names or known
    place = {name: label for label, name in enumerate(classes)}
    new_labels = np.array([place.get(name, -1) for name in names])[raw.labels]
    kept = new_labels >= 0
    if not kept.any():
        raise FleetError(f"{raw.where}: no sample of {_listing(classes)}")
    groups = None if raw.groups is None else raw.groups[kept]
    return RawSamples(
        raw.items[kept], new_labels[kept], classes, raw.stored_bytes[kept], groups, raw.where
    )


def _listing(names: Sequence[str]) -> str:
    """Names with commas, cut where there are too many to read."""
    shown = ", ".join(names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"
