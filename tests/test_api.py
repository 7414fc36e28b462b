"""The library for programs: one call, a result that shows itself, callbacks, trackers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import acme_fleet
from acme_fleet import api, pipeline, tracking
from acme_fleet.api import Run, customize, open_run
from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError, RunError
from acme_fleet.runs.callbacks import Callback, CallbackObserver
from acme_fleet.runs.notes import numbers_in, training_note
from acme_fleet.runs.summary import Summary
from tiny_fleet import SHORT, tiny


class Watcher(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def on_run_begin(self, fleet: Fleet, out: Path) -> None:
        self.told.append(("begin", fleet.name, out.name))

    def on_stage_begin(self, actor: str, stage: str) -> None:
        self.told.append(("stage", actor, stage))

    def on_log(
        self, actor: str, stage: str, done: int, total: int, logs: Mapping[str, float]
    ) -> None:
        self.told.append(("log", actor, stage, done, total, dict(logs)))

    def on_stage_end(self, actor: str, stage: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(("ended", actor, stage))

    def on_run_end(self, summary: Summary, out: Path) -> None:
        self.told.append(("end", len(summary.devices)))

    def on_run_error(self, error: BaseException) -> None:
        self.told.append(("error", type(error).__name__))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Watcher]:
    watcher = Watcher()
    path = tmp_path_factory.mktemp("api") / "fleet.yaml"
    path.write_text(tiny(**SHORT).to_yaml())
    return customize(path, path.parent / "run", callbacks=[watcher], progress=False), watcher


@pytest.fixture
def run(made: tuple[Run, Watcher]) -> Run:
    return made[0]


# --- the package ------------------------------------------------------------------------------


def test_dir_shows_what_there_is_and_all_of_it_is_there():
    shown = dir(acme_fleet)
    assert {"Callback", "Fleet", "Run", "customize", "load", "open_run"} <= set(shown)
    assert all(getattr(acme_fleet, name) is not None for name in shown)
    with pytest.raises(AttributeError, match="no attribute 'custom'"):
        _ = acme_fleet.custom


def test_without_a_directory_it_is_named_after_the_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, capsys: pytest.CaptureFixture[str]
):
    asked: list[Path] = []

    def pretended(fleet: Fleet, out: Path, **_: Any) -> Summary:
        asked.append(out)
        return Summary.read(run.path / "summary.json")

    monkeypatch.setattr(pipeline, "customize", pretended)
    monkeypatch.chdir(tmp_path)
    assert customize(tiny()).path == Path("runs/tiny")
    assert asked == [Path("runs/tiny")]


# --- the result -------------------------------------------------------------------------------


def test_it_shows_itself_in_short(run: Run):
    read = Summary.read(run.path / "summary.json")
    for shown in (run, read, run.device("cam-1"), tiny()):
        assert len(repr(shown)) < 200
        assert "\n" not in repr(shown)
        assert repr(shown) == str(shown)
    assert "4 devices, accuracy 0." in repr(run)
    assert open_run(run.path) == run == read
    assert read == run
    assert run != read.model_copy(update={"seed": 99})


def test_a_notebook_shows_a_table(run: Run):
    shown = run._repr_html_()
    assert shown.count("<tr>") == 5
    assert "<td>badge-2</td>" in shown
    one = run.device("badge-2")._repr_html_()
    assert one.count("<tr>") == 2
    assert "<td>badge-2</td>" in one


def test_a_whole_run_is_no_model(run: Run):
    with pytest.raises(RunError, match=r"holds a whole run; name a device's folder: "):
        acme_fleet.load(run.path)


def test_names_are_no_markup_in_a_notebook(run: Run):
    named = Run.of(run.path, run.model_copy(update={"name": "<script>"}))
    assert "<script>" not in named._repr_html_()


def test_a_table_of_all_devices(run: Run):
    pandas = pytest.importorskip("pandas")
    table = run.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.index) == [device.name for device in run.devices]
    assert table.loc["cam-1", "accuracy"] == run.device("cam-1").summary.accuracy
    assert {"size_bytes", "width", "precision"} <= set(table.columns)


def test_without_pandas_it_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(FleetError, match="pip install pandas"):
        run.to_pandas()


def test_the_front_of_a_cluster(run: Run):
    figure = run.plot_front("south")
    assert figure.axes
    assert figure._repr_png_().startswith(b"\x89PNG")  # so that any notebook shows it
    with pytest.raises(RunError, match="no cluster 'west'; it has north"):
        run.plot_front("west")


def test_a_device_predicts(run: Run, tmp_path: Path):
    from PIL import Image

    from acme_fleet.data.sources.files import read_digits

    device = run.device("cam-1")
    array = read_digits().items[0]
    Image.fromarray(array).save(tmp_path / "0.png")
    by_array, by_image, by_path = device.predict(
        array, Image.fromarray(array), str(tmp_path / "0.png")
    )
    assert by_array == pytest.approx(by_image, abs=1e-6)
    assert by_image == pytest.approx(by_path, abs=1e-6)
    assert sum(by_array.values()) == pytest.approx(1, abs=1e-5)
    assert list(by_array.values()) == sorted(by_array.values(), reverse=True)
    assert device.predict() == device.predict([]) == []
    assert device.predict([array, tmp_path / "0.png"]) == device.predict(array, tmp_path / "0.png")
    for other in (3, None, b"\x89PNG", torch.from_numpy(array)):
        with pytest.raises(FleetError, match="takes images: paths, PIL images and NumPy arrays"):
            device.predict(other)
    assert not device.model().training
    with pytest.raises(FleetError, match="cannot read"):
        device.predict(tmp_path / "nowhere.png")
    with pytest.raises(FleetError, match="classifies; use predict"):
        device.complete("a")
    with pytest.raises(FleetError, match="an image of shape"):
        device.predict(np.zeros((2, 2, 7), dtype=np.uint8))
    with pytest.raises(RunError, match="no device 'cam-9'; it has cam-1"):
        run.device("cam-9")


# --- callbacks --------------------------------------------------------------------------------


def test_callbacks_hear_a_run_from_beginning_to_end(made: tuple[Run, Watcher]):
    told = made[1].told
    assert told[0] == ("begin", "tiny", "run")
    assert told[-1] == ("end", 4)
    assert told.index(("stage", "cloud", "reference")) < told.index(("ended", "cloud", "reference"))
    logs = next(t[5] for t in told if t[:3] == ("log", "cloud", "reference"))
    assert 0 < logs["train_loss"] < 10
    assert 0 <= logs["eval_accuracy"] <= 1
    assert ("stage", "cam-1", "round 1") in told
    begun = [t[1:3] for t in told if t[0] == "stage"]
    assert sorted(begun) == sorted(t[1:3] for t in told if t[0] == "ended")


@pytest.mark.parametrize("given", [Watcher(), [Watcher], [print]])
def test_what_is_no_list_of_callbacks_is_refused_before_any_work(given: Any, tmp_path: Path):
    with pytest.raises(FleetError, match=r"callbacks: give a list of instances"):
        customize(tiny(**SHORT), tmp_path / "run", callbacks=given, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_refused_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(pipeline, "load_world", lambda *_: pytest.fail("data were read"))
    with pytest.raises(RunError, match=r"cannot write .*run: a part of the path is not a folder"):
        customize(tiny(**SHORT), tmp_path / "file" / "run", progress=False)


def test_a_dict_is_no_fleet():
    with pytest.raises(FleetError, match=r"is a dict; Fleet.parse makes one of"):
        customize({"name": "a"})  # type: ignore[arg-type]


def test_a_run_that_fails_is_told(tmp_path: Path):
    watcher = Watcher()
    fleet = tiny(**{"backbone.depths": [9]})
    with pytest.raises(FleetError):
        customize(fleet, tmp_path / "run", callbacks=[watcher], progress=False)
    assert watcher.told == [("begin", "tiny", "run"), ("error", "FleetError")]


def test_numbers_of_a_note():
    note = training_note(0.12345, "accuracy 0.9630")
    assert note == "loss 0.1235, validation accuracy 0.9630"
    assert numbers_in(note) == {"train_loss": 0.1235, "eval_accuracy": 0.963}
    assert numbers_in(training_note(1.5e-7)) == {"train_loss": 1.5e-7}
    assert (
        numbers_in(training_note(2.0, "accuracy 0.5, perplexity 12.3"))["eval_perplexity"] == 12.3
    )
    verdict = "the untouched checkpoint is kept: no epoch was better on validation data"
    assert numbers_in(f"{verdict}; last epoch: {note}") == numbers_in(note)
    assert numbers_in("[/red] loss of nothing") == {}


# --- trackers ---------------------------------------------------------------------------------


class Pretended:
    """Stands for MLflow: keeps what it is given, and begins a run."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def called(*values: Any, **named: Any) -> SimpleNamespace:
            self.calls.append((name, *values, named))
            return SimpleNamespace(info=SimpleNamespace(run_id="a run"))

        return called


