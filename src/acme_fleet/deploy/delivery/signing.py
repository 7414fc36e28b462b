"""A publisher's folder: three Ed25519 keys, and the metadata that they have signed (TUF).

``root`` says which keys are valid, and is needed for new keys only: it belongs on a medium apart.
``publish`` signs what the releases are. ``timestamp`` says that they are still the newest; it may
lie on a server that renews that by itself, and cannot publish anything.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from acme_fleet.errors import DeliveryError, RunError
from acme_fleet.outside import read_regular, reading
from acme_fleet.runs.atomic import replacing
from acme_fleet_runtime.delivery.release import METADATA
from acme_fleet_runtime.delivery.trust import ROOT, fingerprint, library

Key = Literal["root", "publish", "timestamp"]
KEYS: tuple[Key, ...] = ("root", "publish", "timestamp")
Role = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: dict[Role, Key] = {
    "root": "root",
    "targets": "publish",
    "snapshot": "publish",
    "timestamp": "timestamp",
}
"""TUF's roles, in the order in which they are signed, and the key of each."""
DAYS: dict[Role, int] = {"root": 1825, "targets": 730, "snapshot": 730, "timestamp": 30}
"""Days until a signature runs out."""
_LARGEST = 2**25  # bytes of metadata


@dataclass(frozen=True)
class Publisher:
    """A publisher's folder.

    Attributes:
        folder: of keys and metadata; nobody else can read it.
        now: the time of signatures.
        days: validity of the timestamp.
    """

    folder: Path
    now: datetime
    days: int = DAYS["timestamp"]

    @property
    def exists(self) -> bool:
        """True if it has keys and all metadata; the timestamp is the last that is written."""
        return self._place("timestamp", 0).exists()

    def create(self) -> None:
        """Make the keys, and metadata without a release.

        Raises:
            RunError: if there are some already.
            DeliveryError: if python-tuf is missing.
        """
        if self.exists:
            raise RunError(f"{self.folder} has keys already; `acme keys rotate` replaces them")
        api = library("tuf.api.metadata")
        with replacing(self.folder / ".gitignore", private=True) as partial:
            partial.write_text("*\n", encoding="utf-8")  # keys are no files of a repository
        root = api.Root(version=1, consistent_snapshot=True)
        for key in KEYS:
            self._new_key(root, key)
        timestamp = api.Timestamp(version=1, snapshot_meta=api.MetaFile(1))
        for signed in (root, api.Targets(version=1), api.Snapshot(version=1), timestamp):
            self._sign(signed, root)

    def signed(self, role: Role) -> Any:
        """The newest metadata of a role, to change and :meth:`sign`.

        Raises:
            DeliveryError: if there are no keys yet, or a file is damaged.
        """
        if not self.exists:
            raise DeliveryError(
                f"{self.folder} has no keys of a publisher: `acme keys new` makes them"
            )
        return deepcopy(self._metadata(role).signed)

    def sign(self, signed: Any) -> None:
        """Write the next version of a role's metadata.

        Raises:
            DeliveryError: if the key is not here.
        """
        signed.version += 1
        root = self._metadata("root").signed
        if signed.type == "root":  # the keys of the one before sign it, too
            self._sign(signed, root, signed)
        else:
            self._sign(signed, root)

    def sign_timestamp(self) -> None:
        """Say anew which snapshot is the newest, and of which releases it is."""
        timestamp = self.signed("timestamp")
        timestamp.snapshot_meta.version = self.signed("snapshot").version
        self.sign(timestamp)

    def sign_targets(self, targets: Any) -> None:
        """Sign releases, and with them the snapshot and the timestamp."""
        self.sign(targets)
        self._sign_snapshot()
        self.sign_timestamp()

    def rotate(self, key: Key) -> None:
        """Replace a key; what it signed is signed anew. The old key's file stays, without a use.

        Raises:
            DeliveryError: if the root key, or another one that is needed, is not here.
        """
        root = self.signed("root")
        for role in _roles_of(key):
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
        self._new_key(root, key)
        self.sign(root)
        if key == "publish":
            self.sign_targets(self.signed("targets"))
        elif key == "timestamp":
            self.sign_timestamp()

    def renew(self) -> None:
        """Sign the timestamp again, and what else needs it, as far as the keys are here.

        That is what is past the half of its time, and what an interrupted command left unsigned.
        """
        if self.has_key("root") and self._is_stale("root"):
            self.sign(self.signed("root"))
        if self.has_key("publish"):
            if self._is_stale("targets"):
                self.sign(self.signed("targets"))
            listed = self.signed("snapshot").meta["targets.json"].version
            if self._is_stale("snapshot") or listed != self.signed("targets").version:
                self._sign_snapshot()
        self.sign_timestamp()

    def _sign_snapshot(self) -> None:
        snapshot = self.signed("snapshot")
        snapshot.meta["targets.json"].version = self.signed("targets").version
        self.sign(snapshot)

    def _is_stale(self, role: Role) -> bool:
        """True for metadata in the second half of their time, or of a key that is not valid."""
        metadata, root = self._metadata(role), self._metadata("root").signed
        if metadata.signed.expires - self.now < timedelta(days=DAYS[role]) / 2:
            return True
        try:
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except library("tuf.api.exceptions").UnsignedMetadataError:
            return True
        return False

    def has_key(self, key: Key) -> bool:
        """True if the private key is in the folder."""
        root = self._metadata("root").signed
        keyids = root.roles[_roles_of(key)[0]].keyids
        return all(self.key_file(key, keyid).exists() for keyid in keyids)

    def key_file(self, key: Key, keyid: str) -> Path:
        """The place of a private key."""
        return self.folder / f"{key}-{keyid[:12]}.pem"

    def key_files(self, key: Key) -> list[Path]:
        """The places of the valid private keys of a kind, whether or not they are here."""
        root = self._metadata("root").signed
        return [self.key_file(key, keyid) for keyid in root.roles[_roles_of(key)[0]].keyids]

    @property
    def fingerprint(self) -> str:
        """The name that devices know this publisher by: of the newest root metadata."""
        return fingerprint(self.content("root"))

    def roots(self) -> Iterator[tuple[int, bytes]]:
        """All versions of the root metadata."""
        for version in range(1, self._version("root") + 1):
            yield version, self._read(self._place("root", version))

    def content(self, role: Role) -> bytes:
        """The newest metadata of a role, as it was signed."""
        version = self._version(role)
        return self._read(self._place(role, version))

    def adopt(self, role: Role, content: bytes) -> bool:
        """Take metadata that another copy of this folder has signed, if it is newer and valid."""
        api = library("tuf.api.metadata")
        errors = library("tuf.api.exceptions").RepositoryError
        root = self._metadata("root").signed
        try:
            metadata = api.Metadata.from_bytes(content)
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            if role == "root":
                metadata.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (errors, ValueError):
            return False
        version = metadata.signed.version
        newer = version > self._metadata(role).signed.version
        if metadata.signed.type != role or not newer:
            return False
        self._write(role, version, content)
        return True

    # --- files --------------------------------------------------------------------------------

    def _sign(self, signed: Any, *roots: Any) -> None:
        """Write metadata, signed by the keys that each of these roots names."""
        role: Role = signed.type
        days = self.days if role == "timestamp" else DAYS[role]
        signed.expires = self.now.replace(microsecond=0) + timedelta(days=days)
        metadata = library("tuf.api.metadata").Metadata(signed)
        for root in roots:
            for signer in self._signers(root, ROLES[role]):
                metadata.sign(signer, append=True)
        for root in roots:
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        self._write(role, signed.version, metadata.to_bytes())

    def _new_key(self, root: Any, key: Key) -> None:
        signer = library("securesystemslib.signer").CryptoSigner.generate_ed25519()
        with replacing(self.key_file(key, signer.public_key.keyid), private=True) as partial:
            partial.write_bytes(signer.private_bytes)
        for role in _roles_of(key):
            root.add_key(signer.public_key, role)

    def _signers(self, root: Any, key: Key) -> Iterator[Any]:
        signer = library("securesystemslib.signer").CryptoSigner
        pem = library("cryptography.hazmat.primitives.serialization").load_pem_private_key
        for keyid in root.roles[_roles_of(key)[0]].keyids:
            path = self.key_file(key, keyid)
            if not path.exists():
                raise DeliveryError(
                    f"this needs the {key} key, and {path} is not there: put it back for this "
                    f"command"
                )
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise DeliveryError(f"{path} can be read by others: chmod 600 {path}")
            with reading(f"{path} is no private key", DeliveryError):
                found = signer(pem(read_regular(path, _LARGEST), None))
            if found.public_key.keyid != keyid:
                raise DeliveryError(f"{path} holds another key than its name says")
            yield found

    def _metadata(self, role: Role) -> Any:
        return self._parsed(self.content(role), role)

    def _parsed(self, content: bytes, role: Role) -> Any:
        with reading(f"{self.folder / METADATA}: {role} is damaged", DeliveryError):
            return library("tuf.api.metadata").Metadata.from_bytes(content)

    def _version(self, role: Role) -> int:
        """The newest version of the root; others are kept in one version, here 0."""
        if role != "root":
            return 0
        version = 1
        while self._place("root", version + 1).exists():
            version += 1
        return version

    def _place(self, role: Role, version: int) -> Path:
        name = f"{version}.{ROOT}" if role == "root" else f"{role}.json"
        return self.folder / METADATA / name

    def _read(self, path: Path) -> bytes:
        with reading(f"cannot read {path}", DeliveryError):
            return read_regular(path, _LARGEST)

    def _write(self, role: Role, version: int, content: bytes) -> None:
        with replacing(self._place(role, version), private=True) as partial:
            partial.write_bytes(content)


def _roles_of(key: Key) -> list[Role]:
    return [role for role, each in ROLES.items() if each == key]
