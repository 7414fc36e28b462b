"""The fleet file: what is right is read exactly, what is wrong gets one clear message."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from acme_fleet.cli import EXAMPLE
from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Device, Fleet
from acme_fleet.errors import DamagedError, FleetError, RunError
from acme_fleet.inspection.plan import check_feasible, examine
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.sealed import write_sealed_json

_SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 1,
    "data": {"partition": {"scheme": "dirichlet", "alpha": 0.5}},
    "reference": {
        "model": {"hidden_size": 16, "layers": 2, "heads": 2, "neurons": 32},
        "training": {"epochs": 1},
    },
    "backbone": {"widths": [0.5, 1.0], "depths": [1, 2]},
    "clusters": [
        {
            "name": "north",
            "devices": [
                {"name": "cam-1", "storage": "400 kB", "energy": {"power_w": 2.0}},
                {"name": "cam-2", "storage": 500_000},
            ],
        },
        {"name": "south", "devices": [{"name": "badge", "storage": "2 MiB"}]},
    ],
}


def _changed(path: str, value: Any) -> dict[str, Any]:
    """The small fleet with one entry set; the last part of the path may be new."""
    content = copy.deepcopy(_SMALL)
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place: Any = content
    for part in parents:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[last] = value
    return content


def _read(tmp_path: Path, content: dict[str, Any]) -> Fleet:
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(content))
    return Fleet.from_yaml(path)


# --- what is right ----------------------------------------------------------------------------


def test_example_is_valid_and_says_what_it_means(tmp_path: Path):
    fleet = Fleet.from_yaml(EXAMPLE)
    assert [len(cluster.devices) for cluster in fleet.clusters] == [3, 3]
    assert fleet.devices[0].storage == 400_000
    assert fleet.data.source == "moved_digits"
    check_feasible(fleet, examine(fleet))


def test_example_explains_every_section():
    """Each top-level key of a fleet can be learned from the example."""
    content = yaml.safe_load(EXAMPLE.read_text())
    assert content.keys() == Fleet.model_fields.keys()
    assert EXAMPLE.read_text().count("#") > 10


@pytest.mark.parametrize("content", [_SMALL, yaml.safe_load(EXAMPLE.read_text())])
def test_written_fleet_reads_back_equal(tmp_path: Path, content: dict[str, Any]):
    fleet = _read(tmp_path, content)
    again = tmp_path / "resolved.yaml"
    again.write_text(fleet.to_yaml())
    assert Fleet.from_yaml(again) == fleet
    assert Fleet.from_yaml(again).to_yaml() == fleet.to_yaml()


def test_written_fleet_spells_out_every_default(tmp_path: Path):
    fleet = _read(tmp_path, {"clusters": _SMALL["clusters"]})
    written = yaml.safe_load(fleet.to_yaml())
    assert written["seed"] == 0
    assert written["data"]["partition"] == {"scheme": "iid"}
    assert written["reference"]["training"]["weight_decay"] == 0.05
    assert written["clusters"][1]["devices"][0]["storage"] == 2 * 2**20


def test_fleet_with_everything_set_reads_back_equal(tmp_path: Path):
    content = _changed("data", {"source": "huggingface", "train": "./mine", "test": "validation"})
    content["data"] |= {"classes": [3, "cat", 7], "image_size": 32, "label_column": "fine"}
    content["data"] |= {"partition": {"scheme": "natural", "column": "who"}}
    content["clusters"][0]["data"] = "edge.npz"
    content["clusters"][0]["devices"][0]["data"] = "own/cam-1"
    fleet = _read(tmp_path, content)
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "resolved.yaml"
    again.write_text(fleet.to_yaml())
    assert Fleet.from_yaml(again) == fleet
    assert fleet.data.classes == ["3", "cat", "7"]
    assert fleet.data.test == "validation"  # a split's name, not a path


@given(st.integers(1, 2**53))
def test_size_in_bytes_is_exact(size: int):
    assert Device(name="a", storage=size).storage == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("400 kB", 400_000), ("400kB", 400_000), ("400 KB", 400_000), (" 1.5 MB ", 1_500_000)),
        *(("2 MiB", 2_097_152), ("0.5 KiB", 512), ("1 GiB", 2**30), ("1 GB", 10**9), ("7 B", 7)),
        *((4096, 4096), (4096.0, 4096), (".5 kb", 500)),
    ],
)
def test_sizes(text: Any, size: int):
    assert Device.model_validate({"name": "a", "storage": text}).storage == size


@pytest.mark.parametrize(
    "size",
    [
        *("400", "400 k", "400 kb/s", "kB", "4 0 kB", "1.2.3 kB", "1e3 kB", "-4 kB", "0 kB", ""),
        *(0, -1, 1.5, None, [400], "0.1 B", "9999999999 GB", 2**53 + 1, float("inf")),
    ],
)
def test_bad_sizes(tmp_path: Path, size: Any):
    with pytest.raises(FleetError) as refusal:
        _read(tmp_path, _changed("clusters.0.devices.1.storage", size))
    assert "clusters.0.devices.1.storage" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bad_unit_says_which_units_there_are(tmp_path: Path):
    with pytest.raises(FleetError, match=r"'400 kilo' is not a size; write bytes, .* kB, MB, KiB"):
        _read(tmp_path, _changed("clusters.0.devices.0.storage", "400 kilo"))


def test_exponents_as_people_write_them(tmp_path: Path):
    """YAML takes 1e-3 for text, a number would need 1.0e-3."""
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(_SMALL) + "search: {learning_rate: 1e-3}\n")
    assert Fleet.from_yaml(path).search.learning_rate == 0.001


def test_every_device_may_be_required(tmp_path: Path):
    assert _read(tmp_path, _changed("personalization.quorum", 1)).personalization.quorum == 1


# --- paths ------------------------------------------------------------------------------------


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "fleets" / "one"
    folder.mkdir(parents=True)
    content = _changed("data", {"source": "arrays", "train": "../a.npz", "test": ["b.npz", "/c"]})
    content["clusters"][0]["data"] = "edge.npz"
    content["clusters"][0]["devices"][0]["data"] = "cam.npz"
    (folder / "fleet.yaml").write_text(yaml.safe_dump(content))
    fleet = Fleet.from_yaml("fleets/one/fleet.yaml")
    assert fleet.data.train == tmp_path / "fleets" / "a.npz"
    assert fleet.data.test == [folder / "b.npz", Path("/c")]
    assert fleet.clusters[0].data == folder / "edge.npz"
    assert fleet.devices[0].data == folder / "cam.npz"
    assert fleet.devices[1].data is None


def test_name_on_the_hub_is_no_path(tmp_path: Path):
    content = _changed("data", {"source": "huggingface", "train": "org/name", "test": "test"})
    assert _read(tmp_path, content).data.train == "org/name"


# --- what is wrong ----------------------------------------------------------------------------

# The entry that is changed, what to, and what the message must say: the place and the remedy.
_MISTAKES = {
    "unknown key": (
        "reference.modle",
        {},
        "reference.modle: unknown key; remove it or correct its spelling; did you mean model?",
    ),
    "unknown key at the top": (
        "clusterz",
        [],
        "clusterz: unknown key; remove it",
    ),
    "unknown key of the third level": (
        "reference.training.epocs",
        3,
        "reference.training.epocs: unknown key; remove it or correct its spelling; did you mean "
        "epochs?",
    ),
    "unknown key of a list's entry": (
        "clusters.0.devices.0.storrage",
        3,
        "clusters.0.devices.0.storrage: unknown key; remove it or correct its spelling; did you "
        "mean storage?",
    ),
    "unknown key of a device": ("clusters.0.devices.0.ram", 3, "clusters.0.devices.0.ram: unknown"),
    "negative constant": (
        "clusters.0.devices.0.energy.power_w",
        -2.0,
        "clusters.0.devices.0.energy.power_w: Input should be greater than or equal to 0 (got -2",
    ),
    "infinite constant": (
        "clusters.1.devices.0.energy.latency_s",
        float("inf"),
        "clusters.1.devices.0.energy.latency_s: Input should be",
    ),
    "nan": ("search.learning_rate", float("nan"), "search.learning_rate: Input should be a finite"),
    "two devices of one name": (
        "clusters.1.devices.0.name",
        "cam-1",
        "cluster and device names must differ from each other and from 'cloud'; "
        "used more than once: cam-1",
    ),
    "device named as a cluster": ("clusters.1.devices.0.name", "north", "more than once: north"),
    "two clusters of one name": ("clusters.1.name", "north", "more than once: north"),
    "device named cloud": ("clusters.0.devices.0.name", "cloud", "from 'cloud'"),
    "cluster named cloud": ("clusters.0.name", "cloud", "from 'cloud'"),
    "name that is a path": (
        "clusters.0.name",
        "../up",
        "clusters.0.name: a name has 1 to 64",
    ),
    "name that is a number": ("clusters.0.name", 7, "clusters.0.name: Input should be a valid str"),
    "no clusters": ("clusters", [], "clusters: List should have at least 1 item"),
    "clusters without list": ("clusters", None, "clusters: Input should be a valid list"),
    "cluster without devices": ("clusters.1.devices", [], "clusters.1.devices: List should have"),
    "width above one": (
        "backbone.widths.1",
        1.5,
        "backbone.widths.1: Input should be less than or",
    ),
    "width zero": ("backbone.widths.0", 0, "backbone.widths.0: Input should be greater than 0"),
    "no widths": ("backbone.widths", [], "backbone.widths: List should have at least 1 item"),
    "no depths": ("backbone.depths", [], "backbone.depths: List should have at least 1 item"),
    "depth zero": ("backbone.depths.0", 0, "backbone.depths.0: Input should be greater than 0"),
    "heads": (
        "reference.model.heads",
        3,
        "reference.model: hidden_size 16 is not a multiple of heads 3",
    ),
    "negative seed": ("seed", -1, "seed: Input should be greater than or equal to 0 (got -1)"),
    "share above one": (
        "data.public",
        1.2,
        "data.public: give a share between 0 and 1, or the path of the cloud's own data (got 1.2)",
    ),
    "share of nothing": (
        "data.public",
        0,
        "data.public: give a share between 0 and 1, or the path",
    ),
    "public neither": ("data.public", [], "data.public: give a share between 0 and 1, or the path"),
    "epochs": (
        "reference.training.epochs",
        0,
        "reference.training.epochs: Input should be greater",
    ),
    "source": (
        "data.source",
        "cifar",
        "data: source 'cifar' needs a path in `train`; digits, moved",
    ),
    "source without path": ("data.source", "parquet", "data: source 'parquet' needs a path in `tr"),
    "digits with a path": ("data.train", "x.npz", "data: source 'digits' has its own samples; rem"),
    "scheme": ("data.partition.scheme", "random", "'iid', 'pathological', 'dirichlet', 'natural'"),
    "partition without parameter": (
        "data.partition",
        {"scheme": "dirichlet"},
        "data.partition.dirichlet.alpha: is missing; add it",
    ),
    "partition of another scheme": (
        "data.partition",
        {"scheme": "iid", "alpha": 1},
        "data.partition.iid.alpha: unknown key",
    ),
    "prune everything": ("personalization.prune_share", 1.0, "personalization.prune_share: Input"),
    "rows by class": ("personalization.classifier", "holders", "mix: importance mixes none"),
    "a sketch of nothing": (
        "personalization",
        {"similarity": "none", "privacy": {"sketch_dim": 4}},
        "similarity: none sends none; leave privacy.sketch_dim out",
    ),
    "quorum": ("personalization.quorum", 1.1, "personalization.quorum: Input should be less than"),
    "text for a number": ("search.steps", "many", "search.steps: Input should be a valid integer"),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_mistake_gets_one_line_with_place_and_remedy(tmp_path: Path, mistake: str):
    path, value, words = _MISTAKES[mistake]
    with pytest.raises(FleetError) as refusal:
        _read(tmp_path, _changed(path, value))
    lines = str(refusal.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'fleet.yaml'}: ")
    assert words in lines[0]


def test_several_mistakes_get_a_line_each(tmp_path: Path):
    content = _changed("backbone.widths", [2.0, 0.5]) | {"seed": "x", "sead": 1}
    with pytest.raises(FleetError) as refusal:
        _read(tmp_path, content)
    told = str(refusal.value).splitlines()
    assert len(told) == 3
    for place in ("backbone.widths.0", "seed", "sead"):
        assert any(f": {place}: " in line for line in told)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"clusters: [",
            b"a: b: c",
            b"\t- x",
            b"{",
            b"- &a [*a",
            b"name: !!python/object:os.x {}",
        ),
        *(b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xff", b"when: 2020-13-45", b"a: \x07"),
    ],
)
def test_file_that_is_no_yaml(tmp_path: Path, content: bytes):
    path = tmp_path / "fleet.yaml"
    path.write_bytes(content)
    with pytest.raises(FleetError, match="is not valid YAML") as refusal:
        Fleet.from_yaml(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("content", ["", "# nothing", "- a\n- b", "just text", "3", "null"])
def test_file_without_settings(tmp_path: Path, content: str):
    path = tmp_path / "fleet.yaml"
    path.write_text(content)
    with pytest.raises(FleetError, match="holds no settings; `acme init"):
        Fleet.from_yaml(path)


def test_missing_file_and_directory(tmp_path: Path):
    with pytest.raises(FleetError, match=r"cannot read the fleet file .*none\.yaml: no such file"):
        Fleet.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(FleetError, match=r"cannot read the fleet file .*it is a folder"):
        Fleet.from_yaml(tmp_path)


def test_more_depth_than_the_reference_has(tmp_path: Path):
    fleet = _read(tmp_path, _changed("backbone.depths", [1, 3]))
    with pytest.raises(FleetError, match=r"backbone\.depths: 3 is more than the reference's 2 lay"):
        examine(fleet)


def test_patches_that_do_not_cover_the_image(tmp_path: Path):
    fleet = _read(tmp_path, _changed("reference.model.patch_size", 3))
    with pytest.raises(FleetError, match=r"patch_size: images of 8 × 8 .* set data\.image_size"):
        examine(fleet)


def test_storage_that_nothing_fits_names_cluster_device_and_sizes(tmp_path: Path):
    fleet = _read(tmp_path, _changed("clusters.1.devices.0.storage", "5 kB"))
    plan = examine(fleet)
    with pytest.raises(FleetError) as refusal:
        check_feasible(fleet, plan)
    for words in (
        "cluster south",
        f"{plan.sizes.min():,} bytes",
        "badge stores 5,000",
        "raise its",
    ):
        assert words in str(refusal.value)


def test_edge_server_without_enough_data_is_told_before_training(tmp_path: Path):
    """Its data are cut in three parts, none of which may be empty."""
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.array([0, 1, 1]))
    fleet = _read(tmp_path, _changed("clusters.1.data", "x.npz"))
    with pytest.raises(
        FleetError, match="cluster south: its edge server has 3 samples and needs 4"
    ):
        examine(fleet)


# --- a fleet cannot be changed, a run directory is of one fleet -------------------------------


def test_fleet_is_frozen(tmp_path: Path):
    fleet = _read(tmp_path, _SMALL)
    for settings, field in ((fleet, "seed"), (fleet.data, "public"), (fleet.devices[0], "storage")):
        with pytest.raises(ValidationError):
            setattr(settings, field, 1)
    with pytest.raises(ValidationError):
        Data.model_validate({"source": "digits", "train_path": "x"})


class TestRunDirectory:
    @pytest.fixture
    def fleet(self, tmp_path: Path) -> Fleet:
        return _read(tmp_path, _SMALL)

    def test_new_and_empty_directories_are_taken(self, tmp_path: Path, fleet: Fleet):
        RunDirectory.create(tmp_path / "a" / "b", fleet, resume=False)
        (tmp_path / "empty").mkdir()
        RunDirectory.create(tmp_path / "empty", fleet, resume=False)
        assert RunDirectory.open(tmp_path / "empty").fleet == fleet

    def test_a_run_is_not_overwritten(self, tmp_path: Path, fleet: Fleet):
        run = RunDirectory.create(tmp_path / "run", fleet, resume=False)
        run.events.write_text("")
        with pytest.raises(RunError, match="already holds a run; choose another --out") as refusal:
            RunDirectory.create(tmp_path / "run", fleet, resume=False)
        # A command that can be typed as it is; `acme demo` has no --resume.
        command = f"acme run {run.path / 'fleet.yaml'} --out {run.path} --resume"
        assert command in str(refusal.value)
        assert RunDirectory.create(tmp_path / "run", fleet, resume=True).fleet == fleet

    def test_a_run_that_failed_at_once_can_be_tried_again(self, tmp_path: Path, fleet: Fleet):
        RunDirectory.create(tmp_path / "run", fleet, resume=False)
        RunDirectory.create(tmp_path / "run", fleet, resume=False)
        other = fleet.model_copy(update={"seed": fleet.seed + 1})
        with pytest.raises(RunError, match="already holds a run"):
            RunDirectory.create(tmp_path / "run", other, resume=False)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"seed": 2}, "seed: 1 there, 2 here"),
            ({"name": "other"}, "name: 'small' there, 'other' here"),
        ],
    )
    def test_another_fleet_is_refused(
        self, tmp_path: Path, fleet: Fleet, change: dict[str, Any], told: str
    ):
        RunDirectory.create(tmp_path / "run", fleet, resume=False)
        message = r"run of another fleet or seed; .* another --out"
        with pytest.raises(RunError, match=message) as refusal:
            RunDirectory.create(tmp_path / "run", fleet.model_copy(update=change), resume=True)
        assert str(refusal.value).splitlines()[1:] == ["What differs:", told]
        assert "go on with that run: acme run " in str(refusal.value)

    def test_only_what_differs_is_told(self, tmp_path: Path, fleet: Fleet):
        content = fleet.model_dump(mode="json")
        content["clusters"][0]["devices"].pop()
        content["personalization"]["local"]["epochs"] = 77
        RunDirectory.create(tmp_path / "run", fleet, resume=False)
        with pytest.raises(RunError) as refusal:
            RunDirectory.create(tmp_path / "run", Fleet.parse(content), resume=True)
        before = fleet.personalization.local.epochs
        assert set(str(refusal.value).splitlines()[2:]) == {
            f"personalization.local.epochs: {before} there, 77 here",
            "clusters.0.devices: other entries there, other entries here",
        }

    def test_run_on_many_hosts_is_gone_on_with_there(self, tmp_path: Path, fleet: Fleet):
        run = RunDirectory.create(tmp_path / "run", fleet, resume=False)
        assert run.resume_command.endswith("--resume")
        run.cloud.mkdir()
        write_sealed_json(run.identity, {"run": "1", "config": "/etc/acme/cloud.yaml"})
        assert run.resume_command.endswith("--engine flower --config /etc/acme/cloud.yaml")
        RunDirectory.create(tmp_path / "run", fleet, resume=False)  # nothing has been done yet
        (run.cloud / "reference.safetensors").touch()
        with pytest.raises(RunError, match=r"already holds a run; .* --engine flower --config"):
            RunDirectory.create(tmp_path / "run", fleet, resume=False)

    @pytest.mark.parametrize("there", ["nothing", "a folder", "its fleet"])
    def test_resume_starts_where_there_is_nothing_yet(
        self, tmp_path: Path, fleet: Fleet, there: str
    ):
        """A service that is started again and again has one command."""
        run = RunDirectory(tmp_path / "run")
        if there == "a folder":
            run.path.mkdir()
        elif there == "its fleet":
            RunDirectory.create(run.path, fleet, resume=False)
        assert not run.begun()
        assert RunDirectory.create(run.path, fleet, resume=True).fleet == fleet
        run.events.touch()
        assert run.begun()

    @pytest.mark.parametrize("same", [True, False])
    def test_damaged_fleet_is_noticed(self, tmp_path: Path, fleet: Fleet, same: bool):
        """The command that goes on names this file: the seed in it must not be another."""
        run = RunDirectory.create(tmp_path / "run", fleet, resume=False)
        path = run.path / "fleet.yaml"
        text = path.read_text()
        path.write_text(text.replace("seed: 1\n", "seed: 3\n"))
        with pytest.raises(DamagedError, match=r"fleet\.yaml was changed or is damaged"):
            _ = run.fleet
        if same:  # the fleet that it was begun with makes it whole again
            assert RunDirectory.create(run.path, fleet, resume=True).fleet == fleet
            assert path.read_text() == text
        else:
            with pytest.raises(DamagedError, match=r"fleet\.yaml was changed or is damaged"):
                RunDirectory.create(run.path, Fleet.from_yaml(path), resume=True)

    def test_fleet_that_was_cut_off_is_noticed_wherever(self, tmp_path: Path, fleet: Fleet):
        """A beginning can be a fleet too, of fewer devices: it must not pass for the whole."""
        run = RunDirectory.create(tmp_path / "run", fleet, resume=False)
        path = run.path / "fleet.yaml"
        text = path.read_text()
        ends = [place for place in range(len(text)) if text[place] == "\n"]
        for length in (0, 1, 20, 40, 80, *ends[:3], *ends[-12:-1]):
            path.write_text(text[:length])
            with pytest.raises(DamagedError, match=re.escape(str(path))):
                _ = run.fleet

    def test_other_peoples_files_are_left_alone(self, tmp_path: Path, fleet: Fleet):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("x")
        (tmp_path / "file").write_text("x")
        for path, resume in itertools.product(("home", "file"), (False, True)):
            with pytest.raises(
                RunError,
                match=r"is not an empty directory, and has no fleet\.yaml of a run; choose",
            ):
                RunDirectory.create(tmp_path / path, fleet, resume=resume)
        with pytest.raises(RunError, match=r"cannot write .*: a part of the path is not a folder"):
            RunDirectory.create(tmp_path / "file" / "below", fleet, resume=False)

    def test_directory_without_a_run(self, tmp_path: Path):
        with pytest.raises(RunError, match=r"holds no run: it has no fleet\.yaml"):
            RunDirectory.open(tmp_path)
