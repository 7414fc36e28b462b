"""Places that releases come from: a folder, a bundle (zip), an HTTP server. None is trusted."""

from __future__ import annotations

import stat
import urllib.error
import urllib.request
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, unquote, urlsplit

from acme_fleet_runtime.delivery.release import METADATA, TARGETS
from acme_fleet_runtime.errors import DeliveryError
from acme_fleet_runtime.outside import listed, one_line, reading, reason, regular

_CHUNK = 2**16
_SILENCE_S = 30.0
_MOST_ENTRIES = 100_000  # of a bundle
_GONE = (403, 404, 410)  # storage services answer 403 for what is not there


class Missing(Exception):
    """The source has no such file."""


class Interrupted(DeliveryError):
    """A server stopped in the middle; asking again may help."""


class Source(ABC):
    """Files by their places below a site. Readers bound what they take, and check it."""

    def __init__(self, where: str) -> None:
        """Remember ``where`` it is, for messages."""
        self.where = where

    @abstractmethod
    def read(self, place: str, start: int = 0) -> Iterator[bytes]:
        """The content of a file from byte ``start`` on, in parts.

        Raises:
            Missing: if there is none.
            Interrupted: if a server stops in the middle.
            DeliveryError: if it cannot be read.
        """

    def devices(self) -> Sequence[str]:
        """Devices whose releases are here; none where that cannot be listed."""
        return ()


def open_source(where: str) -> Source:
    """The source at a URL (http, https, file), of a folder, or of a bundle.

    Raises:
        DeliveryError: if there is nothing, or no bundle, or a folder of bundles.
    """
    parts = urlsplit(where)
    if parts.scheme in ("http", "https"):
        return _Server(where)
    path = Path(unquote(parts.path) if parts.scheme == "file" else where)
    with reading(f"--from {where}", DeliveryError):
        if parts.scheme and "://" in where and parts.scheme != "file":
            raise ValueError("a URL begins with https://, http:// or file://")
        return _Folder(path) if regular(path).is_dir() else _Bundle(path)


class _Folder(Source):
    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def read(self, place: str, start: int = 0) -> Iterator[bytes]:
        path = self._path / place
        if not path.exists():
            bundles = sorted(map(str, self._path.glob("*.zip")))
            if bundles and PurePosixPath(place).parts[0] == METADATA and not path.parent.exists():
                told = f"{self._path} is a folder of bundles; name the zip: {listed(bundles)}"
                raise DeliveryError(told)
            raise Missing(place)
        with reading(f"cannot read {path}", DeliveryError), regular(path).open("rb") as file:
            file.seek(start)
            yield from iter(lambda: file.read(_CHUNK), b"")


class _Bundle(Source):
    """A zip; nothing is unpacked by the names in it, and no more is read than is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        with reading(f"{path} is no bundle", DeliveryError), zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if len(entries) > _MOST_ENTRIES:
            raise DeliveryError(f"{path} is no bundle: {len(entries):,} entries are too many")
        for entry in entries:
            _check_entry(path, entry)

    def read(self, place: str, start: int = 0) -> Iterator[bytes]:
        with reading(f"cannot read {place} in {self._path}", DeliveryError):
            archive = zipfile.ZipFile(self._path)
        with archive:
            if place not in archive.namelist():
                raise Missing(place)
            with reading(f"cannot read {place} in {self._path}", DeliveryError):
                file = archive.open(place)
            with file, reading(f"{place} in {self._path} is damaged", DeliveryError):
                yield from _after(file, start)

    def devices(self) -> Sequence[str]:
        """See the base class."""
        problem = reading(f"cannot read {self._path}", DeliveryError)
        with problem, zipfile.ZipFile(self._path) as archive:
            places = [PurePosixPath(name).parts for name in archive.namelist()]
        return sorted({parts[1] for parts in places if len(parts) == 3 and parts[0] == TARGETS})


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    leaves = name.is_absolute() or ".." in name.parts or "\\" in entry.filename
    if leaves or stat.S_ISLNK(entry.external_attr >> 16):
        raise DeliveryError(
            f"{path} is refused: {one_line(entry.filename, 60)!r} in it leads out of the bundle"
        )


class _Server(Source):
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.query or parts.fragment or not parts.hostname:
            raise DeliveryError(f"--from {one_line(url)}: a URL of a folder is needed")
        super().__init__(url)
        self._url = url.rstrip("/")

    def read(self, place: str, start: int = 0) -> Iterator[bytes]:
        url = f"{self._url}/{quote(place)}"
        headers = {"Accept-Encoding": "identity", "User-Agent": "acme-fleet-runtime"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=_SILENCE_S
            ) as reply:
                yield from _after(reply, 0 if _goes_on(reply, start) else start)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _GONE:
                raise Missing(place) from error
            if error.code == 416:  # it has no more than what is here
                return
            raise DeliveryError(f"{url}: the server answers {error.code}") from error
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            told = reason(cause) if isinstance(cause, BaseException) else str(cause)
            raise Interrupted(f"{url}: {told}") from error


def _goes_on(reply: IO[bytes], start: int) -> bool:
    """True if a reply begins at ``start``; servers without ranges begin at 0."""
    status, headers = getattr(reply, "status", 200), getattr(reply, "headers", {})
    if status != 206:
        return False
    return str(headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _after(file: IO[bytes], start: int) -> Iterator[bytes]:
    """The rest of a stream, behind its first bytes."""
    while start > 0 and (skipped := file.read(min(_CHUNK, start))):
        start -= len(skipped)
    yield from iter(lambda: file.read(_CHUNK), b"")
