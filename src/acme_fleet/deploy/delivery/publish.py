"""Publishing artifacts: their files, a signed release for each device, and bundles."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from acme_fleet.deploy.delivery.signing import Key, Publisher, Role
from acme_fleet.errors import DeliveryError, FleetError, RunError
from acme_fleet.models.storage import WEIGHTS
from acme_fleet.outside import listed, one_line, reading, resolved
from acme_fleet.runs.atomic import replacing
from acme_fleet.runs.locks import LOCK, held
from acme_fleet_runtime.delivery.release import (
    FILES,
    FORMAT,
    METADATA,
    VERSION,
    Release,
    file_place,
    parse_release,
    target_of,
    target_place,
)
from acme_fleet_runtime.delivery.selftest import answers
from acme_fleet_runtime.delivery.trust import ROOT, library
from acme_fleet_runtime.manifest import (
    DEVICE_NAME,
    MANIFEST,
    File,
    Manifest,
    describe_file,
    is_artifact,
    read_manifest,
)
from acme_fleet_runtime.strict import parse_json

_CONTENT = {LOCK, METADATA, "targets", "files"}  # of a site


@dataclass(frozen=True)
class Published:
    """A device's release.

    Attributes:
        device: its name.
        number: of the release.
        size_bytes: of all files.
        new: false if the artifact is the one that was published before.
        forced: true if the artifact was written although its verification refused it.
    """

    device: str
    number: int
    size_bytes: int
    new: bool
    forced: bool


def artifacts_of(place: Path, devices: Sequence[str]) -> list[Path]:
    """An artifact's folder, or those in a folder of artifacts, or in a run's.

    Args:
        place: any of these.
        devices: names of the wanted ones; none: all.

    Raises:
        RunError: if there is none, or not the one that is named.
    """
    if is_artifact(place):
        found = [place]
    else:
        parents = (place, place / "artifacts")
        found = [f for p in parents if p.is_dir() for f in sorted(p.iterdir()) if is_artifact(f)]
    if not place.exists():
        raise RunError(f"{place}: no such folder")
    if not found:
        if (place / WEIGHTS).exists():
            raise RunError(
                f"{place} is a device's folder: `acme export {place} --out ARTIFACT` makes an "
                f"artifact, which can be published"
            )
        raise RunError(f"{place} has no artifacts: `acme export {place} --all` writes them")
    names = {read_manifest(folder).name: folder for folder in found}
    if missing := [name for name in devices if name not in names]:
        raise RunError(f"{place} has no artifact of {missing[0]}, but of {listed(list(names), 10)}")
    return [names[name] for name in devices] if devices else list(names.values())


def publish(
    artifacts: Sequence[Path],
    site: Path,
    publisher: Publisher,
    *,
    force: bool = False,
    other: bool = False,
) -> list[Published]:
    """Publish artifacts: what devices see changes in one step, when everything is written.

    Args:
        artifacts: their folders.
        site: the folder to publish to; other devices' releases in it stay.
        publisher: signs; without keys yet, they are made.
        force: make a new release of an artifact that is the published one.
        other: also over a release of another task or with other classes.

    Raises:
        ArtifactError: if an artifact is damaged, or does not run here.
        DeliveryError: if a key is not here, the site is another one, or a device would get a model
            of another task or with other classes.
        WriteError: if the system does not let it be written.
    """
    _check_apart(site, publisher.folder)
    with held(publisher.folder, private=True), _held_site(site):
        _check_site(site, publisher)
        if not publisher.exists:
            publisher.create()
        adopt(publisher, site)
        targets = publisher.signed("targets")
        for each in [] if other else artifacts:
            _check_alike(read_manifest(each), targets, site)
        done = [_published(each, targets, site, publisher, force=force) for each in artifacts]
        _check_complete(site, targets)
        if any(one.new for one in done):
            publisher.sign_targets(targets)
        else:
            publisher.renew()
        put(publisher, site)
    return done


def refresh(site: Path, publisher: Publisher) -> None:
    """Say anew that a site's releases are the newest; the timestamp's key is enough.

    Raises:
        DeliveryError: if the key is not here, or the site is another one.
        WriteError: if the system does not let it be written.
    """
    _on_site(site, publisher, Publisher.renew)


def rotate(site: Path, publisher: Publisher, key: Key) -> None:
    """Replace a key. Devices follow, because the root key signs it.

    Raises:
        DeliveryError: if a key that is needed is not here, or the site is another one.
        WriteError: if the system does not let it be written.
    """
    _on_site(site, publisher, lambda each: each.rotate(key))


def bundle(site: Path, device: str, path: Path) -> None:
    """Write a device's part of a site as one file, which `acme pull --from` takes.

    Raises:
        DeliveryError: if the site has no release of the device.
        WriteError: if the system does not let it be written.
    """
    metadata = [*(site / METADATA).glob(f"*.{ROOT}"), *_newest(site).values()]
    targets = _parsed(metadata[-1])
    place, release = _release(site, device, targets.targets.get(target_of(device)))
    places = [place, *(file_place(entry) for entry in release.files.values())]
    places += [f"{METADATA}/{path.name}" for path in metadata]
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for each in dict.fromkeys(places):
            archive.write(site / each, each)


def adopt(publisher: Publisher, site: Path) -> None:
    """Go on from a site's metadata where another copy of the publisher's folder signed it."""
    version = len(list(publisher.roots())) + 1
    while (path := site / METADATA / f"{version}.{ROOT}").exists():
        if not publisher.adopt("root", path.read_bytes()):
            raise DeliveryError(f"{path} is not signed by the root key: do not trust this site")
        version += 1
    if (site / METADATA / "timestamp.json").exists():
        for role, path in _newest(site).items():
            publisher.adopt(cast(Role, role), path.read_bytes())


def put(publisher: Publisher, site: Path) -> None:
    """Write the publisher's metadata into a site; the timestamp last, which makes it valid."""
    for version, content in publisher.roots():
        _write(site / METADATA / f"{version}.{ROOT}", content)
    for role in ("targets", "snapshot"):
        version = publisher.signed(role).version
        _write(site / METADATA / f"{version}.{role}.json", publisher.content(role))
    _write(site / METADATA / "timestamp.json", publisher.content("timestamp"))


