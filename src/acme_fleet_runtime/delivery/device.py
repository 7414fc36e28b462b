"""A device's folder of releases: pull, self-test, switch, roll back.

::

    current -> releases/3-1f2e3d4c      what the device runs; a link that is replaced in one step
    previous -> releases/2-9a8b7c6d     what `rollback` goes back to
    releases/                           artifacts, each with the release.json that was signed
    .acme/                              trusted metadata, downloads, what was rolled back
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acme_fleet_runtime.delivery.download import Downloads, write_file
from acme_fleet_runtime.delivery.release import LARGEST_RELEASE, RELEASE, Release, parse_release
from acme_fleet_runtime.delivery.selftest import check_answers
from acme_fleet_runtime.delivery.sources import open_source
from acme_fleet_runtime.delivery.trust import newest_release
from acme_fleet_runtime.errors import ArtifactError, DeliveryError, FleetError
from acme_fleet_runtime.locks import acquire, release
from acme_fleet_runtime.manifest import (
    DEVICE_NAME,
    LARGEST_MANIFEST,
    MANIFEST,
    Manifest,
    check_files,
    parse_manifest,
)
from acme_fleet_runtime.outside import one_line, read_regular, reading, reason
from acme_fleet_runtime.runner import runtime

CURRENT, PREVIOUS = "current", "previous"
_RELEASES, _OWN, _NEW = "releases", ".acme", ".new"
_LOCK, _METADATA, _PARTIAL, _REFUSED = ".acme-lock", "metadata", "partial", "refused"


@dataclass(frozen=True)
class Pulled:
    """The result of a pull.

    Attributes:
        release: the publisher's newest.
        state: ``new`` was installed now, ``same`` was there, ``refused`` was rolled back here.
        folder: that the device runs.
        healed: a damaged release that was installed anew, because the newest was rolled back here.
    """

    release: Release
    state: Literal["new", "same", "refused"]
    folder: Path
    healed: Release | None = None

    @property
    def told(self) -> str:
        """A line for people."""
        name = f"release {self.release.number} of {self.release.device}"
        if self.state == "new":
            return f"{name} is installed: {self.folder}"
        if self.state == "same":
            return f"{name} is installed, and is the newest: {self.folder}"
        told = f"{name} is the newest, and was rolled back here; --again installs it"
        if self.healed is None:
            return told
        return (
            f"release {self.healed.number} was damaged and is installed anew: {self.folder}; {told}"
        )


@dataclass(frozen=True)
class RolledBack:
    """The result of a rollback: the name of the release that was left, and the one that runs."""

    left: str
    release: Release
    folder: Path

    @property
    def told(self) -> str:
        """A line for people."""
        name = f"release {self.release.number} of {self.release.device}"
        return f"{name} is installed again, in place of {self.left}: {self.folder}"


def pull(where: str, device: str, to: Path, *, trust: str | None = None, again: bool) -> Pulled:
    """Install the newest release of a device, if it is another one than the current.

    Whatever goes wrong, the device still runs what it ran before, and a later call goes on.

    Args:
        where: URL, folder or bundle.
        device: its name.
        to: the device's folder of releases.
        trust: see :func:`newest_release`.
        again: install a release that was rolled back here.

    Raises:
        DeliveryError: if it cannot be trusted, downloaded or installed, or fails its self-test.
        ArtifactError: if this machine cannot run it.
    """
    if not DEVICE_NAME.fullmatch(device):
        raise DeliveryError(f"--device: {one_line(device, 80)!r} is no name of a device")
    source = open_source(where)
    with _held(to, begin=True):
        content = newest_release(to / _OWN / _METADATA, source, device, trust)
        offered = parse_release(content, device)
        name = f"{offered.number}-{hashlib.sha256(content).hexdigest()[:12]}"
        current = _linked(to, CURRENT)
        if current is not None:
            _check_device(current, device)
        if current is not None and _name(current) == name and _sound(current, offered):
            return Pulled(offered, "same", to / CURRENT)
        downloads = Downloads(source, to / _OWN / _PARTIAL)
        if not again and name == _refused(to):
            sound = current is not None and _sound(current)
            healed = None if sound else _healed(downloads, to, device, offered)
            return Pulled(offered, "refused", to / CURRENT, healed)
        target = _install(downloads, offered, content, to, name)
        if current is not None and _sound(current):
            _switch(to / PREVIOUS, current)
        _switch(to / CURRENT, target)
        (to / _OWN / _REFUSED).unlink(missing_ok=True)
        downloads.forget()
        _tidy(to)
    return Pulled(offered, "new", to / CURRENT)


def rollback(to: Path) -> RolledBack:
    """Switch to the release before, once it has passed its self-test.

    The one that is left is not installed again by :func:`pull`, until there is a newer one.

    Raises:
        DeliveryError: if there is none before, or it is damaged.
        ArtifactError: if this machine cannot run it.
    """
    with _held(to, begin=False):
        if not (to / CURRENT).is_symlink():
            raise DeliveryError(f"{to} has no release yet")
        left, previous = (to / CURRENT).readlink(), _linked(to, PREVIOUS)
        if previous is None or previous.name == left.name:
            raise DeliveryError(f"{to} has no release before {_name(left)}")
        back = _installed(previous)
        _try(previous, back)
        write_file(to / _OWN / _REFUSED, _name(left).encode())
        _switch(to / CURRENT, previous)
        (to / PREVIOUS).unlink()
    return RolledBack(_name(left), back, to / CURRENT)


def _healed(downloads: Downloads, to: Path, device: str, newest: Release) -> Release:
    """Install the current release anew, as its own signed document says; a newer one is refused.

    Raises:
        DeliveryError: if that document is damaged, too, or the source no longer has the files.
    """
    link = to / CURRENT
    name = _name(link.readlink()) if link.is_symlink() else "the current release"
    try:
        with reading(f"cannot read {link / RELEASE}", DeliveryError):
            content = read_regular(link / RELEASE, LARGEST_RELEASE)
        if not name.endswith(hashlib.sha256(content).hexdigest()[:12]):
            raise DeliveryError(f"{link / RELEASE} is damaged")
        own = parse_release(content, device)
        _switch(link, _install(downloads, own, content, to, name))
    except (ArtifactError, DeliveryError) as error:
        raise DeliveryError(
            f"{link} ({name}) is damaged and cannot be installed anew: {error}; --again installs "
            f"release {newest.number}, which was rolled back here"
        ) from error
    downloads.forget()
    _tidy(to)
    return own


def _install(downloads: Downloads, offered: Release, content: bytes, to: Path, name: str) -> Path:
    """A release's folder, complete and tried; no other folder is touched."""
    target = to / _RELEASES / name
    if _sound(target, offered):
        _try(target, offered)
        return target
    if target.exists():  # damaged, and perhaps in use: the new one lies beside it
        target = target.with_name(f"{name}.{secrets.token_hex(4)}")
    new = to / _RELEASES / _NEW
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        _fill(downloads, offered, content, _linked(to, CURRENT), new)
        _try(new, offered)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _sync(target.parent)
    return target


