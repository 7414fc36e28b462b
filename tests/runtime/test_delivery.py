"""Pulling: TUF's attacks, damage, interruption, full disks; the device runs what it ran before."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="releases need python-tuf: pip install 'acme-fleet[delivery]'")

from acme_fleet.deploy.delivery import publish as publishing
from acme_fleet.deploy.delivery.publish import publish, rotate
from acme_fleet.deploy.delivery.signing import Key
from acme_fleet_runtime import runner
from acme_fleet_runtime.cli import main
from acme_fleet_runtime.delivery import device as device_module
from acme_fleet_runtime.delivery.device import pull, rollback
from acme_fleet_runtime.delivery.release import parse_release
from acme_fleet_runtime.errors import AcmeError, ArtifactError, DeliveryError, FleetError
from acme_fleet_runtime.locks import acquire, release
from tiny_site import DEVICE, Site, serving


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with one release, which one device runs."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Site(tmp_path)
    made.publish()
    assert made.pull().state == "new"
    return made


def _refused(site: Site, match: str, kind: type[AcmeError] = DeliveryError) -> None:
    """A pull fails with this message, and the device runs its first release."""
    with pytest.raises(kind, match=match):
        site.pull()
    assert site.running() == "float32"
    assert _numbers(site) == [1]


def _numbers(site: Site) -> list[int]:
    releases = (site.root / "device" / "releases").iterdir()
    return sorted(int(path.name.partition("-")[0]) for path in releases)


def _replace(site: Site, by: Path) -> None:
    shutil.rmtree(site.folder)
    shutil.copytree(by, site.folder)


# --- the usual way ------------------------------------------------------------------------------


def test_new_same_new_rolled_back_and_again(site: Site):
    assert site.pull().state == "same"
    site.publish("float16")
    assert site.pull().state == "new"
    assert (site.running(), _numbers(site)) == ("float16", [1, 2])
    assert rollback(site.root / "device").release.number == 1
    assert site.running() == "float32"
    assert site.pull().state == "refused"  # until there is a newer one
    assert site.running() == "float32"
    with pytest.raises(DeliveryError, match="has no release before 1-"):
        rollback(site.root / "device")
    site.publish("int8")
    assert site.pull().state == "new"
    assert (site.running(), _numbers(site)) == ("int8", [1, 3])
    rollback(site.root / "device")
    assert site.pull(again=True).state == "new"
    assert site.running() == "int8"


def test_command_line(site: Site, capsys: pytest.CaptureFixture[str]):
    site.publish("float16")
    to = str(site.root / "device")
    assert main(["pull", "--from", str(site.folder), "--device", DEVICE, "--to", to]) == 0
    assert main(["rollback", to]) == 0
    assert main(["rollback", to]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        f"release 2 of {DEVICE} is installed: {to}/current",
        told.out.splitlines()[1],
    ]
    assert told.out.splitlines()[1].startswith(
        f"release 1 of {DEVICE} is installed again, in place"
    )
    assert "has no release before 1-" in told.err


def test_only_what_is_new_is_downloaded(site: Site):
    with serving(site.folder) as (url, server):
        site.publish("float16")
        assert site.pull(where=url).state == "new"
        files = [path for path, _ in server.asked if path.startswith("/files/")]
        assert len(files) == 1  # the manifest; the graph is that of release 1


def test_first_pull_must_name_the_publisher(site: Site):
    where = str(site.folder)
    with pytest.raises(DeliveryError, match="follows no publisher yet: give --trust"):
        pull(where, DEVICE, site.root / "b", again=False)
    with pytest.raises(DeliveryError, match="is not of the publisher"):
        pull(where, DEVICE, site.root / "b", trust="0" * 64, again=False)
    with pytest.raises(DeliveryError, match="is no published site: there is no"):
        pull(str(site.root), DEVICE, site.root / "b", trust="0" * 64, again=False)
    with pytest.raises(DeliveryError, match="neither 64 hexadecimal digits nor a file"):
        pull(where, DEVICE, site.root / "b", trust="nonsense", again=False)
    root = site.folder / "metadata" / "1.root.json"
    assert pull(where, DEVICE, site.root / "b", trust=str(root), again=False).state == "new"
    with pytest.raises(DeliveryError, match="follows another publisher"):
        pull(where, DEVICE, site.root / "b", trust="0" * 64, again=False)
    assert pull(where, DEVICE, site.root / "b", trust=str(root), again=False).state == "same"


def test_a_new_key_may_be_named_where_the_old_one_is_followed(site: Site, tmp_path: Path):
    """It is signed by the old one; another publisher's is not, and is told as such."""
    rotate(site.folder, site.publisher, "root")
    root = site.folder / "metadata" / "2.root.json"
    site.publish("float16")
    device = site.root / "device"
    assert pull(str(site.folder), DEVICE, device, trust=str(root), again=False).state == "new"
    other = Site(tmp_path / "other")
    other.publish()
    theirs = other.publisher.fingerprint
    with pytest.raises(DeliveryError, match=f"{theirs}: .* another publisher, .* has not signed"):
        pull(str(other.folder), DEVICE, device, trust=theirs, again=False)
    assert site.running() == "float16"


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"device": "cam-2"}, DeliveryError, "has no release for cam-2"),
        ({"device": "../cam-1"}, DeliveryError, "is no name of a device"),
        ({"where": "nowhere"}, DeliveryError, "--from nowhere: no such file or folder"),
        ({"where": "ftp://a/b"}, DeliveryError, "a URL begins with"),
        ({"to": "artifacts"}, DeliveryError, "is no device's folder and is not empty"),
    ],
)
def test_arguments_that_cannot_be_meant(
    change: dict[str, str], kind: type[AcmeError], match: str, site: Site
):
    asked = {"where": str(site.folder), "device": DEVICE, "to": "device", **change}
    with pytest.raises(kind, match=match):
        pull(asked["where"], asked["device"], site.root / asked["to"], again=False)
    assert site.running() == "float32"