# --- one artifact -------------------------------------------------------------------------------


def _published(
    folder: Path, targets: Any, site: Path, publisher: Publisher, *, force: bool
) -> Published:
    """Write an artifact's files and its release, and enter it into the targets."""
    manifest = read_manifest(folder)
    if not DEVICE_NAME.fullmatch(manifest.name):
        raise FleetError(
            f"{folder}: {one_line(manifest.name, 60)!r} is no name of a device: letters, digits, "
            f"'.', '_' or '-'; name the artifact's folder so at `acme export`"
        )
    expected = answers(folder)  # checks all files, and that it runs
    files = {**manifest.files, MANIFEST: describe_file(folder / MANIFEST)}
    size = manifest.size_bytes
    name = target_of(manifest.name)
    before = targets.targets.get(name)
    number = 0 if before is None else _number(before)
    same = before is not None and before.custom.get("manifest") == files[MANIFEST].sha256
    if same and not force and (site / _place(manifest.name, before)).exists():
        return Published(manifest.name, number, size, new=False, forced=_forced(manifest))
    for file, entry in files.items():
        _copy(folder / file, site / file_place(entry), entry)
    when = publisher.now.isoformat(timespec="seconds")
    release = Release(FORMAT, VERSION, manifest.name, number + 1, when, files, expected)
    content = release.written()
    parse_release(content, manifest.name)
    entry = library("tuf.api.metadata").TargetFile.from_data(name, content, ["sha256"])
    entry.unrecognized_fields["custom"] = {
        "number": release.number,
        "manifest": files[MANIFEST].sha256,
    }
    _write(site / _place(manifest.name, entry), content)
    targets.targets[name] = entry
    return Published(manifest.name, release.number, size, new=True, forced=_forced(manifest))


def _check_alike(manifest: Manifest, targets: Any, site: Path) -> None:
    """A device's next release must answer what its last one does: fleets may use the same names."""
    before = targets.targets.get(target_of(manifest.name))
    path = site / FILES / str(before.custom.get("manifest")) if before else None
    if path is None or not path.is_file():
        return
    with reading(f"cannot read {path}", DeliveryError):
        known = parse_json(path.read_bytes())
        same = known["task"] == manifest.task and {*known["labels"]} == {*manifest.labels}
    if not same:
        had, has = (
            f"{task} with {listed([one_line(label, 30) for label in labels], 4) or 'no classes'}"
            for task, labels in ((known["task"], known["labels"]), (manifest.task, manifest.labels))
        )
        raise DeliveryError(
            f"{manifest.name} has a release in {site} for {one_line(had, 200)}, and this one is "
            f"for {has}: another fleet's? Publish to a site of its own, or with --other"
        )


