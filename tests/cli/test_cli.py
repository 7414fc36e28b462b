"""The command line: what it says, what it exits with, and what it does not import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import acme_fleet
from acme_fleet import pipeline
from acme_fleet.cli import EXAMPLE, app
from acme_fleet.config.backbone import Selection
from acme_fleet.config.devices import common
from acme_fleet.config.fleet import Fleet
from acme_fleet.failures import called
from acme_fleet.inspection.plan import examine
from acme_fleet.report.page.device_tables import Table as Figures
from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.report.terminal.run import print_figures, print_summary
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.forecast import Earlier, Expected
from acme_fleet.runs.summary import ClusterSummary, ReferenceSummary, Summary, Traffic
from tiny_fleet import tiny

_COMMANDS = (
    *("demo", "init", "check", "run", "report"),
    *("predict", "explain", "profile", "pretrain"),
)


def _acme(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(EXAMPLE.read_text())
    return path


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_lines_to_paste_name_the_command_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / "a folder" / "acme"
    own.parent.mkdir()
    own.write_text("#!/bin/sh")
    own.chmod(0o755)
    for typed, path, said in (
        (own, "", f"'{own}'"),
        (own, own.parent, "acme"),
        ("pytest", "", "acme"),
        ("x/acme_fleet/__main__.py", "", "acme"),
    ):
        monkeypatch.setattr("sys.argv", [str(typed)])
        monkeypatch.setenv("PATH", str(path))
        assert called() == said


# --- help -------------------------------------------------------------------------------------

_IMPORTED = """
import sys
from acme_fleet.cli import app
try:
    app(["--help"])
except SystemExit as stop:
    assert stop.code == 0
heavy = ("torch", "transformers", "numpy", "scipy", "sklearn", "ot", "matplotlib", "jinja2",
         "moocore", "pydantic", "yaml", "safetensors", "PIL", "datasets")
