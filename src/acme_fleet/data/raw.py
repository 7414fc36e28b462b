"""Samples as they are stored, and what their labels, class names and owners may be."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line

Place = Callable[[int], str]
"""Names the place of a value by its number, for errors: the file with its line or row."""


@dataclass(frozen=True)
class Columns:
    """The columns to read: the image's or text's, the label's, and the owner's.

    With ``label_optional`` a data set without the label's column is read as unlabelled.
    """

    item: str
    label: str
    group: str | None = None
    label_optional: bool = False

    @property
    def wanted(self) -> list[str]:
        """All names, once each."""
        return list(dict.fromkeys(x for x in (self.item, self.label, self.group) if x))

    def within(self, present: Collection[str]) -> list[str]:
        """The columns to read of those present: all wanted, or all but an optional label."""
        lacks = self.label_optional and self.label not in present
        return [name for name in self.wanted if not (lacks and name == self.label)]


@dataclass(frozen=True)
class RawSamples:
    """Images or texts as they are stored, with labels if they have some.

    Attributes:
        items: images as an array of shape ``(samples, height, width)`` or ``(samples, height,
            width, channels)``; or, with dtype object, each image file's content (bytes) or path,
            or each text.
        codes: the labels as integers from 0, shape ``(samples,)``; places in ``names`` where there
            are names. None for unlabelled samples, which have no names either.
        names: the classes' names in the order of the labels, where the data set tells them.
        stored_bytes: size of each sample as stored, shape ``(samples,)``, int64.
        groups: the owner of each sample, shape ``(samples,)``, where a column says so: int64, or
            text with dtype object.
        where: the setting that they come from, for error messages.
        text_labels: the labels are stored as text; ``names`` lists those that occur.
    """

    items: np.ndarray
    codes: np.ndarray | None
    names: list[str] | None
    stored_bytes: np.ndarray
    groups: np.ndarray | None
    where: str
    text_labels: bool = False

    @property
    def labels(self) -> np.ndarray:
        """The labels as integers.

        Raises:
            ValueError: if the samples have no labels.
        """
        if self.codes is None:
            raise ValueError(f"{self.where}: labels of samples that have none were asked for")
        return self.codes

    def __post_init__(self) -> None:
        codes = self.stored_bytes if self.codes is None else self.codes
        if self.items.ndim not in (1, 3, 4) or len(self.items) != len(codes):
            raise FleetError(
                f"{self.where}: images of shape {self.items.shape} and labels of shape "
                f"{codes.shape}; (samples, height, width[, channels]) and (samples,) belong "
                f"together"
            )
        if len(self.items) == 0:
            raise FleetError(f"{self.where}: there is no sample")
        if 0 in self.items.shape:
            raise FleetError(f"{self.where}: images of shape {self.items.shape} have no pixels")
        if self.codes is None:
            return
        if self.groups is not None and len(self.groups) != len(self.labels):
            raise FleetError(f"{self.where}: {len(self.groups)} owners, {len(self.labels)} labels")
        if self.labels.min() < 0:
            raise FleetError(
                f"{self.where}: label {self.labels.min()} is negative, as in an unlabelled split; "
                f"labels count from 0"
            )
        if self.names is not None and self.labels.max() >= len(self.names):
            raise FleetError(
                f"{self.where}: label {self.labels.max()} has no name; "
                f"there are {len(self.names)} names"
            )

    def __getitem__(self, index: np.ndarray) -> RawSamples:
        """The samples at ``index``, int64 of shape ``(chosen,)``."""
        return replace(
            self,
            items=self.items[index],
            codes=None if self.codes is None else self.codes[index],
            stored_bytes=self.stored_bytes[index],
            groups=None if self.groups is None else self.groups[index],
        )


# --- several files ----------------------------------------------------------------------------


def joined(parts: Sequence[RawSamples], where: str) -> RawSamples:
    """Several files as one data set, whatever their order: classes are matched by name.

    Numbers without names count in the names that the other files list.

    Raises:
        FleetError: naming two files that do not belong together.
    """
    if len(parts) == 1:
        return replace(parts[0], where=where)
    names, labels = _same_classes(parts)
    _agree(parts, lambda part: part.items.shape[1:], "images of shape")
    _agree(parts, lambda part: part.items.dtype.kind.replace("i", "u"), "images of type")
    _agree(parts, lambda part: None if part.groups is None else part.groups.dtype, "owners of type")
    groups = [part.groups for part in parts if part.groups is not None]
    return RawSamples(
        items=np.concatenate([part.items for part in parts]),
        codes=np.concatenate(labels),
        names=names,
        stored_bytes=np.concatenate([part.stored_bytes for part in parts]),
        groups=np.concatenate(groups) if groups else None,
        where=where,
        text_labels=all(part.text_labels for part in parts),
    )


def _agree(parts: Sequence[RawSamples], of: Callable[[RawSamples], Any], noun: str) -> None:
    first = parts[0]
    for part in parts[1:]:
        if of(part) != of(first):
            raise FleetError(
                f"{first.where} has {noun} {of(first)}, {part.where} {of(part)}; they must agree"
            )


def _same_classes(parts: Sequence[RawSamples]) -> tuple[list[str] | None, list[np.ndarray]]:
    """One list of names for all files, and the labels of each in its order."""
    named = [part for part in parts if part.names is not None]
    nameless = [part for part in parts if part.names is None]
    if not named:
        return None, [part.labels for part in parts]
    lists = [part.names or [] for part in named]
    if nameless:
        other = next((part for part in named if part.text_labels), None)
        if other or any(names != lists[0] for names in lists):
            raise FleetError(
                f"{nameless[0].where} has numbers without class names, and "
                f"{(other or named[0]).where} does not say which classes they mean; add names to it"
            )
    names = _united(lists)
    place = {name: label for label, name in enumerate(names)}
    return names, [
        part.labels
        if part.names is None
        else np.array([place[name] for name in part.names])[part.labels]
        for part in parts
    ]


def _united(lists: Sequence[list[str]]) -> list[str]:
    """The longest list where all others are parts of it in the same order, else all sorted."""
    longest = max(lists, key=len)
    if all([name for name in longest if name in set(names)] == names for names in lists):
        return longest
    return sorted({name for names in lists for name in names})


# --- labels, names, owners --------------------------------------------------------------------


def coded(
    values: Sequence[Any], names: list[str] | None, place: Place
) -> tuple[np.ndarray, list[str] | None, bool]:
    """Labels as integers.

    Args:
        values: whole numbers, or all of them text (also UTF-8 bytes). Text is matched with
            ``names``; without these it is numbered in sorted order and names itself.
        names: the classes' names, where the data set lists them.
        place: names the place of a value, for errors.

    Returns:
        The labels, int64; the names, if any; and if the labels are text that names itself.

    Raises:
        FleetError: if they are neither, or mixed.
    """
    plain = _of_one_kind(values, place, "label")
    if not plain or isinstance(plain[0], int):
        return np.array(plain, dtype=np.int64), names, False
    known = sorted(set(plain)) if names is None else names
    index = {name: label for label, name in enumerate(known)}
    for number, name in enumerate(plain):
        if name not in index:
            raise FleetError(f"{place(number)}: label {one_line(name)!r} is not among the names")
    return np.array([index[name] for name in plain], dtype=np.int64), known, names is None


def owners(values: Sequence[Any], place: Place) -> np.ndarray:
    """Owners as int64 or, with dtype object, as text: numbers are ordered as numbers.

    Raises:
        FleetError: if one is missing or neither a whole number nor text, or both kinds occur.
    """
    plain = _of_one_kind(values, place, "owner")
    if not plain or isinstance(plain[0], int):
        return np.array(plain, dtype=np.int64)
    for number, name in enumerate(plain):
        if not name.strip():
            raise FleetError(f"{place(number)}: the owner is an empty text")
    if alike := same_but_for_spaces(plain):
        raise FleetError(f"{place(plain.index(alike[1]))}: the owners {both_named(alike)}")
    return as_objects(plain)


def same_but_for_spaces(names: Iterable[str]) -> tuple[str, str] | None:
    """Two different names that are one but for spaces, if there are such."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(" ".join(name.split()), name)) != name:
            return other, name
    return None


