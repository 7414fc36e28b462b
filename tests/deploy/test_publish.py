"""Publishing: what a site holds, keys that are safe, sites of others, copies of the keys."""

from __future__ import annotations

import shutil
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("tuf", reason="releases need python-tuf: pip install 'acme-fleet[delivery]'")

from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.deploy.delivery import publish as publishing
from acme_fleet.deploy.delivery import signing
from acme_fleet.deploy.delivery.publish import artifacts_of, publish, refresh, rotate
from acme_fleet.deploy.delivery.signing import Publisher
from acme_fleet.errors import AcmeError, DeliveryError, FleetError, RunError
from acme_fleet.runs.locks import held
from acme_fleet_runtime.manifest import read_manifest
from tiny_artifact import change_manifest
from tiny_site import DEVICE, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.publish()
    return made


def _key(site: Site, key: str) -> Path:
    (path,) = (site.root / "publisher").glob(f"{key}-*.pem")
    return path


def test_same_artifact_is_published_once(site: Site):
    before = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    (done,) = publish([site.artifact()], site.folder, site.publisher)
    assert (done.number, done.new) == (1, False)
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == ["timestamp.json"]
    (done,) = publish([site.artifact()], site.folder, site.publisher, force=True)
    assert (done.number, done.new) == (2, True)


def test_an_artifact_has_one_size(site: Site):
    folder = site.artifact()
    (done,) = publish([folder], site.folder, site.publisher)
    on_disk = sum(path.stat().st_size for path in folder.iterdir())
    assert done.size_bytes == read_manifest(folder).size_bytes == on_disk


def test_nothing_that_was_published_is_overwritten(site: Site):
    before = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    site.publish("float16")
    rotate(site.folder, site.publisher, "publish")
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == ["timestamp.json"]


def test_other_devices_stay(site: Site):
    publish([site.artifact(device="cam-2")], site.folder, site.publisher)
    assert sorted(site.publisher.signed("targets").targets) == [
        "cam-1/release.json",
        "cam-2/release.json",
    ]
    assert len(site.files()) == 3  # both have the same graph
    assert site.pull().state == "new"


def test_another_fleets_device_of_the_same_name_is_refused(site: Site):
    """Its devices would get a model that answers something else at their next pull."""
    folder = site.artifact("float16")
    labels = [f"other-{number}" for number in range(len(read_manifest(folder).labels))]
    change_manifest(folder, lambda it: {**it, "labels": labels, "trained_labels": labels})
    with pytest.raises(DeliveryError, match=r"another fleet's\? .* or with --other"):
        publish([folder], site.folder, site.publisher)
    assert site.publisher.signed("targets").targets["cam-1/release.json"].custom["number"] == 1
    (done,) = publish([folder], site.folder, site.publisher, other=True)
    assert (done.number, done.new) == (2, True)


def test_a_device_of_a_run_without_an_artifact_is_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    site.artifact()
    for name in (DEVICE, "cam-5"):
        (tmp_path / "devices" / name).mkdir(parents=True)
        (tmp_path / "devices" / name / "model.safetensors").touch()
    result = CliRunner().invoke(app, ["publish", ".", "--to", "site"])
    assert result.exit_code == 0, result.output
    assert "not published: cam-5 has no artifact; acme export . --device cam-5" in result.stderr


def test_keys_are_private_and_apart(site: Site, tmp_path: Path):
    folder = site.root / "publisher"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert (folder / ".gitignore").read_text() == "*\n"
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not list(site.folder.rglob("*.pem"))
    with pytest.raises(FleetError, match="would be published with"):
        publish([site.artifact()], site.folder, Publisher(site.folder / "keys", datetime.now(UTC)))
    _key(site, "publish").chmod(0o644)
    with pytest.raises(DeliveryError, match="can be read by others: chmod 600"):
        site.publish("float16")


def test_root_key_is_needed_for_new_keys_only(site: Site):
    root = _key(site, "root")
    kept = root.read_bytes()
    root.unlink()
    site.publish("float16")
    refresh(site.folder, site.publisher)
    with pytest.raises(DeliveryError, match=r"needs the root key, and .*root-\w+.pem is not there"):
        rotate(site.folder, site.publisher, "timestamp")
    root.write_bytes(kept)
    root.chmod(0o600)
    rotate(site.folder, site.publisher, "timestamp")
    assert site.pull().state == "new"


