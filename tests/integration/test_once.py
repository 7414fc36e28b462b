"""Nothing is decoded, loaded, built or validated twice, and no host opens another's files."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from acme_fleet import pipeline
from acme_fleet.config.fleet import Fleet
from acme_fleet.data import datasets
from acme_fleet.data.datasets import load_source
from acme_fleet.data.image import ImagePreprocessing, ImageSize, ShortestEdge
from acme_fleet.data.partition import HostData, World, distribute
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.data.sources.files import read_digits
from acme_fleet.device import client, state
from acme_fleet.device.memory import FeatureMemory
from acme_fleet.distillation import reference
from acme_fleet.edge import assigned
from acme_fleet.edge import server as edge_server
from acme_fleet.errors import FleetError, ProtocolError
from acme_fleet.inspection.plan import examine
from acme_fleet.links.base import Link
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.messages.base import Message
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.shipped import sent_preprocessing
from acme_fleet.network.hosts.site import Site
from acme_fleet.pipeline import customize
from acme_fleet.roles import device_role, edge_role
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.tasks.classification import CLASSIFICATION
from conftest import models_of, without_devices
from tiny_fleet import SHORT

_FILES = 400
_SMALL = SHORT | {"personalization.rounds": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as image files in class folders."""
    root, raw = tmp_path_factory.mktemp("photos"), read_digits()
    for number in range(_FILES):
        folder = root / str(raw.labels[number])
        folder.mkdir(exist_ok=True)
        Image.fromarray(raw.items[number]).save(folder / f"{number:03}.png")
    return root


@pytest.fixture
def fleet(photos: Path, tiny: Callable[..., Fleet]) -> Fleet:
    partition = {"scheme": "pathological", "classes_per_device": 5}
    data = {"source": "images", "train": str(photos), "partition": partition}
    return tiny(**{"data": data, **_SMALL})


class Counts(Counter[str]):
    """Calls by name, and whose they are: the host's, or ``""`` in one process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._patch, self.owner = patch, ""

    def watch(self, place: Any, name: str, called: str, size: Callable[[Any], int]) -> None:
        """Count what ``place.name`` gives, ``size`` of each result."""
        work = getattr(place, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            result = work(*arguments, **options)
            self[f"{self.owner}{called}"] += size(result)
            return result

        self._patch.setattr(place, name, counted)

    @contextmanager
    def of(self, owner: str) -> Iterator[None]:
        before, self.owner = self.owner, f"{owner}: "
        yield
        self.owner = before


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found = Counts(monkeypatch)
    one = lambda _: 1  # noqa: E731
    found.watch(datasets, "open_image", "decoded", one)
    found.watch(datasets, "image_form", "headers of images", one)
    found.watch(reference, "new_vit", "references", one)
    found.watch(reference, "load_backbone", "references", one)
    found.watch(state, "backbone_from", "backbones of devices", one)
    found.watch(assigned, "backbone_from", "backbones of edges", one)
    found.watch(client, "coarse_header", "headers received", one)
    found.watch(state, "feature_samples", "rows through the backbone", len)
    found.watch(assigned.Contest, "start", "tasks of edges", one)
    read = state.read_tensors

    def counted(path: Path) -> Any:
        found["features read"] += path.name.startswith("features")
        return read(path)

    monkeypatch.setattr(state, "read_tensors", counted)
    validate = HeaderPlan.model_validate

    class Plan:
        """HeaderPlan as the edge server's module sees it."""

        @staticmethod
        def model_validate(document: Any) -> HeaderPlan:
            found[f"{found.owner}plans at edges"] += 1
            return validate(document)

    monkeypatch.setattr(edge_server, "HeaderPlan", Plan)
    return found