def test_folder_is_of_one_device(site: Site):
    publish([site.artifact("int4", "cam-2")], site.folder, site.publisher)
    with pytest.raises(FleetError, match="is the folder of cam-1, not of cam-2"):
        pull(str(site.folder), "cam-2", site.root / "device", again=False)
    assert site.running() == "float32"


# --- attacks on the metadata --------------------------------------------------------------------


def test_older_site_is_refused(site: Site):
    """Rollback: everything in it is signed, and was valid."""
    old = site.keep("old")
    site.publish("float16")
    site.pull()
    _replace(site, old)
    with pytest.raises(DeliveryError, match="older than what this device has seen"):
        site.pull()
    assert site.running() == "float16"


def test_metadata_that_ran_out_is_refused(site: Site):
    """Freeze: somebody holds back what is newer, or the publisher sleeps."""
    site.publish("float16", site.earlier(days=31))
    _refused(site, r"timestamp.json is expired \(this device's clock: 20.*publish --refresh")
    publishing.refresh(site.folder, site.publisher)
    assert site.pull().state == "new"


def test_parts_of_two_states_are_refused(site: Site):
    """Mix and match: each part is signed, and was valid; together they were never published."""
    metadata = site.folder / "metadata"
    old = {role: (metadata / f"2.{role}.json").read_bytes() for role in ("snapshot", "targets")}
    site.publish("float16")
    for role, content in old.items():  # in the order in which a device asks for them
        new = (metadata / f"3.{role}.json").read_bytes()
        (metadata / f"3.{role}.json").write_bytes(content)
        _refused(site, "of different states")
        (metadata / f"3.{role}.json").write_bytes(new)
    assert site.pull().state == "new"