def test_timestamp_key_alone_refreshes_and_publishes_nothing(site: Site):
    """On a server, from a copy of the folder without the other keys; the publisher goes on."""
    server = Publisher(site.root / "server", datetime.now(UTC) + timedelta(days=40))
    shutil.copytree(site.root / "publisher", server.folder)
    for key in ("root", "publish"):
        next(server.folder.glob(f"{key}-*.pem")).unlink()
    site.publish("float16")
    for _ in range(3):
        refresh(site.folder, server)
    with pytest.raises(DeliveryError, match="needs the publish key"):
        publish([site.artifact("int4")], site.folder, server)
    site.publish("int8")
    assert site.pull().release.number == 3
    rotate(site.folder, site.publisher, "timestamp")
    with pytest.raises(DeliveryError, match="needs the timestamp key"):
        refresh(site.folder, server)
    assert site.pull().state == "same"


def test_two_copies_of_the_folder_take_turns(site: Site):
    other = Publisher(site.root / "laptop", datetime.now(UTC))
    shutil.copytree(site.root / "publisher", other.folder)
    site.publish("float16")
    publish([site.artifact("int8")], site.folder, other)
    site.publish("int4")
    assert site.pull().release.number == 4


def test_sites_of_others_and_folders_that_are_none(site: Site, tmp_path: Path):
    other = Publisher(tmp_path / "other", datetime.now(UTC))
    with pytest.raises(DeliveryError, match="was published with other keys than those in"):
        publish([site.artifact()], site.folder, other)
    assert not other.exists
    with pytest.raises(RunError, match="holds other things"):
        publish([site.artifact()], site.root / "artifacts", other)
    with pytest.raises(DeliveryError, match="is no published site"):
        refresh(tmp_path / "empty", site.publisher)
    with pytest.raises(DeliveryError, match="lacks releases that were published before"):
        publish([site.artifact(device="cam-2")], tmp_path / "second", site.publisher)
    with pytest.raises(FleetError, match="publish to a folder, and copy that to the server"):
        publish([site.artifact()], Path("https://example.org/site"), site.publisher)
    with pytest.raises(RunError, match="keys already"):
        site.publisher.create()


def test_metadata_of_unknown_signers_is_not_taken_over(site: Site, tmp_path: Path):
    """Whoever can write the site cannot have it signed."""
    other = Site(tmp_path / "other")
    other.publish("int4")
    other.publish("int8")
    for path in (other.folder / "metadata").glob("[!1]*.json"):
        shutil.copy(path, site.folder / "metadata")
    site.publish("float16")
    assert site.pull().release.number == 2
    rotate(other.folder, other.publisher, "root")
    shutil.copy(other.folder / "metadata" / "2.root.json", site.folder / "metadata")
    with pytest.raises(DeliveryError, match=r"2\.root\.json is not signed by the root key"):
        site.publish("int4")


def test_site_that_was_set_back_is_brought_up_to_date(site: Site):
    old = site.keep("old")
    site.publish("float16")
    shutil.rmtree(site.folder)
    old.rename(site.folder)
    with pytest.raises(DeliveryError, match="lacks releases"):
        refresh(site.folder, site.publisher)
    site.publish("float16")
    assert site.pull().release.number == 3


def test_signatures_are_renewed_before_they_run_out(site: Site):
    later = Publisher(site.root / "publisher", datetime.now(UTC) + timedelta(days=400))
    before = site.publisher.signed("targets").version
    refresh(site.folder, site.publisher)
    assert site.publisher.signed("targets").version == before
    refresh(site.folder, later)
    assert site.publisher.signed("targets").version == before + 1
    assert site.publisher.signed("root").version == 1
    assert site.publisher.signed("timestamp").expires > datetime.now(UTC) + timedelta(days=429)


