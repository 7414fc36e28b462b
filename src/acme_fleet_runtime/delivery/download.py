"""Downloads: they go on where they were interrupted, are bounded, and checked by SHA-256."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from acme_fleet_runtime.delivery.release import file_place
from acme_fleet_runtime.delivery.sources import Interrupted, Missing, Source
from acme_fleet_runtime.errors import DeliveryError
from acme_fleet_runtime.manifest import File, describe_file

_TRIES = 3
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPARE = 2**20  # bytes for folders, links and metadata


class Downloads:
    """Files by their checksums, in a folder that outlasts the process."""

    def __init__(self, source: Source, folder: Path) -> None:
        """Begin with what an earlier call has left in the folder."""
        self._source, self._folder = source, folder
        self._local: dict[str, Path] = {}

    def reuse(self, files: Mapping[str, Path]) -> None:
        """Take these files of this machine, by checksum, in place of downloads."""
        self._local.update(files)

    def check_space(self, entries: Iterable[File]) -> None:
        """Refuse what does not fit before anything is downloaded.

        Raises:
            DeliveryError: with the numbers.
        """
        distinct = {entry.sha256: entry.size_bytes for entry in entries}
        here = sum(self._begun(sha256) for sha256 in distinct)
        needed = sum(distinct.values()) - here + _SPARE
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise DeliveryError(
                f"the disk is full: the release needs {needed:,} bytes in {self._folder}, "
                f"{free:,} are free"
            )

    def fetch(self, entry: File, called: str) -> None:
        """Have a file in the folder, whole and verified.

        Args:
            entry: its size and checksum, by which it lies at the source.
            called: its name and device, for errors.

        Raises:
            DeliveryError: if the source does not have it, stops in the middle, or has another.
        """
        partial = self._folder / entry.sha256
        local = self._local.get(entry.sha256)
        try:
            if local is not None and not partial.exists() and local.is_file():
                shutil.copyfile(local, partial)
                if describe_file(partial) != entry:
                    partial.unlink()  # this machine's copy is damaged
            self._complete(entry, partial, called)
        except OSError as error:
            if error.errno in _FULL:
                partial.unlink(missing_ok=True)  # others on this machine need the room
            raise
        if describe_file(partial) != entry:
            partial.unlink()
            raise DeliveryError(
                f"{self._source.where}: {called} ({file_place(entry)}) is damaged: its SHA-256 is "
                f"not the signed one"
            )

    def place(self, sha256: str, paths: Sequence[Path]) -> None:
        """Move a fetched file to its place; where it has several, it is copied to the others."""
        for path in paths[1:]:
            shutil.copyfile(self._folder / sha256, path)
            _sync_file(path)
        _sync_file(self._folder / sha256)
        (self._folder / sha256).replace(paths[0])

    def forget(self, kept: Collection[str] = ()) -> None:
        """Remove what is left of downloads but these."""
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _begun(self, sha256: str) -> int:
        path = self._folder / sha256
        return path.stat().st_size if path.exists() else 0

    def _complete(self, entry: File, partial: Path, called: str) -> None:
        for attempt in range(1, _TRIES + 1):
            have = self._begun(entry.sha256)
            if have == entry.size_bytes:
                return
            if have > entry.size_bytes:
                partial.unlink()
                have = 0
            try:
                self._append(entry, partial, have, called)
            except Interrupted:
                if attempt == _TRIES:
                    raise
        have = self._begun(entry.sha256)
        if have < entry.size_bytes:
            raise DeliveryError(
                f"{self._source.where}: {called} ({file_place(entry)}) ended after {have:,} of "
                f"{entry.size_bytes:,} bytes; the next pull goes on there"
            )

    def _append(self, entry: File, partial: Path, have: int, called: str) -> None:
        place, left = file_place(entry), entry.size_bytes - have
        try:
            with partial.open("ab") as file:
                for part in self._source.read(place, have):
                    left -= len(part)
                    if left < 0:
                        raise DeliveryError(
                            f"{self._source.where}: {called} ({place}) has more than the signed "
                            f"{entry.size_bytes:,} bytes"
                        )
                    file.write(part)
        except Missing as error:
            raise DeliveryError(f"{self._source.where} has no {called} ({place})") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a small file, atomically and onto the disk."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    _sync_file(new)
    new.replace(path)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