@pytest.mark.parametrize("name", ["timestamp.json", "3.snapshot.json", "3.targets.json"])
def test_changed_metadata_is_refused(name: str, site: Site):
    site.publish("float16")
    path = site.folder / "metadata" / name
    whole = path.read_text()
    document = json.loads(whole)
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(document))
    _refused(site, "is not signed by the publisher's keys")
    path.write_text(whole[: len(whole) // 2])
    _refused(site, "cannot be trusted")
    path.unlink()
    _refused(site, "is no published site: there is no")


def test_another_publishers_site_is_refused(site: Site, tmp_path: Path):
    other = Site(tmp_path / "other")
    for precision in ("int4", "int8", "float16"):
        other.publish(precision)
    _replace(site, other.folder)
    _refused(site, "is not signed by the publisher's keys")


def test_metadata_without_end_is_refused(site: Site):
    site.publish("float16")
    with (site.folder / "metadata" / "timestamp.json").open("ab") as file:
        file.truncate(10**6)
    _refused(site, "cannot be trusted: Downloaded .* exceeding the maximum")


@pytest.mark.parametrize("key", ["root", "publish", "timestamp"])
def test_devices_follow_a_new_key_and_refuse_the_old_one(key: Key, site: Site):
    """Rotation: a thief who has the old keys, and the site, can install nothing."""
    shutil.copytree(site.root / "publisher", site.root / "stolen")
    stolen_site = site.keep("stolen-site")
    rotate(site.folder, site.publisher, key)
    site.publish("float16")
    assert site.pull().state == "new"
    thief = replace(site.publisher, folder=site.root / "stolen")
    if key == "root":
        rotate(stolen_site, thief, "publish")  # the other keys are good, without it
    for precision in ("int4", "int8", "int4", "int8"):  # versions beyond the publisher's
        publish([site.artifact(precision)], stolen_site, thief)
    _replace(site, stolen_site)
    with pytest.raises(DeliveryError, match=r"not signed|older than what"):
        site.pull()
    assert site.running() == "float16"


def test_a_root_of_unknown_keys_is_refused(site: Site, tmp_path: Path):
    other = Site(tmp_path / "other")
    other.publish()
    rotate(other.folder, other.publisher, "root")
    shutil.copy(other.folder / "metadata" / "2.root.json", site.folder / "metadata")
    _refused(site, "is not signed by the publisher's keys")


def test_a_stolen_timestamp_key_ends_with_its_rotation(site: Site):
    """Fast forward: a version so high that no honest one follows, until the key is replaced."""
    thief = site.publisher
    timestamp = thief.signed("timestamp")
    timestamp.version = 10**9
    saved = thief.content("timestamp")
    thief.sign(timestamp)
    (site.folder / "metadata" / "timestamp.json").write_bytes(thief.content("timestamp"))
    site.pull()
    (thief.folder / "metadata" / "timestamp.json").write_bytes(saved)
    (site.folder / "metadata" / "timestamp.json").write_bytes(saved)
    with pytest.raises(DeliveryError, match="older than what this device has seen"):
        site.pull()
    rotate(site.folder, site.publisher, "timestamp")
    site.publish("float16")
    assert site.pull().state == "new"


def test_a_release_of_another_device_is_refused(site: Site):
    (path,) = (site.folder / "targets" / DEVICE).iterdir()
    with pytest.raises(DeliveryError, match="the release of cam-2 is for cam-1"):
        parse_release(path.read_bytes(), "cam-2")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "it is of version 2, this program reads 1: pip install -U"),
        ({"format": "other"}, "it is no release of acme-fleet"),
        ({"extra": 1}, "extra: unknown key"),
        ({"expected": []}, "there is no sample"),
        ({"files": {}}, r"manifest.json should be there"),
    ],
)
def test_release_that_cannot_be_read(change: dict[str, Any], match: str, site: Site):
    (path,) = (site.folder / "targets" / DEVICE).iterdir()
    document = {**json.loads(path.read_text()), **change}
    with pytest.raises(DeliveryError, match=match):
        parse_release(json.dumps(document).encode(), DEVICE)


# --- damage and interruption --------------------------------------------------------------------


def _publish_other_graph(site: Site) -> None:
    """A second release with all files of its own: those of three channels."""
    publish([site.artifact("float16", channels=3)], site.folder, site.publisher)


def test_changed_bytes_are_refused(site: Site):
    before = set(site.files())
    _publish_other_graph(site)
    for path in set(site.files()) - before:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        _refused(site, "is damaged: its SHA-256 is not the signed one")
        path.write_bytes(content + b"more")
        _refused(site, "has more than the signed")
        path.write_bytes(content)
    assert site.pull().state == "new"


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_where_it_was_cut(ranges: bool, site: Site):
    _publish_other_graph(site)
    size = 900  # of the graph and of the manifest: they are larger
    with serving(site.folder) as (url, server):
        server.ranges, server.stop_after = ranges, size
        if ranges:  # the second and third try go on by themselves
            assert site.pull(where=url).state == "new"
        else:
            with pytest.raises(DeliveryError, match=rf"ended after {size} of [\d,]+ bytes; the ne"):
                site.pull(where=url)
            assert site.running() == "float32"
            server.stop_after = None
            assert site.pull(where=url).state == "new"
        assert f"bytes={size}-" in [wanted for _, wanted in server.asked]
    assert site.running() == "float16"