def test_artifacts_that_are_damaged_or_missing_are_not_published(site: Site, tmp_path: Path):
    folder = site.artifact("float16")
    (folder / "model.onnx").write_bytes(b"?")
    with pytest.raises(AcmeError, match=r"model.onnx has 1 bytes"):
        publish([folder], site.folder, site.publisher)
    site.artifact("float16", device="cam-2")
    with pytest.raises(RunError, match="has no artifact of cam-3, but of cam-1, cam-2"):
        artifacts_of(site.root, ["cam-3"])
    assert [path.name for path in artifacts_of(site.root, [])] == ["cam-1", "cam-2"]
    with pytest.raises(RunError, match="nothing: no such folder"):
        artifacts_of(tmp_path / "nothing", [])
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="has no artifacts: `acme export"):
        artifacts_of(tmp_path / "run", [])
    (tmp_path / "run" / "model.safetensors").touch()
    with pytest.raises(RunError, match=r"is a device's folder: `acme export .* --out ARTIFACT`"):
        artifacts_of(tmp_path / "run", [])
    change_manifest(site.root / "artifacts" / "cam-2", lambda it: {**it, "name": "a/b"})
    with pytest.raises(FleetError, match="'a/b' is no name of a device"):
        publish([site.root / "artifacts" / "cam-2"], site.folder, site.publisher)


def test_two_publishers_at_once(site: Site):
    with held(site.folder), pytest.raises(RunError, match="in use by process"):
        site.publish("float16")


class _Stopped(BaseException):
    """As if the process were killed."""


_ROTATIONS = [pytest.param(each, marks=pytest.mark.slow) for each in ("root", "timestamp")]


@pytest.mark.parametrize("what", ["publish", "publish key", *_ROTATIONS])
def test_a_stop_at_any_moment_is_made_up_for(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Devices see the old release or the new one; the next command gets to the end."""
    key = what.removesuffix(" key")
    stops = 0
    for at in range(1, 50):
        site = Site(tmp_path / str(at))
        site.publish()
        site.pull()
        count, write = 0, signing.replacing

        def stopping(path: Path, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:  # noqa: B023
                raise _Stopped
            return write(path, **named)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(signing, "replacing", stopping)
            patched.setattr(publishing, "replacing", stopping)
            with suppress(_Stopped):
                if what == "publish":
                    site.publish("float16")
                else:
                    rotate(site.folder, site.publisher, cast(Any, key))
        if count < at:
            break
        stops += 1
        if at % 2:
            site.publish("float16")
        else:
            refresh(site.folder, site.publisher)
            site.pull()
            site.publish("float16")
        site.pull()
        assert site.running() == "float16"
    assert count < at
    assert stops >= 3


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Site(tmp_path).artifact()

    def told(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    first = told("publish", ".", "--to", "site", "--bundle", "bundles")
    assert "move it to a medium apart" in first
    assert "cam-1: release 1, " in first
    command = first.splitlines()[-1].partition("acme-runtime ")[2]
    command = command.replace("URL", "bundles/cam-1.zip").replace("FOLDER", "device")
    assert told(*command.split()) == "release 1 of cam-1 is installed: device/current\n"
    again = told("publish", ".", "--to", "site")
    assert "published before" in again
    assert "made keys" not in again
    Site(tmp_path).artifact("float16")
    told("publish", ".", "--to", "site", "--device", DEVICE)
    assert "is installed" in told("pull", "--from", "site", "--device", DEVICE, "--to", "device")
    assert "is installed again, in place of 2-" in told("rollback", "device")
    refreshed = told("publish", "--to", "site", "--refresh", "--days", "60")
    assert "valid until" in refreshed
    assert refreshed.endswith("publish --to site --refresh --days 60\n")
    assert "before then: acme publish --to site --refresh\n" in again
    shown = told("keys", "show")
    assert shown.startswith("fingerprint ")
    assert shown.count("(here)") == 3
    assert "without a use: publisher/root-" in told("keys", "rotate", "root", "--to", "site")
    assert told("keys", "show") != shown
    assert "made keys in other" in told("keys", "new", "--keys", "other")
    for wrong in (["publish", "--to", "site"], ["publish", ".", "--to", "site", "--refresh"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