@pytest.mark.parametrize("at_once", [1, 10])
def test_in_one_process_all_is_done_once(
    at_once: int, fleet: Fleet, counts: Counts, tmp_path: Path
) -> None:
    fleet = fleet.model_copy(update={"devices_at_once": at_once})
    customize(fleet, tmp_path / "run")
    devices, edges = len(fleet.devices), len(fleet.clusters)
    own = distribute(fleet, load_source(fleet.data)).private.values()
    assert counts.pop("decoded") == 2 * _FILES  # the second time for `own`
    assert counts.pop("headers of images") == 2 * _FILES
    assert counts.pop("rows through the backbone") == sum(
        len(part) for each in own for part in (each.train, each.validation, each.test)
    )
    assert counts == {
        "references": 1,
        "backbones of devices": edges,  # devices with one model share it
        "headers received": edges,
        "features read": devices,
        "backbones of edges": edges,
        "tasks of edges": edges,
        "plans at edges": edges,
    }


def test_a_checkpoint_is_loaded_once_for_plan_cloud_and_rival(
    fleet: Fleet, counts: Counts, tmp_path: Path
) -> None:
    model = reference.new_vit(
        CLASSIFICATION, reference.vit_config(fleet.reference, (1, 8, 8)), "0123456789", 0
    )
    model.backbone.save_pretrained(tmp_path / "checkpoint")
    counts.clear()
    named = fleet.reference.model_copy(update={"checkpoint": tmp_path / "checkpoint"})
    fleet = fleet.model_copy(update={"reference": named})
    summary = customize(fleet, tmp_path / "run")
    assert summary.probe is not None
    assert summary.probe.pooling is not None  # of the checkpoint, and not of raw inputs
    assert counts["references"] == 1