def test_mlflow_gets_settings_metrics_and_files(run: Run, monkeypatch: pytest.MonkeyPatch):
    library = Pretended()
    monkeypatch.setitem(sys.modules, "mlflow", library)
    keeper = tracking.tracker("mlflow", "http://127.0.0.1:5000")
    keeper.on_run_begin(tiny(), run.path)
    observer = CallbackObserver([keeper])
    for done in (0, 1):
        observer.stage("cloud", "reference", done, 2, done * "loss 0.5, validation accuracy 0.75")
    keeper.on_run_end(run, run.path)
    calls = {call[0]: call for call in library.calls}
    assert calls["set_tracking_uri"][1] == "http://127.0.0.1:5000"
    assert calls["log_params"][1]["reference.training.epochs"] == "10"
    metrics = [call for call in library.calls if call[0] == "log_metrics"]
    assert metrics[0][1] == {"reference/train_loss": 0.5, "reference/eval_accuracy": 0.75}
    assert metrics[0][2] == {"step": 1, "run_id": "a run"}
    # An active run is its thread's: without its identity a device's metrics begin another one.
    named = {call[0] for call in library.calls if call[-1].get("run_id") == "a run"}
    assert named == {"log_params", "log_metrics", "log_artifact"}
    assert metrics[1][1]["device/cam-1/test_accuracy"] == run.device("cam-1").summary.accuracy
    kept = {Path(call[1]).name for call in library.calls if call[0] == "log_artifact"}
    assert kept == {"fleet.yaml", "summary.json", "report.html"}
    assert calls["end_run"][1] == "FINISHED"


