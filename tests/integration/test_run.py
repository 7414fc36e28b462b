"""The main job on a tiny fleet: what it leaves behind, and that each number in it is true."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import acme_fleet
from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.size import parameter_count
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import World, distribute
from acme_fleet.edge.server import EdgeServer
from acme_fleet.errors import FleetError
from acme_fleet.links import embedded
from acme_fleet.links.wire import encode
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import FeatureSample
from acme_fleet.messages.header_plan import Genotype, HeaderPlan
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from event_records import event_records
from tiny_fleet import SHORT


@pytest.fixture(scope="module")
def world(finished) -> World:
    return distribute(finished.fleet, load_source(finished.fleet.data))


@pytest.fixture(scope="module")
def events(finished) -> list[dict[str, Any]]:
    return event_records(finished.path / "events.jsonl")


def _models(path: Path) -> dict[str, bytes]:
    files = path.glob("devices/*/model.safetensors")
    return {file.parent.name: file.read_bytes() for file in files}


# --- the run directory ------------------------------------------------------------------------

_DEVICES = ("cam-1", "cam-2", "badge-1", "badge-2")


def test_run_directory_has_everything(finished):
    for name in ("fleet.yaml", "summary.json", "report.html", "events.jsonl"):
        assert (finished.path / name).stat().st_size > 0
    assert {path.name for path in (finished.path / "devices").iterdir()} == set(_DEVICES)
    for device in _DEVICES:
        files = {path.name for path in (finished.path / "devices" / device).iterdir()}
        assert {"model.safetensors", "config.json", "header.json"} <= files
        assert {"labels.json", "preprocessor_config.json"} <= files
    assert not list(finished.path.rglob("*.partial"))


def test_private_state_is_for_its_user_alone_and_the_rest_as_the_umask_says(finished):
    mask = os.umask(0)
    os.umask(mask)
    modes = {
        path.relative_to(finished.path): path.stat().st_mode & 0o777
        for path in finished.path.rglob("*")
    }
    private = {name for name in modes if {"state", "uploads", "samples"} & set(name.parts)}
    assert len(private) > 30
    for name, mode in modes.items():
        folder = (finished.path / name).is_dir()
        every = 0o777 if folder else 0o666
        wanted = (0o700 if folder else 0o600) if name in private else every & ~mask
        assert mode == wanted, name


def test_summary_has_the_fields_that_were_promised(finished):
    summary = json.loads((finished.path / "summary.json").read_text())
    assert {"seed", "seconds", "reference", "clusters", "devices", "traffic"} <= summary.keys()
    assert summary["seed"] == 3
    assert summary["seconds"].keys() >= {"reference", "header search", "round 1", "final model"}
    assert {"params", "size_bytes", "accuracy"} <= summary["reference"].keys()
    assert [cluster["name"] for cluster in summary["clusters"]] == ["north", "south"]
    for cluster in summary["clusters"]:
        wanted = {"name", "width", "depth", "candidates", "feasible", "front", "header"}
        assert wanted <= cluster.keys()
        assert len(cluster["candidates"]) == 4
        assert cluster["lost"] == {}
    assert [device["name"] for device in summary["devices"]] == list(_DEVICES)
    for device in summary["devices"]:
        wanted = {"name", "cluster", "capacity_bytes", "size_bytes", "params", "accuracy_coarse"}
        wanted |= {"accuracy", "accuracy_linear", "test_samples", "latency_s"}
        assert wanted <= device.keys()
        assert device["latency_s"] > 0
        assert all(0 <= device[f"accuracy{kind}"] <= 1 for kind in ("", "_coarse", "_linear"))
    wanted = {"cloud_edge_bytes", "edge_device_bytes", "up_bytes", "down_bytes", "raw_data_bytes"}
    assert wanted | {"upload_ratio"} <= summary["traffic"].keys()
    assert Summary.read(finished.path / "summary.json") == finished.summary


def test_resolved_fleet_says_all_settings(finished, tiny):
    assert Fleet.from_yaml(finished.path / "fleet.yaml") == tiny()
    text = (finished.path / "fleet.yaml").read_text()
    for key in ("source: digits", "hidden_size: 16", "classes_per_device: 5"):
        assert key in text


def test_training_taught_something(finished):
    """Ten classes; a run whose stages do nothing would stay at a tenth."""
    assert finished.summary.reference.accuracy > 0.5
    devices = finished.summary.devices
    assert np.mean([device.accuracy for device in devices]) > 0.5
    assert any(device.accuracy != device.accuracy_coarse for device in devices)


# --- the models -------------------------------------------------------------------------------


def test_models_are_within_their_devices_limits(finished):
    limits = {device.name: device.storage for device in finished.fleet.devices}
    for device in finished.summary.devices:
        size = (finished.path / "devices" / device.name / "model.safetensors").stat().st_size
        assert size == device.size_bytes
        assert device.capacity_bytes == limits[device.name]
        assert size <= limits[device.name]


def test_parameters_are_counted_right_and_stored_as_floats(finished):
    for device in finished.summary.devices:
        tensors = load_file(finished.path / "devices" / device.name / "model.safetensors")
        assert device.params == sum(tensor.numel() for tensor in tensors.values())
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_headers_were_pruned_physically(finished):
    """Unless the best header that a device had was an earlier, larger one."""
    for device in finished.summary.devices:
        plan = json.loads((finished.path / "devices" / device.name / "header.json").read_text())
        tensors = load_file(finished.path / "devices" / device.name / "model.safetensors")
        neurons = {n: len(t) for n, t in tensors.items() if n.startswith("header.layers.")}
        assert sum(c for n, c in neurons.items() if n.endswith("bias")) == device.neurons
        assert all(
            neurons[f"header.layers.{layer}.weight"] == len(kept)
            for layer, kept in plan["kept"].items()
        )
    assert any(device.neurons < device.neurons_coarse for device in finished.summary.devices)


def test_chosen_candidates_are_on_the_front_and_fit(finished):
    for cluster in finished.summary.clusters:
        (chosen,) = [candidate for candidate in cluster.candidates if candidate.chosen]
        assert chosen.variant == cluster.variant
        assert chosen.feasible
        assert chosen.on_front
        assert chosen.size_bytes <= cluster.storage_limit_bytes
        fitting = [c for c in cluster.candidates if c.size_bytes <= cluster.storage_limit_bytes]
        assert cluster.feasible == len(fitting) == sum(c.feasible for c in cluster.candidates)
    north, south = finished.summary.clusters
    assert (north.storage_limit_bytes, south.storage_limit_bytes) == (60_000, 20_000)
    assert north.feasible == 4
    assert south.feasible == 3


def test_searched_header_is_compared_with_its_rivals(finished):
    searched = finished.fleet.search
    tried = searched.steps * searched.children_per_step
    for cluster in finished.summary.clusters:
        names = [one.name for one in cluster.contenders]
        others = {"random", "evolution", "controller"} - {searched.strategy}
        assert names[:2] == [searched.strategy, "linear"]
        assert set(names[2:4]) == others
        assert set(names[4:]) <= {"mlp", "cnn", "mixer"}
        by_name = {one.name: one for one in cluster.contenders}
        for name in (searched.strategy, *others):
            assert tried < by_name[name].evaluated <= tried + searched.final_samples
        plan = HeaderPlan(
            genotype=Genotype.model_validate(cluster.genotype), hidden=16, classes=10, axes=2
        )
        assert by_name[searched.strategy].params == parameter_count(plan.shapes())
        assert by_name["linear"].params == 16 * 10 + 10
        for name in names[4:]:
            assert by_name[name].params <= by_name[searched.strategy].params
        assert all(0 <= one.accuracy <= 1 for one in cluster.contenders)


def test_rivals_change_nothing_and_can_be_left_out(
    finished, prepared: Path, tiny: Callable[..., Fleet]
):
    fleet = tiny(**{"search.rivals": False})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    for told in prepared.glob("edges/*/contenders.json"):
        told.unlink()
    summary = customize(fleet, prepared, resume=True)
    assert _models(prepared) == finished.models
    for ours, full in zip(summary.clusters, finished.summary.clusters, strict=True):
        assert ours.contenders == full.contenders[:2]


def test_similarity_rows_are_weights(finished):
    for cluster in finished.summary.clusters:
        assert len(cluster.similarity) == len(cluster.device_names) == 2
        assert all(sum(row) == pytest.approx(1) for row in cluster.similarity)


def test_every_loaded_model_has_the_accuracy_that_was_reported(
    finished, world: World, tmp_path: Path
):
    """Three files are enough for that; ``test_shipped`` loads them in a process of its own."""
    for device in finished.summary.devices:
        (tmp_path / device.name).mkdir()
        for name in ("model.safetensors", "config.json", "header.json"):
            shutil.copy(finished.path / "devices" / device.name / name, tmp_path / device.name)
        model = acme_fleet.load(tmp_path / device.name)
        assert isinstance(model, nn.Module)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        test = world.private[device.name].test
        assert evaluate(CLASSIFICATION, model, test).score == device.accuracy
        assert len(test) == device.test_samples
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        assert linears
        assert all(type(m) is nn.Linear for m in linears)


# --- predict ----------------------------------------------------------------------------------


def _acme(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("device", ["cam-1", "badge-2"])
def test_predict_on_test_data_tells_the_summarys_accuracy(finished, device: str):
    (known,) = [d for d in finished.summary.devices if d.name == device]
    result = _acme("predict", finished.path, "--device", device)
    assert result.exit_code == 0, result.output
    assert f"{device}: accuracy {known.accuracy:.4f}, " in result.output
    assert f"on its {known.test_samples} test" in result.output


def test_predict_on_image_files(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save("grey.png")
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).resize((16, 16), 0).save("large[b].png")
    model = acme_fleet.load(finished.path / "devices" / "cam-1")
    with torch.no_grad():
        inputs = (torch.tensor(pixels).float() / 255 - 0.5) / 0.5
        probability, digit = model(pixel_values=inputs[None, None]).softmax(dim=1).max(dim=1)
    result = _acme("predict", finished.path, "--device", "cam-1", "grey.png", "large[b].png")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if ".png" in line]
    assert [row[1] for row in rows] == ["grey.png", "large[b].png"]  # no markup was eaten
    assert rows[0][3] == str(int(digit))
    assert float(rows[0][5]) == pytest.approx(float(probability), abs=6e-4)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--device", "cam-9"], "no device 'cam-9'; it has cam-1, cam-2, badge-1, badge-2", 2),
        (["--device", "cam-1", "none.png"], "none.png", 1),
        (["--device", "cam-1", "text.png"], "text.png", 1),
    ],
)
def test_predict_on_what_is_not_there(
    finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
    code: int,
):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("not an image")
    result = _acme("predict", finished.path, *arguments)
    assert result.exit_code == code
    assert words in result.output
    assert "Traceback" not in result.output


# --- the messages -----------------------------------------------------------------------------


def test_events_say_who_told_whom_what(finished, events):
    messages = [event for event in events if "bytes" in event]
    stages = [event for event in events if "stage" in event]
    figures = [event for event in events if "figure" in event]
    assert len(messages) + len(stages) + len(figures) == len(events)
    for message in messages:
        assert message.keys() == {
            *("time", "from", "to", "type", "bytes", "occasion", "tier", "direction"),
        }
        assert message["type"] in Message.registry
        assert message["bytes"] > 0
    for stage in stages:
        assert stage.keys() == {"time", "stage", "actor", "tier", "seconds"}
    assert all(datetime.fromisoformat(event["time"]).tzinfo for event in events)
    edges = {"cam-1": "north", "cam-2": "north", "badge-1": "south", "badge-2": "south"}
    links = {frozenset((m["from"], m["to"])) for m in messages}
    assert links == {
        *(frozenset(("cloud", edge)) for edge in ("north", "south")),
        *(frozenset(link) for link in edges.items()),
    }


def test_each_message_is_sent_as_often_as_the_method_says(events):
    counted = Counter(event["type"] for event in events if "bytes" in event)
    assert counted == {
        "ProfileRequest": 2 + 4,
        "DeviceProfile": 4,
        "ClusterProfile": 2,
        "BackboneAssignment": 2,
        "HeaderAssignment": 4,
        "FeatureSample": 4,
        "RoundStart": 3 * 4,
        "ImportanceUpload": 3 * 4,
        "ImportanceUpdate": 3 * 4,
        "RoundReport": 3 * 4,
        "ReportRequest": 4,
        "DeviceReport": 4,
        "ClusterReport": 2,
    }


def test_traffic_is_the_sum_of_the_events(finished, events, world: World):
    rank = {"cloud": 2, "north": 1, "south": 1}
    sums = Counter()
    for event in events:
        if "bytes" not in event:
            continue
        ranks = rank.get(event["from"], 0), rank.get(event["to"], 0)
        sums["cloud_edge_bytes" if 2 in ranks else "edge_device_bytes"] += event["bytes"]
        sums["up_bytes" if ranks[0] < ranks[1] else "down_bytes"] += event["bytes"]
        if ranks == (0, 1):
            sums["device_up_bytes"] += event["bytes"]
    traffic = finished.summary.traffic
    assert sums == {name: getattr(traffic, name) for name in sums}
    assert len(sums) == 5
    # A digit is 64 bytes; test samples would not have been uploaded by a centralised system.
    held = sum(len(s.train) + len(s.validation) for s in world.private.values())
    assert traffic.raw_data_bytes == 64 * held
    assert traffic.upload_ratio == traffic.device_up_bytes / traffic.raw_data_bytes


def test_seconds_are_the_sum_of_the_stages(finished, events):
    for stage, seconds in finished.summary.seconds.items():
        told = [event["seconds"] for event in events if event.get("stage") == stage]
        assert seconds == pytest.approx(sum(told), abs=1e-6)
    by_name = Counter(event["stage"] for event in events if "stage" in event)
    cloud = ("reference", "reordered", "width-elastic", "elastic", "candidate losses")
    once = (*cloud, "ten lines", "whole reference")
    per_device = ("features", "round 1", "round 2", "round 3", "fine-tuning", "final model")
    assert by_name == {
        **dict.fromkeys(once, 1),
        **dict.fromkeys(("header search", "header rivals", "similarity"), 2),
        **dict.fromkeys(per_device, 4),
    }


def _contains_samples(blob: bytes, pixels: torch.Tensor) -> bool:
    """True if any image is in the bytes as float32, or as the uint8 of its storage."""
    stored = ((pixels * 0.5 + 0.5) * 255).round().to(torch.uint8)
    forms = (pixels.numpy(), pixels.half().numpy(), stored.numpy())
    return any(image.tobytes() in blob for images in forms for image in images)


def test_no_sample_and_no_label_leaves_a_device(
    prepared: Path, finished, world: World, monkeypatch: pytest.MonkeyPatch
):
    sent: list[tuple[str, bytes]] = []

    def recording(message: Message) -> bytes:
        data = encode(message)
        sent.append((type(message).__name__, data))
        return data

    monkeypatch.setattr(embedded, "encode", recording)
    customize(finished.fleet, prepared, resume=True)
    assert Counter(kind for kind, _ in sent)["ImportanceUpload"] == 12
    up = {"DeviceProfile", "FeatureSample", "ImportanceUpload", "RoundReport", "DeviceReport"}
    blob = b"".join(data for kind, data in sent if kind in up)
    for device, splits in world.private.items():
        for part in (splits.train, splits.validation, splits.test):
            pixels = part.inputs["pixel_values"]
            assert not _contains_samples(blob, pixels), f"{device} sent a sample"
            for kind in (torch.int64, torch.uint8, torch.float32):
                labels = part.labels[:16].to(kind).numpy().tobytes()
                assert labels not in blob, f"{device} sent labels"
    # The search itself finds what is there.
    pixels = world.private["cam-1"].train.inputs["pixel_values"][:2]
    assert _contains_samples(encode(FeatureSample(features=pixels.flatten(1))), pixels)


def test_uploads_are_as_small_as_the_method_says(finished, events):
    """Features of 12 samples of 16 half numbers once, a number for each neuron in each round."""
    frame = 400
    for event in events:
        if event.get("type") == "FeatureSample":
            assert 12 * 16 * 2 < event["bytes"] < 12 * 16 * 2 + frame
        if event.get("type") == "ImportanceUpload":
            assert event["bytes"] < 4 * 6 * 6 + frame + 6 * 100
        if event.get("type") in ("DeviceProfile", "DeviceReport", "RoundReport"):
            assert event["bytes"] < 600


# --- the report -------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Gathers the tags, and everything that a browser would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and value:
                self.loaded.append(value)


def test_report_is_one_file_that_loads_nothing(finished):
    text = (finished.path / "report.html").read_text()
    page = _Page(text)
    assert not [target for target in page.loaded if not target.startswith(("#", "data:"))]
    assert "@import" not in text
    assert "url(http" not in text
    assert page.tags["script"] == 1  # sorts and searches; the page's policy lets no other run
    assert page.tags["svg"] >= 4
    for name in (*_DEVICES, "north", "south"):
        assert name in text


def test_report_can_be_rebuilt(finished, tmp_path: Path, quick: pytest.MonkeyPatch):
    quick.undo()
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    result = _acme("report", tmp_path / "run")
    assert result.exit_code == 0, result.output
    again = tmp_path / "run" / "report.html"
    assert str(again) in result.output.replace("\n", "")
    assert _Page(again.read_text()).tags == _Page((finished.path / "report.html").read_text()).tags


@pytest.mark.parametrize("content", [None, "{", "{}", "\ufeff"])
def test_report_of_an_unfinished_run(finished, tmp_path: Path, content: str | None):
    shutil.copy(finished.path / "fleet.yaml", tmp_path)
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    result = _acme("report", tmp_path)
    assert result.exit_code == 2
    assert ("go on with it: acme run" if content is None else "summary.json") in result.stderr


# --- the seed decides -------------------------------------------------------------------------


def _without_clock(summary: Summary) -> dict[str, Any]:
    """The part in which two equal runs agree: all but measured seconds and the engine."""
    told = summary.model_dump()
    told.pop("seconds")
    told.pop("took_s")
    for measured in (told["reference"], *told["devices"]):
        measured.pop("latency_s")
    for name in ("cloud_edge_bytes", "edge_device_bytes", "up_bytes", "device_up_bytes"):
        told["traffic"].pop(name)  # a latency has more or fewer digits
    told["traffic"].pop("upload_ratio")
    for kinds in told["sent"].values():
        kinds.pop("DeviceReport")
    return told


def test_resolved_fleet_repeats_the_run_bit_for_bit(finished, tmp_path: Path):
    result = _acme("run", finished.path / "fleet.yaml", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "again" / "report.html") in result.output.replace("\n", "")
    folder = tmp_path / "again"
    assert {p.parent.name: p.read_bytes() for p in folder.glob("devices/*/model.safetensors")} == (
        finished.models
    )
    summary = Summary.read(folder / "summary.json")
    assert _without_clock(summary) == _without_clock(finished.summary)
    assert (folder / "fleet.yaml").read_text() == (finished.path / "fleet.yaml").read_text()


def test_threads_and_global_generators_of_the_process_decide_nothing(
    finished, prepared: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rounding depends on threads, and with it what is chosen: the fleet says how many."""
    seen: list[int] = []
    original = EdgeServer.handle

    def handle(self: EdgeServer, message: Message) -> Message:
        seen.append(torch.get_num_threads())
        return original(self, message)

    monkeypatch.setattr(EdgeServer, "handle", handle)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    random.seed(123)
    torch.set_num_threads(2)
    try:
        customize(finished.fleet, prepared, resume=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen
    assert set(seen) == {1}
    assert _models(prepared) == finished.models


def test_another_seed_gives_other_models(tiny: Callable[..., Fleet], tmp_path: Path):
    fleet = tiny(**SHORT)
    fleet = fleet.model_copy(update={"clusters": fleet.clusters[:1]})
    (tmp_path / "fleet.yaml").write_text(fleet.to_yaml())
    customize(fleet, tmp_path / "a")
    result = _acme("run", tmp_path / "fleet.yaml", "--out", tmp_path / "b", "--seed", "4")
    assert result.exit_code == 0, result.output
    ours, others = (_models(tmp_path / name) for name in ("a", "b"))
    assert ours.keys() == others.keys() == {"cam-1", "cam-2"}
    assert all(others[device] != model for device, model in ours.items())
    assert Summary.read(tmp_path / "b" / "summary.json").seed == 4
    assert Fleet.from_yaml(tmp_path / "b" / "fleet.yaml").seed == 4


# --- data of one's own ------------------------------------------------------------------------


def test_arrays_by_a_relative_path_from_code(
    tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The run directory's copy of the fleet finds the data from anywhere."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = (rng.integers(0, 100, (200, 8, 8)) + 120 * labels[:, None, None]).astype(np.uint8)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    np.savez("mine.npz", images=images, labels=labels, label_names=["dark", "bright"])
    fleet = tiny(data={"source": "arrays", "train": "mine.npz"})
    fleet = fleet.model_copy(update={"clusters": fleet.clusters[:1]})
    summary = customize(fleet, "run")
    assert summary.reference.accuracy > 0.9
    monkeypatch.chdir(tmp_path)
    result = _acme("predict", "work/run", "--device", "cam-2")
    assert result.exit_code == 0, result.output
    assert f"accuracy {summary.devices[1].accuracy:.4f}" in result.output
    customize(Fleet.from_yaml("work/run/fleet.yaml"), "work/run", resume=True)
    Image.fromarray(images[1]).save("x.png")
    assert " bright " in _acme("predict", "work/run", "--device", "cam-1", "x.png").output


def test_fleet_of_one_device(tiny: Callable[..., Fleet], tmp_path: Path):
    """Nobody to listen to: the device's own importance decides."""
    fleet = tiny(
        **{
            "clusters": [{"name": "n", "devices": [{"name": "d", "storage": "60 kB"}]}],
            "reference.training.epochs": 1,
            "backbone.distillation.training.epochs": 1,
        }
    )
    summary = customize(fleet, tmp_path / "run")
    assert summary.clusters[0].similarity == [[1.0]]
    assert [device.name for device in summary.devices] == ["d"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_missed_before_the_run(
    tiny: Callable[..., Fleet], tmp_path: Path
):
    with pytest.raises(FleetError, match="accelerator: cuda is not here"):
        customize(tiny(accelerator="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cloud_on_a_gpu(tiny: Callable[..., Fleet], tmp_path: Path):
    torch.cuda.reset_peak_memory_stats()
    summary = customize(tiny(accelerator="cuda"), tmp_path / "run")
    assert torch.cuda.max_memory_allocated() > 0
    assert summary.reference.accuracy > 0.5
    for device in summary.devices:
        assert acme_fleet.load(tmp_path / "run/devices" / device.name).training is False
        assert device.size_bytes <= device.capacity_bytes