def _forced(manifest: Manifest) -> bool:
    return manifest.verification.forced


def _number(entry: Any) -> int:
    return int(entry.custom["number"])


def _place(device: str, entry: Any) -> str:
    return target_place(device, entry.hashes["sha256"])


def _copy(source: Path, path: Path, entry: File) -> None:
    """Copy a file into a site, unless it is there; the copy is what the manifest says."""
    if path.exists() and describe_file(path) == entry:
        return
    with replacing(path) as partial:
        shutil.copyfile(source, partial)
        if describe_file(partial) != entry:
            raise DeliveryError(f"{source} has changed meanwhile; publish again")


# --- a site -------------------------------------------------------------------------------------


def _on_site(site: Path, publisher: Publisher, change: Callable[[Publisher], None]) -> None:
    if not (site / METADATA).is_dir():
        raise DeliveryError(f"{site} is no published site")
    with held(publisher.folder, private=True), _held_site(site):
        _check_site(site, publisher)
        adopt(publisher, site)
        _check_complete(site, publisher.signed("targets"))
        change(publisher)
        put(publisher, site)


@contextmanager
def _held_site(site: Path) -> Iterator[None]:
    with reading(site, RunError):
        taken = site.exists() and {path.name for path in site.iterdir()} - _CONTENT
    if taken:
        raise RunError(f"{site} holds other things ({min(taken)}); publish to a folder of its own")
    with held(site):
        yield


def _check_apart(site: Path, keys: Path) -> None:
    if site.parts and site.parts[0].endswith(":") and site.parts[0] != site.anchor:
        raise FleetError(
            f"--to {site}: publish to a folder, and copy that to the server, timestamp.json last"
        )
    if resolved(keys).is_relative_to(resolved(site)):
        raise FleetError(
            f"the keys in {keys} would be published with {site}; name another folder with --keys"
        )


def _check_site(site: Path, publisher: Publisher) -> None:
    """A site must be of this publisher: its first root is the publisher's."""
    path = site / METADATA / f"1.{ROOT}"
    if not path.exists():
        return
    first = next(publisher.roots())[1] if publisher.exists else None
    if first != path.read_bytes():
        raise DeliveryError(
            f"{site} was published with other keys than those in {publisher.folder}; name their "
            f"folder with --keys"
        )


def _check_complete(site: Path, targets: Any) -> None:
    """Every release that will be signed must be in the site."""
    names = {name.partition("/")[0]: entry for name, entry in targets.targets.items()}
    missing = [name for name, entry in names.items() if not (site / _place(name, entry)).exists()]
    if missing:
        raise DeliveryError(
            f"{site} lacks releases that were published before ({listed(missing)}): publish "
            f"their artifacts with it, or restore that folder"
        )


def _release(site: Path, device: str, entry: Any) -> tuple[str, Release]:
    if entry is None:
        raise DeliveryError(f"{site} has no release of {one_line(device, 64)}")
    place = _place(device, entry)
    with reading(f"cannot read {site / place}", DeliveryError):
        content = (site / place).read_bytes()
    return place, parse_release(content, device)


def _newest(site: Path) -> dict[str, Path]:
    """The files of the metadata that a site's timestamp leads to, the timestamp first."""
    folder = site / METADATA
    found = {"timestamp": folder / "timestamp.json"}
    version = _parsed(found["timestamp"]).snapshot_meta.version
    found["snapshot"] = folder / f"{version}.snapshot.json"
    version = _parsed(found["snapshot"]).meta["targets.json"].version
    found["targets"] = folder / f"{version}.targets.json"
    return found


def _parsed(path: Path) -> Any:
    with reading(f"cannot read {path}", DeliveryError):
        return library("tuf.api.metadata").Metadata.from_bytes(path.read_bytes()).signed


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    with replacing(path) as partial:
        partial.write_bytes(content)