@contextmanager
def _held(to: Path, *, begin: bool) -> Iterator[None]:
    """Hold a device's folder; ``begin`` makes it. Refusals of the system become one error."""
    own = to / _OWN
    try:
        if not own.is_dir():
            if not begin:
                raise DeliveryError(f"{to} is no device's folder: nothing was pulled into it")
            if to.exists() and (not to.is_dir() or any(to.iterdir())):
                raise DeliveryError(f"{to} is no device's folder and is not empty")
        for folder in (own / _PARTIAL, to / _RELEASES):
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = acquire(to / _LOCK, DeliveryError)
        try:
            yield
        finally:
            release(to / _LOCK, descriptor)
    except OSError as error:
        raise DeliveryError(f"cannot write {to}: {reason(error)}") from error


def _linked(to: Path, name: str) -> Path | None:
    """The release that a link names; None if there is none, or it is gone."""
    link = to / name
    if not link.is_symlink():
        return None
    target = to / _RELEASES / link.readlink().name
    return target if target.is_dir() else None


def _name(folder: Path) -> str:
    """The name of a release, whose folder may have a suffix."""
    return folder.name.partition(".")[0]


def _check_device(current: Path, device: str) -> None:
    """Refuse a folder of another device; a damaged release says nothing."""
    with suppress(DeliveryError):
        own = _installed(current).device
        if own != device:
            raise FleetError(f"{current.parent.parent} is the folder of {own}, not of {device}")