def test_server_that_is_gone_or_fails(site: Site):
    published = pytest.raises(DeliveryError, match="is no published site")
    with serving(site.folder) as (url, _), published:
        site.pull(where=f"{url}/elsewhere")
    with pytest.raises(DeliveryError, match="connection refused"):
        site.pull(where=url)
    assert site.running() == "float32"


def test_two_pulls_at_once(site: Site):
    site.publish("float16")
    path = site.root / "device" / ".acme-lock"
    lock = acquire(path, DeliveryError)
    _refused(site, f"is in use by process {os.getpid()}; wait until it ends")
    release(path, lock)
    assert site.pull().state == "new"


def test_full_disk_is_told_before_anything_comes(site: Site, monkeypatch: pytest.MonkeyPatch):
    _publish_other_graph(site)
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage(500_000))
        _refused(site, r"the disk is full: the release needs 1,[\d,]+ bytes in .*500,000 are free")
    assert site.pull().state == "new"


def test_disk_that_becomes_full_in_between(site: Site, monkeypatch: pytest.MonkeyPatch):
    _publish_other_graph(site)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        _refused(site, "cannot write .*: the file size limit is reached")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        patched.setattr(os, "fsync", full)
        _refused(site, "cannot write .*: the disk is full")
    assert site.pull().state == "new"


class _Stopped(BaseException):
    """As if the process were killed."""


def _stopping(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], bool]:
    """Stop at the n-th change of a name or wait for the disk; tells if that has happened."""
    count = 0

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise _Stopped
            return call(*arguments, **named)

        return run

    for owner, name in (
        *((Path, name) for name in ("replace", "rename", "symlink_to", "unlink", "mkdir")),
        (os, "fsync"),
        (device_module, "check_answers"),
    ):
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    return lambda: count >= at


@pytest.mark.parametrize("what", ["pull", "rollback"])
def test_a_stop_at_any_moment_leaves_a_release_that_runs(
    what: str, site: Site, monkeypatch: pytest.MonkeyPatch
):
    """Then the same command again, or the next pull, gets to the end."""
    _publish_other_graph(site)
    if what == "rollback":
        site.pull()
    start = site.root / "start"
    shutil.copytree(site.root / "device", start, symlinks=True)
    old, new = ("float32", "float16") if what == "pull" else ("float16", "float32")
    stops = 0
    for at in range(1, 200):
        shutil.rmtree(site.root / "device")
        shutil.copytree(start, site.root / "device", symlinks=True)
        with monkeypatch.context() as patched:
            stopped = _stopping(patched, at)
            try:
                site.pull() if what == "pull" else rollback(site.root / "device")
            except _Stopped:
                stops += 1
        assert site.running() in (old, new)
        if what == "pull":
            site.pull()
            assert site.running() == new
        elif site.running() == old:
            rollback(site.root / "device")
            assert site.running() == new
        if not stopped():
            break
    assert stops > (8 if what == "pull" else 4)
    assert not stopped()


def test_runtime_that_is_too_old_downloads_no_graph(site: Site, monkeypatch: pytest.MonkeyPatch):
    import onnxruntime

    _publish_other_graph(site)
    with serving(site.folder) as (url, server), monkeypatch.context() as patched:
        patched.setattr(onnxruntime, "__version__", "1.16.3")
        with pytest.raises(ArtifactError, match=r"needs onnxruntime 1.17 or newer, 1.16.3 is inst"):
            site.pull(where=url)
        assert len([path for path, _ in server.asked if path.startswith("/files/")]) == 1
    assert site.running() == "float32"
    assert site.pull().state == "new"


@pytest.mark.parametrize(("error", "passes"), [(0.5e-3, True), (2e-3, False)])
def test_self_test_compares_with_the_publishers_answers(
    error: float, passes: bool, site: Site, monkeypatch: pytest.MonkeyPatch
):
    """As of a processor that computes differently; the tolerance is 0.001 of the spread."""
    true = runner.Runner.logits

    def elsewhere(self: runner.Runner, samples: Any) -> list[list[float]]:
        rows = true(self, samples)
        return [
            [x + error * (max(row) - min(row)) * (i == 0) for i, x in enumerate(row)]
            for row in rows
        ]

    with monkeypatch.context() as patched:
        patched.setattr(runner.Runner, "logits", elsewhere)
        site.publish("float16")
    if passes:
        assert site.pull().state == "new"
    else:
        _refused(site, r"the self-test failed: .* differ from the publisher's by 0.00\d+ of")