def both_named(names: tuple[str, str]) -> str:
    """Such names in an error."""
    first, second = (repr(name[:60]) for name in names)
    return f"{first} and {second} differ in spaces alone; write them alike"


def class_list(values: Any, where: str) -> list[str]:
    """The class names that a data set lists: as a list, or by number.

    Raises:
        FleetError: if one is no text, empty or used twice.
    """
    if isinstance(values, dict):  # Hugging Face's data cards: {"0": "ant", "1": "bee"}
        by_number = {str(key): name for key, name in values.items()}
        if sorted(by_number) != sorted(map(str, range(len(values)))):
            raise FleetError(f"{where}: its class names are not numbered from 0")
        values = [by_number[str(number)] for number in range(len(values))]
    if not isinstance(values, list) or not values:
        raise FleetError(f"{where}: its class names are no list of text")
    names = [_plain(name, f"{where}: name of class {n}") for n, name in enumerate(values)]
    text = [name if isinstance(name, str) else str(name) for name in names]
    if repeated := sorted({name for name in text if text.count(name) > 1}):
        raise FleetError(f"{where}: two classes have the name {one_line(repeated[0])!r}")
    return text


def _of_one_kind(values: Iterable[Any], place: Place, noun: str) -> list[Any]:
    """The values as int or str, all of the same kind."""
    plain: list[Any] = []
    for number, value in enumerate(values):
        here = _plain(value, f"{place(number)}: {noun}")
        if plain and type(here) is not type(plain[0]):
            kinds = {int: "a number", str: "text"}
            raise FleetError(
                f"{place(number)}: {noun} {one_line(repr(value), 60)} is {kinds[type(here)]}, that "
                f"of {place(0)} is {kinds[type(plain[0])]}; they must be of one kind"
            )
        plain.append(here)
    return plain


def _plain(value: Any, what: str) -> int | str:
    """A value as int or str."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise FleetError(f"{what} is missing")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise FleetError(f"{what} {one_line(repr(value), 60)} is not UTF-8") from None
    if isinstance(value, str):
        if not value.isascii() and value.encode("utf-8", "replace").decode() != value:
            raise FleetError(f"{what} {one_line(repr(value), 60)} is not Unicode text")
        return unicodedata.normalize("NFC", value)  # macOS writes names of files otherwise
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**63:
            raise FleetError(f"{what} has more than 64 bits")
        return value
    raise FleetError(
        f"{what} {one_line(repr(value), 60)} is of type {type(value).__name__}; "
        f"integers or text are needed"
    )


def as_objects(items: Sequence[Any]) -> np.ndarray:
    """An array of dtype object and shape ``(items,)``, whatever the items are."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
