"""Inputs of ``acme predict``: files, folders, lines and texts, found one by one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.images import image_form
from acme_fleet_runtime.outside import one_line, reason
from acme_fleet_runtime.texts import LONGEST_TEXT

STDIN = "-"
_BEGINNING = 4096  # bytes that show a text
_NAMED = re.compile(r"[/\\]|\.\w{1,6}$")  # in an argument that should be a file
# Such a file is an image: if it cannot be decoded, that is an error, and it is not left out.
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("apng", "avif", "bmp", "dib", "gif", "heic", "heif", "ico", "jfif", "jp2", "jpe", "jpeg"),
        *(
            "jpg",
            "jxl",
            "pbm",
            "pgm",
            "png",
            "pnm",
            "ppm",
            "psd",
            "svg",
            "tga",
            "tif",
            "tiff",
            "webp",
        ),
    )
)


@dataclass(frozen=True)
class Input:
    """One sample to classify.

    Attributes:
        file: its path, ``-`` for standard input, empty for a text from nowhere.
        line: its line in the file, from 1; 0 for the whole file.
        text: the text itself; None if it is the file's content.
        error: why there is nothing to read, if so.
    """

    file: str
    line: int = 0
    text: str | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """Its place in one line that is safe to show."""
        if not self.file:
            return f'"{one_line(self.text or "", 60)}"'
        name = "standard input" if self.file == STDIN else one_line(self.file, 300)
        return name + (f", line {self.line}" if self.line else "")


@dataclass
class Skipped:
    """Files in folders that are not of the model's kind: their number and the first names."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Count a file."""
        self.count += 1
        if len(self.names) < 3:
            self.names.append(one_line(str(path), 200))

    def told(self, *, images: bool) -> str:
        """A line about them, for a model of ``images`` or of texts."""
        more = ", …" if self.count > len(self.names) else ""
        kind = "image" if images else "text"
        return f"skipped, no {kind}: {self.count} ({', '.join(self.names)}{more})"


def find_inputs(
    paths: Iterable[Path], texts: Sequence[str], skipped: Skipped, *, images: bool, lines: bool
) -> Iterator[Input]:
    """Every input in the order of the arguments; folders sorted by name, the given texts last.

    Args:
        paths: files and folders; ``-`` is standard input, of texts only. For a model of texts,
            words with a space that name no file and look like none are a text.
        texts: given as they are.
        skipped: counts the files in folders that are left out.
        images: the model takes images and not texts.
        lines: a file holds one text a line.

    Raises:
        FleetError: if a model of images is asked for texts.
    """
    if images and (lines or texts or any(str(path) == STDIN for path in paths)):
        raise FleetError(
            f"the model takes images: --text, --lines and {STDIN} are for models of texts"
        )
    return _found(paths, texts, skipped, images=images, lines=lines)


def _found(
    paths: Iterable[Path], texts: Sequence[str], skipped: Skipped, *, images: bool, lines: bool
) -> Iterator[Input]:
    for path in paths:
        if str(path) == STDIN:
            yield from _read_lines(sys.stdin.buffer, STDIN) if lines else [_whole(sys.stdin.buffer)]
        elif _is_folder(path):
            for one in _in_folder(path, skipped, images):
                yield from _lines_of(one) if lines and not one.error else [one]
        elif not images and not lines and not _exists(path):
            yield _no_file(str(path))
        else:
            yield from _lines_of(Input(str(path))) if lines else [Input(str(path))]
    for text in texts:
        yield _decoded(os.fsencode(text), Input(""))


def _no_file(argument: str) -> Input:
    """An argument that is no file: a text, where that is clear."""
    if " " in argument and not _NAMED.search(argument):
        return _decoded(os.fsencode(argument), Input(""))
    told = f"cannot read {one_line(argument, 200)} as a text: no such file or folder"
    return Input(argument, error=f"{told}; --text takes these words themselves")


def _exists(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError):  # too long for a name
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # it is told when it is read
        return False


def _in_folder(folder: Path, skipped: Skipped, images: bool) -> Iterator[Input]:
    """Files of the model's kind."""
    failed: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=failed.append):
        folders.sort()
        yield from _unreadable(failed)
        for path in (Path(place) / name for name in sorted(names)):
            if path.exists() and not path.is_file():
                skipped.add(path)  # a pipe or a socket
            elif _is_kind(path, images):
                yield Input(str(path))
            else:
                skipped.add(path)
    yield from _unreadable(failed)


def _unreadable(failed: list[OSError]) -> Iterator[Input]:
    while failed:
        error = failed.pop()
        name = os.fsdecode(error.filename)
        yield Input(name, error=f"cannot read the folder {one_line(name)}: {reason(error)}")


def _is_kind(path: Path, images: bool) -> bool:
    """By content; also true for what should be an image and cannot be read, which is told then."""
    try:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
    except OSError:
        return True
    if images:
        with suppress(FleetError):
            return bool(image_form(path, str(path)))
        return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    try:
        beginning.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and len(beginning) == _BEGINNING
    return b"\0" not in beginning


def _lines_of(one: Input) -> Iterator[Input]:
    try:
        with Path(one.file).open("rb") as file:
            yield from _read_lines(file, one.file)
    except (OSError, ValueError) as error:
        told = f"cannot read {one.label} as a text: {reason(error)}"
        yield Input(one.file, error=told)


def _read_lines(file: BinaryIO, name: str) -> Iterator[Input]:
    """One text a line, ended by a line feed; blank lines are left out."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_TEXT + 1), b""), 1):
        if line.strip():
            yield _decoded(line.rstrip(b"\r\n"), Input(name, number))
        if len(line) > LONGEST_TEXT:  # where the next line begins is not known
            return


def _whole(file: BinaryIO) -> Input:
    return _decoded(file.read(LONGEST_TEXT + 1), Input(STDIN))


def _decoded(content: bytes, place: Input) -> Input:
    """A byte order mark at the beginning is no part of the text."""
    if len(content) > LONGEST_TEXT:
        told = f"cannot read {place.label} as a text: it has more than {LONGEST_TEXT:,} bytes"
        return Input(place.file, place.line, error=told)
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        shown = place.label if place.file else repr(content[:60])
        told = f"cannot read {shown} as a text: {reason(error)}"
        return Input(place.file, place.line, error=told)
    return Input(place.file, place.line, text)