sys.stderr.write(",".join(name for name in heavy if name in sys.modules))
"""


def test_help_lists_the_commands_and_imports_nothing_heavy():
    """Half a second, most of it Python's own start; torch alone takes two."""
    told = subprocess.run(
        [sys.executable, "-c", _IMPORTED],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stderr == ""
    for command in _COMMANDS:
        assert f" {command} " in told.stdout


def test_importing_the_library_imports_nothing_heavy():
    code = "import sys, acme_fleet; print(acme_fleet.__version__, 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [acme_fleet.__version__, "False"]


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself(command: str):
    result = _acme(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_without_arguments_there_is_help():
    assert "Customise a fleet" in _acme().output


# --- init -------------------------------------------------------------------------------------


def test_init_writes_a_commented_file_that_check_accepts(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    result = _acme("init", path)
    assert result.exit_code == 0
    assert f"acme check {path}" in result.output
    assert path.read_text() == EXAMPLE.read_text()
    assert sum("#" in line for line in path.read_text().splitlines()) > 10
    assert _acme("check", path).exit_code == 0


def test_init_overwrites_nothing(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    result = _acme("init", path)
    assert result.exit_code == 2
    assert "exists already; it was not changed" in result.stderr
    assert path.read_text() == "mine"


def test_init_where_nothing_can_be_written(tmp_path: Path):
    result = _acme("init", tmp_path / "no" / "such" / "folder.yaml")
    assert result.exit_code == 2
    assert "cannot write" in result.stderr


# --- check ------------------------------------------------------------------------------------


@pytest.mark.parametrize("matching", ["cluster", "device"])
def test_much_storage_does_not_make_messages_long(tmp_path: Path, matching: str):
    """A device of a gigabyte gets the largest candidate and header at most."""
    roomy = [{"name": "n", "devices": [{"name": "d", "storage": "1 GB"}]}]
    path = tmp_path / "roomy.yaml"
    path.write_text(tiny(clusters=roomy, selection={"matching": matching}).to_yaml())
    result = _acme("check", path)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.output.splitlines() if re.match("│ *n │ *1 │.*–", line)]
    assert "MB" not in row
    assert "GB" not in row


def test_check_prints_every_candidate_with_its_exact_size(fleet_file: Path):
    before = sorted(fleet_file.parent.rglob("*"))
    result = _acme("check", fleet_file)
    assert result.exit_code == 0, result.output
    fleet = Fleet.from_yaml(fleet_file)
    plan = examine(fleet)
    lines = result.output.replace("│", " ").splitlines()
    candidates = lines[: next(n for n, line in enumerate(lines) if "expected bytes" in line)]
    for variant, size in zip(plan.grid.variants, plan.sizes, strict=True):
        runtimes = {c.name: common(d.precisions for d in c.devices) for c in fleet.clusters}
        fitting = [
            "fits" if size <= limit and variant.precision in runtimes[name] else "–"
            for name, limit in plan.limits.items()
        ]
        (row,) = [line.split() for line in candidates if f" {size:,} " in line]
        shares = [f"{variant.width:g}", str(variant.depth), variant.precision]
        assert row == [*shares, f"{size:,}", *fitting]
    assert len(plan.sizes) == 24
    assert max(plan.sizes) == 824_832  # to the byte
    for cluster in fleet.clusters:
        assert cluster.name in result.output
    assert "expected bytes on each link" in result.output
    admitted = [
        line.split()
        for line in lines
        if " of " in line and ("one backbone" in line or " badge-2 " in line)
    ]
    assert [row[-5:] for row in admitted] == [
        ["kB", "6", "of", "24", "325,664"],
        ["kB", "10", "of", "24", "148,688"],
        ["kB", "11", "of", "24", "176,824"],
    ]
    assert sorted(fleet_file.parent.rglob("*")) == before  # it leaves nothing behind


def test_check_of_a_limit_that_nothing_fits(fleet_file: Path):
    _change(fleet_file, "storage: 160 kB", "storage: 9 kB")
    result = _acme("check", fleet_file)
    smallest = examine(Fleet.from_yaml(fleet_file)).sizes.min()
    assert result.exit_code == 2
    for words in ("cluster south", "badge-1", "9,000", f"{smallest:,} bytes", "raise its storage"):
        assert words in result.stderr
    assert f"{smallest:,}" in result.stdout  # of the candidates, which alone are shown
    assert "expected bytes" not in result.stdout
    assert "warning" not in result.output


@pytest.mark.parametrize("command", ["check", "run"])
def test_mistake_in_the_file_is_one_message_and_exit_code_2(
    fleet_file: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    _change(fleet_file, "power_w: 2.0,", "power_w: -2.0,")
    result = _acme(command, fleet_file)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {fleet_file}: clusters.0.devices.0.energy.power_w: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["check", "run"])
def test_file_that_is_not_there(tmp_path: Path, command: str):
    result = _acme(command, tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml: no such file" in result.stderr


# --- run --------------------------------------------------------------------------------------


def test_run_that_nothing_fits_trains_nothing(fleet_file: Path, tmp_path: Path):
    _change(fleet_file, "storage: 160 kB", "storage: 9 kB")
    result = _acme("run", fleet_file, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "the smallest candidate is" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("classes_per_device: 6", "classes_per_device: 11", "the data set has 10 classes"),
        ("public: 0.7 ", "public: 0.9999 ", "and needs some of each"),
        ("source: moved_digits", "source: images\n  train: none", "none: no such file or folder"),
        ("edge_share: 0.4 ", "classes: [0, 10] ", "unknown 10; the data set has 0,"),
        ("patch_size: 3", "patch_size: 5", "cannot be cut into patches"),
        ("depths: [2, 3, 4]", "depths: [7]", "7 is more than the reference's 4 layers"),
    ],
)
def test_data_that_do_not_fit_are_told_before_training(
    fleet_file: Path, tmp_path: Path, old: str, new: str, words: str
):
    _change(fleet_file, old, new)
    result = _acme("run", fleet_file, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_device_without_data_is_named(fleet_file: Path, tmp_path: Path):
    _change(fleet_file, "name: cam-2,", "name: cam-2, data: nowhere.npz,")
    result = _acme("run", fleet_file, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "device cam-2: data: " in result.stderr
    assert "nowhere.npz: no such file or folder" in result.stderr


@pytest.fixture
def begun(fleet_file: Path, tmp_path: Path) -> Path:
    """A run of the example that was stopped soon."""
    run = RunDirectory.create(tmp_path / "begun", Fleet.from_yaml(fleet_file), resume=False)
    run.events.write_text("")
    return run.path


@pytest.mark.parametrize("demo", [True, False])
def test_run_is_not_overwritten_and_it_says_how_to_go_on(fleet_file: Path, begun: Path, demo: bool):
    """`acme demo` has no --resume of its own: the command can be typed as it is told."""
    result = _acme("demo", "--out", begun) if demo else _acme("run", fleet_file, "--out", begun)
    assert result.exit_code == 2
    assert "already holds a run" in result.stderr
    assert f"acme run {begun / 'fleet.yaml'} --out {begun} --resume" in result.stderr


def test_run_of_another_fleet_is_not_resumed(fleet_file: Path, begun: Path):
    resume = ["run", fleet_file, "--out", begun, "--resume"]
    other_seed = _acme(*resume, "--seed", "7")
    _change(fleet_file, "rounds: 3", "rounds: 4")
    for result in (other_seed, _acme(*resume)):
        assert result.exit_code == 2
        assert "is a run of another fleet or seed" in result.stderr


def test_resume_where_nothing_is_there_yet_starts(
    fleet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started: list[bool] = []

    def customize(*_: Any, resume: bool, **__: Any) -> None:
        started.append(resume)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "customize", customize)
    result = _acme("run", fleet_file, "--out", tmp_path / "new", "--resume")
    assert started == [True]
    assert f"there is nothing in {tmp_path / 'new'} to go on with; the run starts" in result.stdout
    assert result.stderr.splitlines() == ["interrupted; nothing was written yet"]
    assert result.exit_code == 130


@pytest.mark.parametrize("seed", ["-1", "x", "1.5"])
def test_seed_that_is_none(fleet_file: Path, seed: str):
    result = _acme("run", fleet_file, "--seed", seed)
    assert result.exit_code == 2
    assert "--seed" in result.stderr


# --- report and predict -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["report"], ["predict", "--device", "cam-1"], ["explain", "--device", "cam-1"]]
)
def test_directory_without_a_run(tmp_path: Path, command: list[str]):
    result = _acme(*command, tmp_path)
    assert result.exit_code == 2
    assert "holds no run" in result.stderr


@pytest.mark.parametrize("command", [["report"], ["explain"], ["explain", "--device", "cam-1"]])
def test_report_of_an_unfinished_run(begun: Path, command: list[str]):
    result = _acme(*command, begun)
    assert result.exit_code == 2
    assert "is not finished; go on with it: acme run " in result.stderr


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_unknown_device(begun: Path, command: str):
    result = _acme(command, begun, "--device", "cam-9")
    assert result.exit_code == 2
    assert "no device 'cam-9'; it has cam-1, cam-2, cam-3, badge-1" in result.stderr


def test_predict_with_a_device_that_has_no_model_yet(begun: Path):
    result = _acme("predict", begun, "--device", "cam-1")
    assert result.exit_code == 2
    assert "is not finished; go on with it: acme run" in result.stderr
    assert "Traceback" not in result.output


def test_predict_needs_a_device(begun: Path):
    result = _acme("predict", begun)
    assert result.exit_code == 2
    assert "--device" in result.stderr


# --- what it shows ----------------------------------------------------------------------------


def _summary(lost: dict[str, str]) -> Summary:
    cluster = ClusterSummary(
        name="north",
        width=0.5,
        depth=2,
        storage_limit_bytes=1,
        candidates=[],
        feasible=1,
        front=1,
        header="",
        genotype={},
        device_names=["cam"],
        similarity=[[1.0]],
        lost=lost,
    )
    return Summary(
        name="a",
        seed=0,
        seconds={"reference": 1.5},
        reference=ReferenceSummary(params=1, patches=1, size_bytes=1, accuracy=0.5),
        selection=Selection(),
        clusters=[cluster],
        devices=[],
        traffic=Traffic(**dict.fromkeys(Traffic.model_fields, 1)),
    )


@pytest.mark.parametrize("reason", ["[/red] [type=missing, x] [b", "plain"])
def test_reason_of_a_loss_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], reason: str):
    """It may hold what rich takes for markup, and come from a device that means no good."""
    print_summary(_summary({"cam": reason}))
    assert f"lost cam: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize(("ratio", "told"), [(0.5, False), (82.7, True)])
def test_an_upload_above_the_raw_data_says_why(
    capsys: pytest.CaptureFixture[str], ratio: float, told: bool
):
    summary = _summary({})
    traffic = summary.traffic.model_copy(update={"upload_ratio": ratio})
    print_summary(summary.model_copy(update={"traffic": traffic}))
    assert ("the header and the rounds decide that" in capsys.readouterr().out) == told


def test_stages_in_a_log_file_are_a_line_each(capsys: pytest.CaptureFixture[str]):
    with LiveStages() as stages:
        for done in range(3):
            stages.stage("cloud", "reference", done, 3)
        stages.stage("cloud", "reference", 1, 1)
        stages.stage("north", "header search", 0, 1)
        stages.stage("cloud", "elastic", 1, 1, "loss 0.5")
    assert capsys.readouterr().out.splitlines() == [
        "cloud: reference done in 0 s",
        "cloud: elastic done in 0 s; loss 0.5",
    ]


def test_a_stage_that_was_resumed_tells_its_whole_time(capsys: pytest.CaptureFixture[str]):
    with LiveStages() as stages:
        stages.plan({"reference": Expected(1, 1.0)}, Earlier({}, {("cloud", "reference"): 120.0}))
        stages.stage("cloud", "reference", 3, 4)
        stages.stage("cloud", "reference", 4, 4)
    assert capsys.readouterr().out == "cloud: reference done in 2 min\n"


def test_stage_of_a_peer_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Rich would take the closing tag for an error, and the link for a link."""
    evil = "[/red] [link=file:/]x"
    with LiveStages() as stages:
        stages.stage("north", evil, 0, 2, evil)
        stages.stage("north", evil, 1, 1)
    assert capsys.readouterr().out.splitlines() == [f"north: {evil} done in 0 s"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with LiveStages() as stages:
        stages.stage("north", evil, 1, 2, evil)
    assert capsys.readouterr().out.count(evil) >= 2  # description and note, at each refresh


def test_stages_on_a_terminal_are_bars(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with LiveStages() as stages:
        stages.stage("cloud", "reference", 0, 1)
        stages.stage("cloud", "reference", 2, 3)
    shown = capsys.readouterr().out
    assert "━" in shown
    assert "2/3" in shown
    assert "done" not in shown


def test_a_terminal_shows_the_whole_run_and_a_log_file_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    expected = {"reference": Expected(1, 50.0), "elastic": Expected(1, 50.0)}

    def run(stages: LiveStages) -> None:
        stages.plan(expected)
        stages.stage("cloud", "reference", 0, 4)
        time.sleep(0.15)
        stages.stage("cloud", "reference", 2, 4, "loss 0.3")
        time.sleep(0.15)

    with LiveStages(every_s=0.05) as stages:
        run(stages)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"cloud: reference 0 of 4 \([\d.]+ s so far\)", lines[0])
    told = r"cloud: reference 2 of 4; loss 0.3 \([\d.]+ s so far; the whole run has about [\d.]+ s"
    assert re.fullmatch(rf"{told} left\)", lines[-1])
    with LiveStages(every_s=0.05) as stages:
        stages.stage("cloud", "reference", 1, 1)
        time.sleep(0.15)  # what comes next begins late
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"cloud: after reference \([\d.]+ s so far\)", lines[-1])
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    with LiveStages() as stages:
        run(stages)
    shown = capsys.readouterr().out
    assert "whole run" in shown
    assert "25%" in shown
    assert "left" in shown


@pytest.mark.parametrize("width", [60, 80, 110])
def test_a_stage_is_one_line_of_a_terminal_however_long_its_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "20")
    earlier = Earlier({("cloud", "reference"): 130.0}, {("cloud", "elastic"): 3690.0})
    with LiveStages() as stages:
        stages.plan({"reference": Expected(1, 50.0), "elastic": Expected(1, 50.0)}, earlier)
        stages.stage("cloud", "elastic", 9, 20, "loss 0.2, validation accuracy 0.9091, the best")
        for number in range(30):
            stages.stage(f"a-device-with-a-name-{number}", "fine-tuning", 1, 1, "reward 0.909 " * 9)
    last = re.split(r"\x1b\[\d*[A-K]", capsys.readouterr().out)[-1]
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", last).strip().splitlines()
    assert len(lines) == 17  # of 20
    assert all(len(line) <= width for line in lines)
    assert re.match(r"whole run +about [\dhmins ]+ left .* 7\d% ", lines[0])
    assert re.match(r"cloud +elastic .* 9/20 1 h 1 min ", lines[1])
    assert re.match(r"a-device-with-a… fine-tuning .* 1/1 0 s ", lines[-1])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pictures.parquet", b"a", "--data: cannot read"),
        ("empty", None, "--data: .* holds no class folders"),
        ("other.txt", b"a", "--data: .* is no .npz file"),
    ],
)
def test_pretrain_names_its_own_options(
    tmp_path: Path, name: str, content: bytes | None, said: str
):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    result = _acme("pretrain", "--data", path, "--out", tmp_path / "model")
    assert result.exit_code == 2
    assert re.search(said, result.stderr), result.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_table_keeps_names_and_numbers_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
):
    """Two speakers are not both 'speak…', nor is a number on two lines."""
    columns = ["device", "coarse", "linear", "LoRA", "final", "tokens", "answers", "right, coarse"]
    cells = ["12.6", "1.89", "1.77", "1.7", "5,103", "425", "0.120"]
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = ["speaker-1", "speaker-2", "a-gateway-in-the-north-1"]
    console = table_console()
    print_figures(console, "a", Figures(columns, [[name, *cells] for name in names]))
    plain = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, plain)) <= width
    rows = [re.findall(r"[^\s│]+", line) for line in plain if "12.6" in line]
    assert [row[1:] for row in rows] == [cells] * 3
    assert [row[0] for row in rows[:2]] == names[:2]