def test_a_new_reference_has_no_weights_in_a_plan(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = reference.untrained_reference(
        fleet, distribute(fleet, load_source(fleet.data)).public, [str(n) for n in range(10)]
    )
    monkeypatch.setattr(reference, "new_vit", lambda *_: pytest.fail("weights were drawn"))
    plan = examine(fleet)
    assert (
        plan.reference_bytes
        == pipeline.make_plan(
            fleet, distribute(fleet, load_source(fleet.data)), built
        ).reference_bytes
    )


# --- hosts ------------------------------------------------------------------------------------


class Hosted:
    """A role on a host of its own, whose work is counted as its."""

    def __init__(self, name: str, counts: Counts, make: Callable[[], Any]) -> None:
        self._name, self._counts = name, counts
        with counts.of(name):
            self._role = make()

    def handle(self, message: Message) -> Message:
        with self._counts.of(self._name):
            return self._role.handle(message)


def _over_hosts(fleets: Callable[[str], Fleet], cloud: Fleet, counts: Counts, path: Path) -> None:
    """A run of which each role has its own fleet file, data and folder."""

    def host(name: str) -> tuple[Fleet, RunDirectory, Journal]:
        fleet = fleets(name)
        run = RunDirectory.create(path / name, fleet, resume=True)
        return fleet, run, Journal(run.events)

    def device(name: str) -> Any:
        fleet, run, journal = host(name)
        settings = next(each for each in fleet.devices if each.name == name)
        return device_role(fleet, settings, HostData.read(fleet, name), run, journal)

    def edge(name: str, link: Link) -> Any:
        fleet, run, journal = host(name)
        cluster = next(each for each in fleet.clusters if each.name == name)
        return edge_role(fleet, cluster, HostData.read(fleet, name), link, run, journal)

    edges = {}
    for cluster in cloud.clusters:
        roles = {
            d.name: Hosted(d.name, counts, lambda name=d.name: device(name))
            for d in cluster.devices
        }
        link = EmbeddedLink(cluster.name, roles, Journal(path / f"{cluster.name}.jsonl"), "device")
        name = cluster.name
        edges[name] = Hosted(name, counts, lambda name=name, link=link: edge(name, link))

    def connect(_: Fleet, __: World, ___: RunDirectory, journal: Journal) -> Any:
        return nullcontext(EmbeddedLink("cloud", edges, journal, "cloud"))

    with counts.of("cloud"):
        customize(cloud, path / "cloud", connect=connect)


def _models(fleet: Fleet, path: Path) -> dict[str, bytes]:
    """Each device's model, on its host."""
    return {d.name: models_of(path / d.name)[d.name] for d in fleet.devices}


def _size(part: Splits | Samples) -> int:
    if isinstance(part, Samples):
        return len(part)
    return sum(len(each) for each in (part.train, part.validation, part.test))


def test_hosts_that_share_a_data_set_decode_their_own_samples_alone(
    fleet: Fleet, counts: Counts, photos: Path, tmp_path: Path
) -> None:
    customize(fleet, tmp_path / "whole")
    world = distribute(fleet, load_source(fleet.data))
    counts.clear()
    _over_hosts(lambda _: fleet, fleet, counts, tmp_path / "hosts")
    held = {"cloud": world.public, **world.private, **world.shared}
    for name, own in held.items():
        assert counts[f"{name}: decoded"] == _size(own), name
    assert counts["cloud: headers of images"] == _FILES  # to know the size of all of them
    assert not any(counts[f"{name}: headers of images"] for name in (*world.private, *world.shared))
    for name in world.shared:
        assert counts[f"{name}: backbones of edges"] == 1
        assert counts[f"{name}: plans at edges"] == 1
    for name in world.private:
        assert counts[f"{name}: backbones of devices"] == 1
        assert counts[f"{name}: headers received"] == 1
    assert _models(fleet, tmp_path / "hosts") == models_of(tmp_path / "whole")


def test_spoilt_images_of_others_do_not_matter_to_a_host(fleet: Fleet, photos: Path) -> None:
    """All files but the device's own are no images any more."""
    source = load_source(fleet.data)
    whole = distribute(fleet, source)
    data = HostData.read(fleet, "cam-1")
    rule = source.preprocessing
    untouched = data.splits("cam-1", source.classes, rule)
    assert all(
        getattr(untouched, part)
        .inputs["pixel_values"]
        .equal(getattr(whole.private["cam-1"], part).inputs["pixel_values"])
        for part in ("train", "validation", "test")
    )
    opened: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        decode = datasets.open_image
        patch.setattr(datasets, "open_image", lambda x, n: (opened.append(x), decode(x, n))[1])
        data.splits("cam-1", source.classes, rule)
    contents = {path: path.read_bytes() for path in photos.rglob("*.png")}
    try:
        for path in contents.keys() - set(opened):
            path.write_bytes(b"no image")
        again = HostData.read(fleet, "cam-1").splits("cam-1", source.classes, rule)
        assert _size(again) == _size(untouched) == len(opened)
        with pytest.raises(FleetError, match="Pillow knows no such format"):
            HostData.read(fleet, "cam-2").splits("cam-2", source.classes, rule)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def test_hosts_with_data_of_their_own_need_no_other_file(
    fleet: Fleet, counts: Counts, tmp_path: Path
) -> None:
    """On their hosts there is neither the fleet's data set nor its reference."""
    raw, whole, names = read_digits(), fleet, ["cam-1", "cam-2", "north"]
    for number, name in enumerate(names):
        at = np.arange(number, len(raw.labels), 3)[:150]
        np.savez(tmp_path / f"{name}.npz", images=raw.items[at], labels=raw.labels[at])

    def fleets(name: str) -> Fleet:
        """As on the host of a role: of all paths, only its own leads anywhere."""
        content = whole.model_dump()
        content["clusters"] = content["clusters"][:1]
        content["data"]["train"] = whole.data.train if name == "cloud" else tmp_path / "not here"
        for holder in (content["clusters"][0], *content["clusters"][0]["devices"]):
            here = name in ("all", holder["name"])
            holder["data"] = tmp_path / (f"{holder['name']}.npz" if here else "not here")
        if name == "all":
            content["data"]["train"] = whole.data.train
        return Fleet.model_validate(content)

    customize(fleets("all"), tmp_path / "whole")
    _over_hosts(fleets, fleets("cloud"), counts, tmp_path / "hosts")
    assert _models(fleets("all"), tmp_path / "hosts") == models_of(tmp_path / "whole")
    for name in names:
        (tmp_path / "fleet.yaml").write_text(fleets(name).to_yaml())
        role = "edge" if name == "north" else "device"
        site = Site.model_construct(role=role, name=name, fleet=tmp_path / "fleet.yaml")
        assert site.reads(fleets(name)) == [(f"{name}: data", tmp_path / f"{name}.npz")]


def test_a_host_refuses_its_own_data_before_anything_runs(fleet: Fleet, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    content = fleet.model_dump()
    content["clusters"][0]["devices"][0]["data"] = tmp_path / "few.npz"
    with pytest.raises(FleetError, match="device cam-1 has 0 train, 1 validation and 1 test"):
        HostData.read(Fleet.model_validate(content), "cam-1")
    content["data"]["classes"] = ["3", "4"]
    np.savez(tmp_path / "few.npz", images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 2)
    with pytest.raises(FleetError, match="device cam-1: data: class 0, 1 is not known"):
        HostData.read(Fleet.model_validate(content), "cam-1")


def test_a_host_finds_a_broken_image_of_its_own_at_its_start(
    fleet: Fleet, photos: Path, tmp_path: Path
) -> None:
    """And not when a model comes, hours later."""
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    content = fleet.model_dump()
    content["clusters"][0]["devices"][0]["data"] = own
    HostData.read(Fleet.model_validate(content), "cam-1")
    broken = sorted(own.rglob("*.png"))[7]
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(FleetError, match=f"device cam-1: data: .*{broken.name}"):
        HostData.read(Fleet.model_validate(content), "cam-1")


def test_a_host_refuses_a_model_of_other_classes(fleet: Fleet) -> None:
    data, rule = HostData.read(fleet, "cam-1"), ImagePreprocessing.centred(8, 8, 1)
    with pytest.raises(FleetError, match="tells 2 classes apart, from cat on; here are 10 others"):
        data.splits("cam-1", ["cat", "dog"], rule)


def test_a_message_cannot_ask_for_enormous_images(fleet: Fleet) -> None:
    small = ImagePreprocessing.centred(8, 8, 1)
    assert sent_preprocessing(small.model_dump(mode="json")) == small
    for rule in (
        ImagePreprocessing.centred(5000, 5000, 1),
        small.model_copy(
            update={"size": ShortestEdge(shortest_edge=5000), "do_center_crop": True}
        ).model_copy(update={"crop_size": ImageSize(height=8, width=8)}),
    ):
        with pytest.raises(ProtocolError, match="makes 5000 pixels a side, at most 4096"):
            sent_preprocessing(rule.model_dump(mode="json"))


# --- the memory of features -------------------------------------------------------------------


def _features(numbers: int) -> Splits:
    part = Samples({"pooled": torch.zeros(1, numbers)}, torch.zeros(1).long(), torch.ones(1).long())
    return Splits(part, part, part)


def test_features_are_held_up_to_a_number_of_bytes() -> None:
    memory, (one, two, three) = FeatureMemory(2 * 12 * 5), map(Path, ("one", "two", "three"))
    for path in (one, two):
        memory.put(path, _features(5))
    assert memory.get(one) is not None  # used last
    memory.put(three, _features(5))
    assert memory.get(two) is None
    assert memory.get(one) is not None
    assert memory.get(three) is not None
    memory.put(one, _features(11))  # more than there is room for, whoever leaves
    assert memory.get(one) is None
    assert memory.get(three) is not None
    memory.drop(three)
    assert memory.get(three) is None


def test_devices_whose_features_do_not_fit_read_them_from_disk(
    fleet: Fleet, counts: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    customize(fleet, tmp_path / "held")
    known = counts["rows through the backbone"]
    monkeypatch.setattr(pipeline, "FeatureMemory", lambda: FeatureMemory(0))
    again = without_devices(tmp_path / "held", tmp_path / "not held")
    customize(fleet, again, resume=True)
    assert models_of(tmp_path / "not held") == models_of(tmp_path / "held")
    assert counts["rows through the backbone"] == 2 * known  # once for each run
    assert counts["features read"] > 2 * len(fleet.devices)