def test_a_tracker_that_fails_never_ends_a_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    library = SimpleNamespace(set_tracking_uri=print, set_experiment=refuse)
    monkeypatch.setitem(sys.modules, "mlflow", library)
    keeper = tracking.tracker("mlflow", "http://127.0.0.1:9")
    keeper.on_run_begin(tiny(), run.path)
    keeper.on_run_end(run, run.path)
    assert caplog.text.count("MLflow keeps no more: no route") == 1


def test_a_tracker_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(FleetError, match="pip install 'acme-fleet\\[wandb\\]'"):
        tracking.tracker("wandb", "mine")
    with pytest.raises(FleetError, match="there is no 'neptune'; choose one of mlflow"):
        tracking.tracker("neptune", "mine")


def test_wandb_gets_a_project(run: Run, monkeypatch: pytest.MonkeyPatch):
    begun, library = Pretended(), SimpleNamespace()
    asked: dict[str, Any] = {}

    def init(**settings: Any) -> Pretended:
        asked.update(settings)
        return begun

    library.init = init
    monkeypatch.setitem(sys.modules, "wandb", library)
    keeper = tracking.tracker("wandb", "https://wandb.ai/team/mine")
    keeper.on_run_begin(tiny(), run.path)
    keeper.on_run_error(KeyboardInterrupt())
    assert (asked["entity"], asked["project"], asked["name"]) == ("team", "mine", "tiny-run")
    assert begun.calls[-1] == ("finish", {"exit_code": 1})


def test_the_public_function_is_this_one():
    assert acme_fleet.customize is api.customize
