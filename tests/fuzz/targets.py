"""Readers of others' bytes: each takes any bytes, and raises only where the fault is ours."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError, ProtocolError, RunError
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages.base import Message
from acme_fleet.models.description import parse_description
from acme_fleet.network.hosts.site import Site
from acme_fleet_runtime.errors import ArtifactError
from acme_fleet_runtime.errors import FleetError as RuntimeFleetError
from acme_fleet_runtime.manifest import parse_manifest
from acme_fleet_runtime.texts import Tokens

_PLACE = Path(tempfile.mkdtemp(prefix="acme-fuzz-"))
(_PLACE / "fleet.yaml").write_text("")


def wire(data: bytes) -> None:
    """A message that is accepted is the same after it was sent once more."""
    try:
        message = decode(data, Message.registry.values())
    except ProtocolError:
        return
    again = encode(message)
    assert encode(decode(again, [type(message)])) == again


def manifest(data: bytes) -> None:
    """An artifact's manifest."""
    try:
        parse_manifest(data, Path("manifest.json"))
    except ArtifactError:
        return


def fleet(data: bytes) -> None:
    """A fleet file; one that is accepted is the same after it was written."""
    path = _PLACE / "some.yaml"
    path.write_bytes(data)
    try:
        found = Fleet.from_yaml(path)
    except FleetError:
        return
    path.write_text(found.to_yaml())
    assert Fleet.from_yaml(path) == found


def site(data: bytes) -> None:
    """A host's site file."""
    path = _PLACE / "site.yaml"
    path.write_bytes(data)
    try:
        Site.from_yaml(path)
    except FleetError:
        return


def description(data: bytes) -> None:
    """The configuration in a device's folder, as ``acme_fleet.load`` reads it."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        parse_description(document, "config.json")
    except RunError:
        return


def tokenizer(data: bytes) -> None:
    """A tokenizer's document, which a library reads that is not ours."""
    try:
        tokens = Tokens(data.decode(errors="replace"), 16, 0, 100)
        tokens.numbers("a lamp in the rain")
    except (FleetError, RuntimeFleetError):
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire,
    "manifest": manifest,
    "fleet": fleet,
    "site": site,
    "description": description,
    "tokenizer": tokenizer,
}
