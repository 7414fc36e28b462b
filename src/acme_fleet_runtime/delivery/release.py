"""``release.json``: what a publisher signs for one device, and where the files of a site are.

A site is a folder that any static file server can serve::

    metadata/   1.root.json, …, timestamp.json, N.snapshot.json, N.targets.json   (TUF)
    targets/    DEVICE/SHA256.release.json
    files/      SHA256, of the artifacts' files; what several devices have is there once
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from acme_fleet_runtime.errors import DeliveryError
from acme_fleet_runtime.manifest import DEVICE_NAME, MANIFEST, File
from acme_fleet_runtime.outside import reading
from acme_fleet_runtime.strict import parse_json, parse_record, plain

RELEASE = "release.json"
METADATA, TARGETS, FILES = "metadata", "targets", "files"
FORMAT, VERSION = "acme-release", 1
LARGEST_RELEASE = 2**24
"""Bytes of a release's document."""


@dataclass(frozen=True)
class Release:
    """An artifact of a device, as a publisher offers it.

    Attributes:
        format, version: of this document.
        device: the only one that it is for.
        number: from 1, counted for each device.
        published: the time, in ISO's form.
        files: of the artifact, with its manifest.
        expected: logits of the publisher's machine for the samples of a self-test.
    """

    format: Literal["acme-release"]
    version: Literal[1]
    device: str
    number: int
    published: str
    files: dict[str, File]
    expected: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not DEVICE_NAME.fullmatch(self.device):
            raise ValueError("device: it is no name of a device")
        if MANIFEST not in self.files or RELEASE in self.files:
            raise ValueError(f"files: {MANIFEST} should be there, and {RELEASE} should not")
        if not self.expected:
            raise ValueError("expected: there is no sample")

    def written(self) -> bytes:
        """The document."""
        return (json.dumps(plain(self), indent=1, ensure_ascii=False) + "\n").encode()


def parse_release(content: bytes, device: str | None = None) -> Release:
    """The release in a document; of this device, where one is named.

    Raises:
        DeliveryError: if it is of another version or device, or malformed.
    """
    place = "the release" if device is None else f"the release of {device}"
    with reading(place, DeliveryError):
        document = parse_json(content)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError("it is no release of acme-fleet")
        if document.get("version") != VERSION:
            raise ValueError(
                f"it is of version {str(document.get('version'))[:20]}, this program reads "
                f"{VERSION}: pip install -U acme-fleet-runtime"
            )
        release = parse_record(Release, document)
    if device is not None and release.device != device:
        raise DeliveryError(f"{place} is for {release.device}")
    return release


def target_of(device: str) -> str:
    """The name of a device's release in the signed metadata."""
    return f"{device}/{RELEASE}"


def target_place(device: str, sha256: str) -> str:
    """The place of a release below a site: it holds its checksum, so none is overwritten."""
    return f"{TARGETS}/{device}/{sha256}.{RELEASE}"


def file_place(entry: File) -> str:
    """The place of an artifact's file below a site."""
    return f"{FILES}/{entry.sha256}"