def test_damaged_current_is_replaced(site: Site):
    """The publisher's newest is installed again, beside the damaged one."""
    graph = site.root / "device" / "current" / "model.onnx"
    graph.write_bytes(b"x" * graph.stat().st_size)
    assert site.pull().state == "new"
    assert site.running() == "float32"
    assert site.pull().state == "same"
    assert _numbers(site) == [1]


@pytest.mark.parametrize("damage", ["graph", "no graph", "manifest"])
def test_damaged_current_is_replaced_after_a_rollback(damage: str, site: Site):
    """By itself, and not by the newest, which was rolled back here."""
    site.publish("float16")
    site.pull()
    rollback(site.root / "device")
    current = site.root / "device" / "current"
    path = current / ("manifest.json" if damage == "manifest" else "model.onnx")
    if damage == "no graph":
        path.unlink()
    else:
        path.write_bytes(b"x" * path.stat().st_size)
    pulled = site.pull()
    assert pulled.state == "refused"
    assert "release 1 was damaged and is installed anew: " in pulled.told
    assert "release 2 of cam-1 is the newest, and was rolled back here" in pulled.told
    assert (site.running(), _numbers(site)) == ("float32", [1])
    assert site.pull().healed is None


@pytest.mark.parametrize("damage", ["release", "folder", "site"])
def test_damaged_current_that_cannot_be_replaced(damage: str, site: Site):
    _publish_other_graph(site)
    site.pull()
    rollback(site.root / "device")
    current = site.root / "device" / "current"
    if damage == "release":
        (current / "release.json").write_bytes(b"?")
    elif damage == "folder":
        shutil.rmtree(current.resolve())
    else:
        (current / "model.onnx").unlink()
        for path in site.files():
            path.unlink()
    told = (
        r"current \(1-\w+\) is damaged and cannot be installed anew: .*; --again installs release 2"
    )
    with pytest.raises(DeliveryError, match=told):
        site.pull()
    if damage != "site":
        assert site.pull(again=True).state == "new"
        assert site.running() == "float16"


def test_damaged_previous_is_not_gone_back_to(site: Site):
    site.publish("float16")
    site.pull()
    graph = site.root / "device" / "previous" / "model.onnx"
    graph.write_bytes(b"x" * graph.stat().st_size)
    with pytest.raises(ArtifactError, match="is damaged"):
        rollback(site.root / "device")
    assert site.running() == "float16"
    with pytest.raises(DeliveryError, match="nothing was pulled into it"):
        rollback(site.root / "artifacts")


def test_a_runner_stays_with_one_release(site: Site):
    """Files are read one after the other; the link may be switched in between."""
    current = site.root / "device" / "current"
    opened = runner.Runner.open(current, threads=1)
    assert opened.folder == current.resolve() != current


def test_damaged_trust_is_named(site: Site):
    metadata = site.root / "device" / ".acme" / "metadata"
    root = (metadata / "root.json").read_bytes()
    for damaged in (b"", root[:-20], root.replace(b"ed25519", b"ed25518")):
        (metadata / "root_history" / "1.root.json").write_bytes(damaged)
        _refused(
            site, r"this device trusts is damaged .*: remove .*metadata and give --trust again"
        )
    (metadata / "root_history" / "1.root.json").write_bytes(root)
    (metadata / "timestamp.json").write_bytes(b"?")
    assert site.pull().state == "same"


@pytest.mark.parametrize("seed", range(12))
def test_any_bit_of_a_site_may_change(seed: int, site: Site, tmp_path: Path):
    """The device runs what it ran, or the true new release; never a traceback."""
    _publish_other_graph(site)
    draw = random.Random(seed)
    files = sorted(path for path in site.folder.rglob("*") if path.is_file())
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 30])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with suppress(DeliveryError, ArtifactError):
        site.pull()
    assert site.running() in ("float32", "float16")


def test_text_artifacts_are_tried_too(tmp_path: Path):
    from tiny_artifact import write_artifact

    made = Site(tmp_path)
    write_artifact(tmp_path / "texts", "texts", name=DEVICE)
    publish([tmp_path / "texts"], made.folder, made.publisher)
    assert made.pull().state == "new"
    assert made.running() == "float32"
