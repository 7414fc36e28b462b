"""Bundles and servers are not trusted: names that lead out, bombs, ranges that are none."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="releases need python-tuf: pip install 'acme-fleet[delivery]'")

from acme_fleet.deploy.delivery.publish import bundle, publish
from acme_fleet_runtime.delivery.download import Downloads
from acme_fleet_runtime.delivery.sources import Missing, open_source
from acme_fleet_runtime.errors import DeliveryError
from acme_fleet_runtime.manifest import File
from tiny_site import DEVICE, Site, serving


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("site"))
    made.publish()
    return made


@pytest.fixture
def packed(site: Site, tmp_path: Path) -> Path:
    bundle(site.folder, DEVICE, tmp_path / f"{DEVICE}.zip")
    return tmp_path / f"{DEVICE}.zip"


def _changed(packed: Path, change: dict[str, bytes]) -> None:
    """Write a bundle again, with other content of some entries, or with more of them."""
    with zipfile.ZipFile(packed) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**entries, **change}.items():
            archive.writestr(name, content)


def test_bundle_is_enough_and_is_checked(site: Site, packed: Path):
    assert site.pull("a", where=str(packed)).state == "new"
    assert site.running("a") == "float32"
    assert site.pull("b", where=packed.as_uri()).state == "new"
    graph = site.files()[0]
    _changed(packed, {f"files/{graph.name}": graph.read_bytes()[:-1] + b"?"})
    with pytest.raises(DeliveryError, match="is damaged: its SHA-256 is not the signed one"):
        site.pull("c", where=str(packed))
    with pytest.raises(DeliveryError, match="is no bundle: File is not a zip file"):
        site.pull("c", where=str(graph))


def test_bundle_of_another_device_and_a_folder_of_bundles(site: Site, tmp_path: Path):
    publish([site.artifact(device="cam-2")], site.folder, site.publisher)
    bundle(site.folder, "cam-2", tmp_path / "cam-2.zip")
    with pytest.raises(DeliveryError, match=r"cam-2.zip is a bundle of cam-2, not of cam-1"):
        site.pull("d", where=str(tmp_path / "cam-2.zip"))
    with pytest.raises(DeliveryError, match=r"is a folder of bundles; name the zip: .*cam-2.zip"):
        site.pull("d", where=str(tmp_path))


def test_bundle_of_a_device_without_release(site: Site, tmp_path: Path):
    with pytest.raises(DeliveryError, match="has no release of cam-9"):
        bundle(site.folder, "cam-9", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "files/../../evil", "a\\..\\evil"])
def test_names_that_lead_out_are_refused(name: str, site: Site, packed: Path):
    _changed(packed, {name: b"evil"})
    with pytest.raises(DeliveryError, match="leads out of the bundle"):
        site.pull("d", where=str(packed))
    assert not list(site.root.parent.rglob("evil"))


def test_links_are_refused(site: Site, packed: Path):
    link = zipfile.ZipInfo("files/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DeliveryError, match="leads out of the bundle"):
        site.pull("e", where=str(packed))


def test_bombs_are_not_unpacked(site: Site, packed: Path):
    """5 MB in a few kB, in place of a file and in place of metadata."""
    graph, bomb = site.files()[0].name, bytes(5_000_000)
    _changed(packed, {f"files/{graph}": bomb})
    with pytest.raises(DeliveryError, match="has more than the signed"):
        site.pull("f", where=str(packed))
    written = [path.stat().st_size for path in (site.root / "f").rglob("*") if path.is_file()]
    assert sum(written) < 100_000
    bundle(site.folder, DEVICE, packed)
    _changed(packed, {"metadata/timestamp.json": bomb})
    with pytest.raises(DeliveryError, match="exceeding the maximum"):
        site.pull("g", where=str(packed))


def test_damaged_bundle(site: Site, packed: Path):
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    with pytest.raises(DeliveryError):
        site.pull("h", where=str(packed))


@pytest.mark.parametrize("kind", ["folder", "bundle", "server"])
def test_reading_from_the_middle(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a b").write_bytes(b"0123456789")
    with zipfile.ZipFile(tmp_path / "it.zip", "w") as archive:
        archive.write(tmp_path / "files" / "a b", "files/a b")
    with serving(tmp_path) as (url, server):
        where = {"folder": str(tmp_path), "bundle": str(tmp_path / "it.zip"), "server": url}[kind]
        source = open_source(where)
        for server.ranges in (True, False):
            assert b"".join(source.read("files/a b")) == b"0123456789"
            assert b"".join(source.read("files/a b", 4)) == b"456789"
            with pytest.raises(Missing):
                list(source.read("files/b"))


def test_urls_that_are_no_folder():
    for url in ("https://a/b?c=d", "https:///b", "http://a/b#c"):
        with pytest.raises(DeliveryError, match="a URL of a folder is needed"):
            open_source(url)


def test_copy_of_this_machine_that_is_damaged_is_downloaded(site: Site, tmp_path: Path):
    graph = site.files()[0]
    (tmp_path / "own").write_bytes(b"?" * graph.stat().st_size)
    (tmp_path / "partial").mkdir()
    downloads = Downloads(open_source(str(site.folder)), tmp_path / "partial")
    downloads.reuse({graph.name: tmp_path / "own"})
    downloads.fetch(File(graph.stat().st_size, graph.name), "the graph")
    downloads.place(graph.name, [tmp_path / "a", tmp_path / "b"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == graph.read_bytes()
    with pytest.raises(DeliveryError, match=r"has no another \(files/0000"):
        downloads.fetch(File(3, "0" * 64), "another")
