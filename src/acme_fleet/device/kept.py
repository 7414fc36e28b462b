"""A device that keeps what it finished in an earlier run."""

from __future__ import annotations

import shutil
from pathlib import Path

from acme_fleet.device.state import DeviceFolder, changed_files
from acme_fleet.errors import ProtocolError
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.directory import RunDirectory


def keep_device(old: RunDirectory, run: RunDirectory, name: str) -> None:
    """Copy a device's folder and its artifact from one run to another, bit for bit.

    Raises:
        ProtocolError: if the device has not finished there, or what it shipped was changed since.
    """
    source = old.device(name)
    remedy = f"put back a copy, or let the device train again: --refresh {name}"
    if DeviceFolder(source).report() is None:
        raise ProtocolError(f"{source} holds no finished model of {name}; {remedy}")
    if changed := changed_files(source):
        raise ProtocolError(f"{source / changed[0]} is not as the run left it; {remedy}")
    if old.artifact(name).exists():
        _copy(old.artifact(name), run.artifact(name))
    _copy(source, run.device(name))


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, which appears as a whole; one that is there stays."""
    if target.exists():
        return
    half = target.with_name(f".{target.name}.half")
    with writing(target):
        if half.exists():
            shutil.rmtree(half)
        shutil.copytree(source, half)
        half.replace(target)