def _installed(folder: Path) -> Release:
    with reading(f"cannot read {folder / RELEASE}", DeliveryError):
        content = read_regular(folder / RELEASE)
    return parse_release(content)


def _sound(folder: Path, offered: Release | None = None) -> bool:
    """True if a release, the one that is ``offered``, is there with all its files unchanged."""
    try:
        there = _installed(folder)
        manifest = _checked_manifest(folder, there)
        check_files(folder, manifest, manifest.files.keys())
    except (ArtifactError, DeliveryError):
        return False
    return offered is None or there == offered


def _refused(to: Path) -> str:
    path = to / _OWN / _REFUSED
    return read_regular(path).decode() if path.exists() else ""


def _checked_manifest(folder: Path, offered: Release) -> Manifest:
    """The manifest of a folder, whose files are those of the release."""
    with reading(f"cannot read {folder / MANIFEST}", DeliveryError):
        content = read_regular(folder / MANIFEST, LARGEST_MANIFEST)
    if hashlib.sha256(content).hexdigest() != offered.files[MANIFEST].sha256:
        raise DeliveryError(f"{folder / MANIFEST} is damaged")
    manifest = parse_manifest(content, folder / MANIFEST)
    others = {name: entry for name, entry in offered.files.items() if name != MANIFEST}
    if manifest.files != others or manifest.name != offered.device:
        raise DeliveryError(f"release {offered.number} of {offered.device} contradicts itself")
    return manifest


def _fill(
    downloads: Downloads, offered: Release, content: bytes, current: Path | None, folder: Path
) -> None:
    """Fill a folder with a release's files; those of the current release are not downloaded."""
    downloads.forget({entry.sha256 for entry in offered.files.values()})
    # It says what the others need, before they come.
    downloads.fetch(offered.files[MANIFEST], f"{MANIFEST} of {offered.device}")
    downloads.place(offered.files[MANIFEST].sha256, [folder / MANIFEST])
    manifest = _checked_manifest(folder, offered)
    runtime(manifest.program.minimum)
    if current is not None:
        with suppress(DeliveryError):
            entries = _installed(current).files.items()
            downloads.reuse({entry.sha256: current / name for name, entry in entries})
    downloads.check_space(manifest.files.values())
    places: dict[str, list[Path]] = {}
    for name, entry in manifest.files.items():
        downloads.fetch(entry, f"{name} of {offered.device}")
        places.setdefault(entry.sha256, []).append(folder / name)
    for sha256, paths in places.items():
        downloads.place(sha256, paths)
    write_file(folder / RELEASE, content)
    _sync(folder)


def _try(folder: Path, offered: Release) -> None:
    tolerance = _checked_manifest(folder, offered).verification.tolerance
    check_answers(folder, offered.expected, tolerance)


def _switch(link: Path, target: Path) -> None:
    """Let a link name another release: readers see the old one or the new one."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(Path(_RELEASES) / target.name)
    new.replace(link)
    _sync(link.parent)


def _tidy(to: Path) -> None:
    """Remove releases that no link names."""
    kept = {_linked(to, CURRENT), _linked(to, PREVIOUS)}
    for folder in (to / _RELEASES).iterdir():
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
