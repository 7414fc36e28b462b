"""Public data of the cloud's own, with and without labels: reading, sharing out, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.datasets import Source, load_own, load_source
from acme_fleet.data.partition import World, distribute, load_world
from acme_fleet.data.samples import Samples, Splits, join
from acme_fleet.data.sources.folder import read_images
from acme_fleet.distillation.importance import features_objective, labels_objective, objective_of
from acme_fleet.distillation.reference import checkpoint_backbone, untrained_reference
from acme_fleet.errors import FleetError
from acme_fleet.inspection.plan import examine
from acme_fleet.models.features import Classifier
from acme_fleet.network.hosts.site import Site, fingerprint
from acme_fleet.report.terminal.run import print_candidates
from acme_fleet.simulation.probe_rival import measure_probe
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate

CLASSES = ["light", "weather"]


def unlabelled(count: int) -> Samples:
    return Samples({"x": torch.arange(count)}, None, torch.ones(count, dtype=torch.int64))


# --- samples ----------------------------------------------------------------------------------


def test_labels_that_are_missing_cannot_be_used(
    make_classifier: Callable[..., Classifier], make_samples: Callable[..., Samples]
):
    known = make_samples(6)
    samples = Samples(known.inputs, None, known.stored_bytes)
    assert not samples.labelled
    assert known.labelled
    assert len(samples) == 6
    for wrong in (
        lambda: samples.labels,
        lambda: join([known, samples]),
        lambda: evaluate(CLASSIFICATION, make_classifier(), samples),
        lambda: labels_objective(CLASSIFICATION)(make_classifier(), samples),
    ):
        with pytest.raises(ValueError, match="labels of samples that have none"):
            wrong()
    with pytest.raises(ValueError, match="some parts of one data set have labels"):
        Splits(known, samples, known)


def test_parts_of_unlabelled_samples_are_unlabelled(monkeypatch: pytest.MonkeyPatch):
    samples = unlabelled(7)
    picked = samples[torch.tensor([4, 1])]
    assert picked.inputs["x"].tolist() == [4, 1]
    assert [len(batch) for batch in samples.batches(3)] == [3, 3, 1]
    others = samples.with_inputs({"y": torch.zeros(7)})
    for part in (picked, samples[:0], *samples.batches(3), others):
        assert not part.labelled
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would say so before
    with pytest.raises(ValueError, match="differ in length"):
        samples.with_inputs({"y": torch.zeros(6)})


# --- reading ----------------------------------------------------------------------------------


def png(value: int) -> bytes:
    file = BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def npz(path: Path, count: int, **more: Any) -> Path:
    images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8)
    np.savez(path, **{"images": images, **more})
    return path


def parquet(path: Path, count: int, **more: Any) -> Path:
    pq.write_table(pa.table({"image": [png(n) for n in range(count)], **more}), path)
    return path


def folder(path: Path, count: int, **classes: int) -> Path:
    """Images in the folder itself, and in folders of these classes."""
    for place, number in ((path, count), *((path / name, n) for name, n in classes.items())):
        place.mkdir(exist_ok=True)
        for n in range(number):
            (place / f"{n}.png").write_bytes(png(n))
    return path


@pytest.fixture
def source(tmp_path: Path) -> tuple[Data, Source]:
    """Images of the classes ant and bee."""
    data = Data(source="images", train=folder(tmp_path / "train", 0, ant=6, bee=6))
    return data, load_source(data)


@pytest.mark.parametrize("write", [npz, parquet, folder])
def test_images_without_labels(source: tuple[Data, Source], tmp_path: Path, write: Any):
    path = write(tmp_path / f"public.{write.__name__}", 3)
    samples = load_own(path, *source, "data.public", label_optional=True)
    assert not samples.labelled
    pixels = samples.inputs["pixel_values"]
    assert pixels.shape == (3, 1, 4, 4)
    steps = pixels[1:].mean(dim=(1, 2, 3)) - pixels[:-1].mean(dim=(1, 2, 3))
    assert bool((steps > 0).all())
    assert bool((samples.stored_bytes > 0).all())


@pytest.mark.parametrize("write", [npz, parquet, folder])
def test_only_public_data_may_lack_labels(source: tuple[Data, Source], tmp_path: Path, write: Any):
    path = write(tmp_path / f"own.{write.__name__}", 3)
    with pytest.raises(
        FleetError, match=r"device a: data: .* (lacks label|holds no class folders)"
    ):
        load_own(path, *source, "device a: data")


def test_labels_that_are_there_are_used(source: tuple[Data, Source], tmp_path: Path):
    names = np.array(["bee", "ant"])
    for path in (
        npz(tmp_path / "p.npz", 2, labels=np.array([0, 1]), label_names=names),
        parquet(tmp_path / "p.parquet", 2, label=["bee", "ant"]),
    ):
        assert load_own(path, *source, "x", label_optional=True).labels.tolist() == [1, 0]
    path = folder(tmp_path / "p", 0, bee=2)
    assert load_own(path, *source, "x", label_optional=True).labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: npz(p / "p.npz", 2, labels=np.array([0.0, np.nan])), r"labels\[0\]: label 0.0"),
        (lambda p: npz(p / "p.npz", 2, labels=np.array([0, -1])), "label -1 is negative"),
        (lambda p: npz(p / "p.npz", 2, labels=np.array([0, 2])), "class 2 is not known"),
        (lambda p: parquet(p / "p.parquet", 2, label=["ant", None]), "row 2: label is missing"),
        (lambda p: parquet(p / "p.parquet", 2, label=["ant", "wasp"]), "class wasp is not known"),
        (lambda p: folder(p / "p", 0, ant=1, wasp=1), "class wasp is not known .* ant, bee"),
        (lambda p: folder(p / "p", 1, ant=1), "lies beside the class folders"),
        (lambda p: folder(p / "p", 0), "neither class folders nor image files"),
    ],
)
def test_labels_that_do_not_fit_are_no_unlabelled_data(
    source: tuple[Data, Source], tmp_path: Path, write: Any, words: str
):
    with pytest.raises(FleetError, match=f"data.public: .*{words}"):
        load_own(write(tmp_path), *source, "data.public", label_optional=True)


def test_a_damaged_image_without_a_label_is_named(source: tuple[Data, Source], tmp_path: Path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"image": [png(1), b"no image"]}), path)
    with pytest.raises(FleetError, match=r"data.public: cannot read sample 2 as an image"):
        load_own(path, *source, "data.public", label_optional=True)


def test_other_files_among_images_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = folder(tmp_path / "p", 2)
    (path / "read me.txt").write_text("pictures")
    assert len(read_images(path, "data.public").items) == 2
    assert "data.public: left out, as they are no images: " in caplog.text


# --- a fleet of texts -------------------------------------------------------------------------


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rows(count: int, *, label: bool = True) -> list[dict[str, Any]]:
    texts = ["turn the light on", "what is the weather", "light off now", "rain wind sun"]
    return [
        {"text": texts[n % 4], **({"intent": CLASSES[n % 2]} if label else {})}
        for n in range(count)
    ]


@pytest.fixture
def texts(tmp_path: Path, text_checkpoint: Path) -> Callable[..., Fleet]:
    """``texts(public, **changes)``: a fleet whose public data are these rows."""

    def make(public: list[dict[str, Any]], **changes: Any) -> Fleet:
        backbone = {"depths": [1, 2], **changes.pop("backbone", {})}
        reference = {"checkpoint": str(text_checkpoint), **changes.pop("reference", {})}
        data = {
            "source": "text",
            "train": str(lines(tmp_path / "train.jsonl", rows(80))),
            "public": str(lines(tmp_path / "public.jsonl", public)),
            "label_column": "intent",
            "max_tokens": 8,
            **changes,
        }
        cluster = {"name": "home", "devices": [{"name": "a", "storage": "1 MB"}]}
        content = {"data": data, "reference": reference, "backbone": backbone}
        return Fleet.parse({**content, "clusters": [cluster]})

    return make


def held(world: World) -> int:
    """Samples of devices and edge servers."""
    parts = [part for own in world.private.values() for part in (own.train, own.validation)]
    return sum(map(len, [*parts, *world.shared.values()]))


def test_the_clouds_own_data_leave_all_others_to_the_devices(texts: Callable[..., Fleet]):
    fleet = texts(rows(40, label=False))
    world = load_world(fleet)
    public = world.public
    assert not public.labelled
    assert [len(part) for part in (public.train, public.validation, public.test)] == [32, 8, 0]
    assert held(world) == 60  # of 80, a quarter is held out for tests
    assert len(world.private["a"].test) == 20
    labelled = load_world(texts(rows(40)))
    sizes = [len(part) for part in (labelled.public.train, labelled.public.test)]
    assert labelled.public.labelled
    assert sizes == [24, 10]
    assert held(labelled) == 60
    assert labelled.classes == CLASSES


def test_lines_have_a_label_all_or_none(texts: Callable[..., Fleet]):
    some = rows(10)
    del some[6]["intent"]
    with pytest.raises(FleetError, match=r"data.public: .*public.jsonl, line 7 lacks intent"):
        load_world(texts(some))
    with pytest.raises(FleetError, match=r"line 1 lacks intent"):
        load_world(texts([*rows(1, label=False), *rows(9)]))
    with pytest.raises(FleetError, match=r"line 3: 'intent' must be text or an integer"):
        load_world(texts([*rows(2), {"text": "sing", "intent": None}]))
    with pytest.raises(FleetError, match=r"data.public: class music is not known .*light, weather"):
        load_world(texts([*rows(9), {"text": "sing", "intent": "music"}]))
    with pytest.raises(FleetError, match=r"data.public: .*there is no sample"):
        load_world(texts([]))


def test_only_the_clouds_host_needs_the_clouds_data(texts: Callable[..., Fleet], tmp_path: Path):
    fleet = texts(rows(40, label=False))
    cloud = load_world(fleet, [])
    assert len(cloud.public.train) == 32
    assert not cloud.private
    (tmp_path / "public.jsonl").unlink()
    device = load_world(fleet, ["a"])
    assert len(device.private["a"].test) == 20
    with pytest.raises(ValueError, match="the cloud's own data were asked for"):
        _ = device.public
    with pytest.raises(FleetError, match=r"data.public: .*no such file"):
        load_world(fleet, [])


def test_hosts_may_keep_public_data_where_they_like(tmp_path: Path):
    cluster = {"name": "north", "devices": [{"name": "a", "storage": "1 MB"}]}

    def fleet(public: object) -> Fleet:
        return Fleet.parse({"data": {"public": public}, "clusters": [cluster]})

    assert fingerprint(fleet("here.npz")) == fingerprint(fleet("/there.npz"))
    assert len({fingerprint(fleet(public)) for public in (0.1, 0.2, "x")}) == 3
    path = tmp_path / "fleet.yaml"
    path.write_text(fleet("p.npz").to_yaml())
    read = Fleet.from_yaml(path)
    assert read.data.public == tmp_path / "p.npz"
    assert Fleet.parse({"data": {"public": str(read.data.public)}, "clusters": [cluster]}) == read
    for role, named in (("cloud", True), ("device", False)):
        site = Site.model_construct(role=role, name="cloud", fleet=path)
        assert (("data.public", tmp_path / "p.npz") in site.reads(read)) == named


# --- what needs labels ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": {"importance": "labels"}}, "backbone.importance: labels cannot be followed"),
        (
            {"backbone": {"distillation": {"match": "states"}}},
            "backbone.distillation.match: states learns a classifier",
        ),
        ({"validation": 0.02}, "data.public: .* 1 sample for validation"),
    ],
)
def test_settings_that_need_labels(texts: Callable[..., Fleet], changes: Any, words: str):
    with pytest.raises(FleetError, match=rf"{words}.*") as told:
        examine(texts(rows(40, label=False), **changes))
    assert "public.jsonl has no labels" in str(told.value)
    examine(texts(rows(40), **changes))  # with labels all is well


def test_what_the_run_trains_itself_needs_labels(tmp_path: Path):
    public = npz(tmp_path / "p.npz", 40)
    cluster = {"name": "north", "devices": [{"name": "a", "storage": "1 MB"}]}
    images = npz(tmp_path / "t.npz", 60, labels=np.arange(60) % 3)
    data = {"source": "arrays", "train": str(images), "public": str(public)}
    with pytest.raises(
        FleetError, match=r"data.public: .*p.npz has no labels.*trains itself.*reference.checkpoint"
    ):
        examine(Fleet.parse({"data": data, "clusters": [cluster]}))


def test_importance_follows_the_labels_that_there_are():
    draw = torch.Generator()
    for kind, labelled, expected in (
        ("auto", True, True),
        ("auto", False, False),
        ("labels", True, True),
        ("features", True, False),
    ):
        found = objective_of(CLASSIFICATION, kind, draw, labelled=labelled)  # type: ignore[arg-type]
        like = labels_objective(CLASSIFICATION) if expected else features_objective(draw)
        assert found.__qualname__ == like.__qualname__


def test_pooling_is_named_or_the_familys_own(texts: Callable[..., Fleet]):
    for asked, expected in (("auto", "first"), ("mean", "mean"), ("first_mean", "first_mean")):
        fleet = texts(rows(40, label=False), reference={"pooling": asked})
        world = load_world(fleet)
        model = untrained_reference(fleet, world.public, world.classes)
        assert model.backbone.config.pooling == expected
        assert model.head.in_features == (32 if asked == "first_mean" else 16)
        assert not any(parameter.any() for parameter in model.head.parameters())
        if asked == "auto":
            backbone, known = checkpoint_backbone(fleet.reference, world.public.train.inputs)
            assert known is None
            assert measure_probe(backbone, known, world, lambda *_: None).pooling == "first"


def test_check_says_that_there_are_no_labels(
    texts: Callable[..., Fleet], capsys: pytest.CaptureFixture[str]
):
    for label in (True, False):
        fleet = texts(rows(40, label=label))
        print_candidates(fleet, examine(fleet))
        told = " ".join(capsys.readouterr().out.split())
        assert "public data: 40 samples" in told
        assert ("without labels" in told) != label


def test_a_share_stays_a_share():
    fleet = Fleet.parse(
        {"clusters": [{"name": "north", "devices": [{"name": "a", "storage": "1 MB"}]}]}
    )
    assert fleet.data.public == 0.4
    assert fleet.with_paths_from(Path("/x")).data.public == 0.4
    world = distribute(fleet, load_source(fleet.data))
    assert world.public.labelled
