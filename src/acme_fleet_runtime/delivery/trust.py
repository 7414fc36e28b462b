"""The publisher's signed metadata, by python-tuf's client: what is the newest release, for whom.

The client refuses what is older than what this device has seen (rollback), what has run out
(freeze), parts of different states (mix and match) and signatures of keys that the root metadata
does not name; a new root must be signed by the one before it (rotation).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from acme_fleet_runtime.delivery.release import (
    LARGEST_RELEASE,
    METADATA,
    target_of,
    target_place,
)
from acme_fleet_runtime.delivery.sources import Missing, Source
from acme_fleet_runtime.errors import DeliveryError
from acme_fleet_runtime.outside import listed, one_line, optional, read_regular, reading, reason

ROOT = "root.json"
_LARGEST_ROOT, _LARGEST_TARGETS = 512_000, 2**25  # bytes
_MOST_ROOTS = 256
_HISTORY = "root_history"  # python-tuf's


def library(module: str) -> ModuleType:
    """A module of python-tuf or securesystemslib, which only delivery needs.

    Raises:
        DeliveryError: if it is not installed.
    """
    advice = "signed releases need python-tuf: pip install 'acme-fleet-runtime[pull]'"
    return optional(module, advice, DeliveryError)


def fingerprint(root: bytes) -> str:
    """The name of a publisher's root metadata: its SHA-256."""
    return hashlib.sha256(root).hexdigest()


def newest_release(folder: Path, source: Source, device: str, trust: str | None) -> bytes:
    """The content of a device's newest release, once everything about it is verified.

    Args:
        folder: of the metadata that this device trusts; the next call compares with it.
        source: the publisher's site.
        device: its name.
        trust: the publisher's fingerprint, or a file of its root metadata; the first call for a
            folder needs it. Later it may be that of any root since then, also one that came by a
            rotation just now.

    Raises:
        DeliveryError: saying what cannot be trusted, or that there is nothing for the device.
    """
    client, settings = library("tuf.ngclient"), _settings()
    wanted = None if trust is None else _named(trust)
    with _explained(source):
        folder.mkdir(parents=True, exist_ok=True)
        root = None if (folder / ROOT).exists() else _first_root(folder, source, wanted)
        try:
            updater = client.Updater(
                str(folder), METADATA, fetcher=_fetcher(source), config=settings, bootstrap=root
            )
        except library("tuf.api.exceptions").RepositoryError as error:
            raise DeliveryError(
                f"the root metadata that this device trusts is damaged ({reason(error)}): remove "
                f"{folder} and give --trust again"
            ) from error
        try:
            updater.refresh()
        except library("tuf.api.exceptions").RepositoryError:
            _check_followed(folder, wanted)  # else it is the reason
            raise
        _check_followed(folder, wanted)
        entry = updater.get_targetinfo(target_of(device))
        if entry is None:
            raise DeliveryError(f"{source.where} has no release for {one_line(device, 64)}")
        sha256 = entry.hashes.get("sha256", "")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256) or entry.length > LARGEST_RELEASE:
            raise DeliveryError(f"{source.where}: the entry of {device} is malformed")
        others = source.devices()
        if others and device not in others:
            raise DeliveryError(
                f"{source.where} is a bundle of {listed(others)}, not of {one_line(device, 64)}"
            )
        place = target_place(device, sha256)
        content = _fetcher(source).download_bytes(place, entry.length)
        entry.verify_length_and_hashes(content)
    return content


def _settings() -> Any:
    config = library("tuf.ngclient").UpdaterConfig
    return config(root_max_length=_LARGEST_ROOT, targets_max_length=_LARGEST_TARGETS)


def _check_followed(folder: Path, wanted: str | None) -> None:
    """Refuse a publisher whose root is none of those that this device has come by.

    Raises:
        DeliveryError: naming the newest of those.
    """
    if wanted is None:
        return
    roots = [path.read_bytes() for path in (folder / _HISTORY).glob("*.json")]
    newest = (folder / ROOT).read_bytes()
    if wanted not in map(fingerprint, [*roots, newest]):
        raise DeliveryError(
            f"--trust {wanted}: {folder.parent.parent} follows another publisher, "
            f"{fingerprint(newest)}, whose key has not signed this one's; pull into another "
            f"folder, or leave --trust out to go on with that publisher"
        )


def _first_root(folder: Path, source: Source, wanted: str | None) -> bytes:
    """The root to begin from."""
    if wanted is None:
        raise DeliveryError(
            f"{folder.parent.parent} follows no publisher yet: give --trust the fingerprint that "
            f"`acme publish` and `acme keys show` print, or the publisher's root.json"
        )
    for version in range(1, _MOST_ROOTS + 1):
        try:
            place = f"{METADATA}/{version}.{ROOT}"
            root = _fetcher(source).download_bytes(place, _LARGEST_ROOT)
        except library("tuf.api.exceptions").DownloadHTTPError:
            if version == 1:
                raise  # it is no site at all
            break
        if fingerprint(root) == wanted:
            return root
    raise DeliveryError(
        f"{source.where} is not of the publisher {wanted}, or is older than the newest of its "
        f"keys: do not trust it"
    )


def _named(trust: str) -> str:
    """The fingerprint that ``--trust`` means."""
    digits = trust.strip().lower()
    if re.fullmatch(r"[0-9a-f]{64}", digits):
        return digits
    with reading(
        f"--trust {one_line(trust, 80)}: neither 64 hexadecimal digits nor a file", DeliveryError
    ):
        return fingerprint(read_regular(Path(trust), _LARGEST_ROOT))


def _fetcher(source: Source) -> Any:
    """The source as python-tuf asks for it; paths in place of URLs."""
    base: Any = library("tuf.ngclient").FetcherInterface
    exceptions = library("tuf.api.exceptions")

    class Fetcher(base):
        def _fetch(self, url: str) -> Iterator[bytes]:
            try:
                yield from source.read(url)
            except Missing as error:
                raise exceptions.DownloadHTTPError(f"there is no {url}", 404) from error

    return Fetcher()


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn python-tuf's exceptions into one line that says what to do.

    Raises:
        DeliveryError: in place of them.
    """
    exceptions = library("tuf.api.exceptions")
    where = source.where
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        raise DeliveryError(
            f"{where}: {reason(error)} (this device's clock: {datetime.now(UTC):%Y-%m-%d %H:%M} "
            f"UTC); either somebody holds new releases back, or the publisher has to run "
            f"`acme publish --refresh`"
        ) from error
    except exceptions.UnsignedMetadataError as error:
        raise DeliveryError(
            f"{where} is not signed by the publisher's keys: {reason(error)}"
        ) from error
    except exceptions.BadVersionNumberError as error:
        raise DeliveryError(
            f"{where} is older than what this device has seen, or of different states: "
            f"{reason(error)}"
        ) from error
    except exceptions.LengthOrHashMismatchError as error:
        raise DeliveryError(
            f"{where}: a file is damaged or of another state: {reason(error)}"
        ) from error
    except exceptions.DownloadHTTPError as error:
        raise DeliveryError(f"{where} is no published site: {reason(error)}") from error
    except (exceptions.DownloadError, exceptions.RepositoryError) as error:
        raise DeliveryError(f"{where} cannot be trusted: {reason(error)}") from error
