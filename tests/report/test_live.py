"""The live page's server: how runs stand, who may ask, and that a stream tells what changes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email.message import Message
from http.client import HTTPConnection, HTTPResponse
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

pytest.importorskip("fastapi", reason="the live page needs FastAPI: pip install 'acme-fleet[ui]'")
pytest.importorskip("uvicorn", reason="likewise")

import uvicorn
from typer.testing import CliRunner

from acme_fleet.cli import app as command
from acme_fleet.errors import FleetError, RunError
from acme_fleet.report.live import server as live
from acme_fleet.report.live.watch import Board, Watched
from acme_fleet.runs.directory import PROGRESS, RunDirectory
from acme_fleet.runs.events import VALIDATION
from acme_fleet.runs.journal import Journal, read_on
from acme_fleet.runs.progress import ProgressFile
from acme_fleet.runs.sealed import write_marked_json, write_sealed_json
from acme_fleet.stratos.example_files import write_example
from acme_fleet.stratos.run_directory import DistillDirectory
from tiny_fleet import tiny

HOSTILE = "<img src=x onerror=alert(1)>"
TOKEN = "a-token-of-twenty-four-c"


def begun(path: Path) -> RunDirectory:
    """A run that has just begun: no model is trained for these tests."""
    return RunDirectory.create(path, tiny(), resume=False)


def tell(run: RunDirectory) -> None:
    """Events of a run on its way to the first round."""
    journal = Journal(run.events)
    with journal.stage("cloud", "reference", "cloud"):
        pass
    with journal.stage("north", "header search", "edge") as progress:
        for step in range(1, 4):
            progress(step, 9, "", 0.1 * step)
    for peer in ("cam-1", "cam-2"):
        journal.message("north", peer, "RoundStart", 70, tier="device", direction="down")
        journal.message(peer, "north", "ImportanceUpload", 900, tier="device", direction="up")
        journal.figure(peer, "device", VALIDATION, 1, 0.5)
        journal.figure(peer, "device", VALIDATION, 2, 0.75)
    journal.fault("north", "edge", "cam-2", HOSTILE)


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes


class Site:
    """A served board."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextmanager
    def asked(self, path: str, **headers: str) -> Iterator[HTTPResponse]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("GET", path, headers=headers)
            with connection.getresponse() as answer:
                yield answer

    def get(self, path: str, **headers: str) -> Answer:
        with self.asked(path, **headers) as answer:
            return Answer(answer.status, answer.headers, answer.read())

    def json(self, path: str, **headers: str) -> Any:
        return json.loads(self.get(path, **headers).body)


@contextmanager
def served(board: Board, token: str | None = None) -> Iterator[Site]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            live.make_app(board, token, every_s=0.02),
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Site(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acme_fleet.report.live.watch._READ_AGAIN_S", 0.0)
    monkeypatch.setattr("acme_fleet.report.live.watch._LOOK_AGAIN_S", 0.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tell(begun(folder / "mine"))
    begun(folder / "other")
    return folder


@pytest.fixture(scope="module")
def site(runs: Path) -> Iterator[Site]:
    with served(Board([runs])) as site:
        yield site


# --- how a run stands -------------------------------------------------------------------------


def test_what_was_told_is_added_up(site: Site):
    run = site.json("/api/runs/mine")
    assert (run["kind"], run["name"], run["seed"]) == ("fleet", "tiny", 3)
    (down, up) = run["links"]["device"]["kinds"]
    assert down == {"type": "RoundStart", "up": False, "messages": 2, "bytes": 140}
    assert up == {"type": "ImportanceUpload", "up": True, "messages": 2, "bytes": 1800}
    assert run["links"]["cloud"]["kinds"] == []
    assert run["rewards"] == {"north": [[n, pytest.approx(0.1 * n)] for n in (1, 2, 3)]}
    devices = {device["name"]: device for device in run["devices"]}
    assert list(devices) == ["cam-1", "cam-2", "badge-1", "badge-2"]
    assert devices["cam-1"]["scores"] == [[1, 0.5], [2, 0.75]]
    assert devices["badge-1"]["scores"] == []
    assert [stage["stage"] for stage in run["stages"]] == ["reference", "header search"]
    assert sum(run["links"]["device"]["flow"]) == 1940
    (fault,) = run["faults"]
    assert (fault["about"], fault["fault"]) == ("cam-2", HOSTILE)


def test_only_new_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = begun(tmp_path / "run")
    tell(run)
    watched = Watched(run.path, "run")
    first = watched.shown()
    read: list[int] = []

    def noted(path: Path, offset: int) -> Any:
        events, end = read_on(path, offset)
        read.append(len(events))
        return events, end

    monkeypatch.setattr("acme_fleet.report.live.watch.read_on", noted)
    assert watched.shown() == first
    Journal(run.events).fault("north", "edge", "cam-1", "late")
    assert watched.shown()["fault_count"] == 2
    assert read == [0, 1]


def test_a_line_that_is_not_complete_waits_for_its_end(tmp_path: Path):
    run = begun(tmp_path / "run")
    tell(run)
    whole = run.events.read_bytes()
    lines = whole.count(b"\n")
    run.events.write_bytes(whole[:-10])
    first, offset = read_on(run.events, 0)
    assert len(first) == lines - 1
    run.events.write_bytes(whole)
    rest, end = read_on(run.events, offset)
    assert (len(rest), end) == (1, len(whole))
    assert read_on(run.events, end) == ([], end)


def test_damaged_lines_are_left_out(tmp_path: Path):
    run = begun(tmp_path / "run")
    tell(run)
    lines = run.events.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"0.", b"9.")
    run.events.write_bytes(b"\n".join([b"no json", *lines]))
    assert len(read_on(run.events, 0)[0]) == len(lines) - 2


def test_states_of_a_run(tmp_path: Path):
    run = begun(tmp_path / "run")
    watched = Watched(run.path, "run")
    assert watched.shown()["status"] == "stopped"
    progress = ProgressFile(run.path)
    progress.stage("north", "header search", 2, 9, "reward 0.5")
    shown = watched.shown()
    assert (shown["status"], shown["now"][0]["done"]) == ("running", 2)
    progress.end("failed", "no candidate fits")
    shown = watched.shown()
    assert (shown["status"], shown["reason"]) == ("failed", "no candidate fits")
    assert "--resume" in shown["resume"]
    told = json.loads((run.path / PROGRESS).read_text()) | {"ended": None, "pid": _gone()}
    (run.path / PROGRESS).write_text(json.dumps(told))
    assert "killed" in watched.shown()["reason"]
    write_marked_json(run.summary, {"devices": [], "clusters": []})
    assert watched.shown()["status"] == "finished"  # of a version without progress.json too


def _gone() -> int:
    """The number of a process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_results_are_shown_at_the_end(tmp_path: Path):
    run = begun(tmp_path / "run")
    devices = [
        {"name": "cam-1", "accuracy": 0.5, "size_bytes": 10},
        {"name": "cam-2", "accuracy": 1.0, "size_bytes": 30},
    ]
    clusters = [{"name": "south", "lost": {"badge-1": "no answer"}}]
    write_marked_json(run.summary, {"devices": devices, "clusters": clusters})
    shown = Watched(run.path, "run").shown()
    assert shown["result"]["accuracy"] == 0.75
    assert (shown["result"]["smallest"], shown["result"]["largest"]) == (10, 30)
    told = {device["name"]: (device["accuracy"], device["lost"]) for device in shown["devices"]}
    assert told["cam-2"] == (1.0, None)
    assert told["badge-1"] == (None, "no answer")


def test_a_choice_is_shown_with_its_candidates(tmp_path: Path):
    run = begun(tmp_path / "run")
    candidate = {
        **{"width": 0.5, "depth": 2, "hidden": 1.0, "precision": "int8", "loss": 0.3},
        **{"energy_j": 0.1, "size_bytes": 9, "feasible": True, "on_front": True, "chosen": True},
    }
    told = [{"edge": "north", "storage_limit_bytes": 60, "candidates": [candidate | {"x": 1}]}]
    write_sealed_json(run.path / "choices.json", told)
    (choice,) = Watched(run.path, "run").shown()["choices"]
    assert choice == {"edge": "north", "limit_bytes": 60, "candidates": [candidate]}


@pytest.mark.parametrize("name", ["fleet.yaml", "choices.json", "progress.json", "summary.json"])
def test_what_cannot_be_read_is_a_state(name: str, tmp_path: Path):
    run = begun(tmp_path / "run")
    (run.path / name).write_text("{no")
    watched = Watched(run.path, "run")
    shown = watched.shown()
    assert shown["status"] == "unreadable"
    assert name in shown["reason"]
    assert watched.brief()["id"] == "run"


def test_a_distillation_is_shown_too(tmp_path: Path):
    path, task = tmp_path / "run", tmp_path / "task.yaml"
    write_example(task)
    directory = DistillDirectory.create(path, DistillDirectory.read(task), resume=False)
    assert directory.exists()
    progress = ProgressFile(path)
    progress.stage("student", "epochs", 1, 4)
    write_sealed_json(directory.spent, {"training": 12.5, "evaluation": 2.0})
    shown = Watched(path, "run").shown()
    assert (shown["kind"], shown["status"]) == ("distill", "running")
    assert shown["spent"] == {"training_s": 12.5, "evaluation_s": 2.0}
    assert shown["now"][0]["stage"] == "epochs"
    assert shown["chosen"] is None


# --- which runs -------------------------------------------------------------------------------


def test_runs_of_a_folder_and_of_several(runs: Path, tmp_path: Path):
    begun(tmp_path / "mine")
    (tmp_path / "no-run").mkdir()
    assert sorted(Board([runs]).runs()) == ["mine", "other"]
    assert sorted(Board([runs / "mine"]).runs()) == ["mine"]
    both = Board([runs, tmp_path]).runs()
    assert sorted(both) == ["mine", "mine (2)", "other"]
    assert {str(both[name].path.parent) for name in ("mine", "mine (2)")} == {
        str(runs),
        str(tmp_path),
    }


def test_a_folder_with_a_users_own_settings_is_no_run(tmp_path: Path):
    (tmp_path / "fleet.yaml").write_text(tiny().to_yaml())
    write_example(tmp_path / "task.yaml")
    begun(tmp_path / "mine")
    assert sorted(Board([tmp_path]).runs()) == ["mine"]
    older = tmp_path / "older"  # wrote no checksum
    older.mkdir()
    (older / "fleet.yaml").write_text(tiny().to_yaml())
    (older / "events.jsonl").touch()
    assert sorted(Board([tmp_path]).runs()) == ["mine", "older"]


def test_new_runs_are_found_and_removed_ones_forgotten(tmp_path: Path):
    board = Board([tmp_path])
    assert board.runs() == {}
    begun(tmp_path / "one")
    assert list(board.runs()) == ["one"]
    (tmp_path / "one").rename(tmp_path / "two")
    assert list(board.runs()) == ["two"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    for place, told in (
        (tmp_path / "none" / "mine", "no such folder"),
        (tmp_path / "file", "file"),
    ):
        with pytest.raises(RunError, match=told):
            Board([place])
    result = CliRunner().invoke(command, ["ui", str(tmp_path / "none" / "mine")])
    assert result.exit_code == 2
    assert "no such folder" in result.output.replace("\n", " ")


def test_a_run_that_is_about_to_begin_is_awaited(tmp_path: Path):
    board = Board([tmp_path / "mine"], clock=count(0, 100).__next__)
    assert board.awaited == [tmp_path / "mine"]
    assert board.runs() == {}
    begun(tmp_path / "mine")
    assert list(board.runs()) == ["mine"]


# --- HTTP -------------------------------------------------------------------------------------


def test_the_page_is_whole_and_its_policy_lets_nothing_else_in(site: Site):
    for path, kind in (
        ("/", "text/html"),
        ("/live.css", "text/css"),
        ("/live.js", "text/javascript"),
        ("/charts.js", "text/javascript"),
    ):
        answer = site.get(path)
        content = answer.body.decode()
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "//" not in content.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
        assert "innerHTML" not in content
        assert "style=" not in content


def test_runs_are_listed(site: Site):
    listed = {run["id"]: run for run in site.json("/api/runs")}
    assert listed["mine"] == {"id": "mine", "name": "tiny", "kind": "fleet", "status": "stopped"}
    assert sorted(listed) == ["mine", "other"]


@pytest.mark.parametrize(
    "path",
    [
        *("/api/runs/none", "/runs/none/report", "/runs/mine/report", "/openapi.json", "/docs"),
        *("/api/runs/..%2f..%2fetc", "/static/live.js", "/live.py", "/api/runs/mine/fleet.yaml"),
    ],
)
def test_nothing_else_is_served(site: Site, path: str):
    answer = site.get(path)
    assert answer.status == 404
    assert answer.headers["Content-Security-Policy"]


def test_the_report_is_served(runs: Path, site: Site):
    (runs / "mine" / "report.html").write_text("<p>report</p>")
    answer = site.get("/runs/mine/report")
    assert (answer.status, answer.body) == (200, b"<p>report</p>")
    assert "sandbox allow-scripts" in answer.headers["Content-Security-Policy"]
    assert site.json("/api/runs/mine")["report"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", ""]
)
def test_a_page_elsewhere_cannot_lead_its_name_here(site: Site, host: str):
    assert site.get("/api/runs", Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8090"])
def test_loopback_by_any_name(site: Site, host: str):
    assert site.get("/api/runs", Host=host).status == 200


def events_of(answer: HTTPResponse, count: int) -> list[tuple[str, Any]]:
    found, kind = [], ""
    while len(found) < count:
        line = answer.readline().decode().strip()
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            found.append((kind, json.loads(line[6:])))
    return found


def test_the_stream_tells_all_and_then_what_changes(tmp_path: Path):
    run = begun(tmp_path / "a run & more")
    name = run.path.name
    with (
        served(Board([tmp_path])) as site,
        site.asked(f"/api/stream?run={quote(name)}&run=none") as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        (kind, listed), (other, shown) = events_of(answer, 2)
        assert (kind, other) == ("runs", "run")
        assert [each["id"] for each in listed] == [shown["id"]] == [name]
        Journal(run.events).fault("north", "edge", "cam-1", "late")
        ((kind, shown),) = events_of(answer, 1)
        assert (kind, shown["fault_count"]) == ("run", 1)
        begun(tmp_path / "new")
        ((kind, listed),) = events_of(answer, 1)
        assert (kind, len(listed)) == ("runs", 2)


# --- the token --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(runs: Path) -> Iterator[Site]:
    with served(Board([runs]), TOKEN) as site:
        yield site


def test_nothing_is_told_without_the_token(closed: Site):
    for path in ("/", "/live.js", "/api/runs", "/api/stream", "/?token=wrong", "/?token="):
        answer = closed.get(path)
        assert answer.status == 401
        assert b"tiny" not in answer.body
    assert closed.get("/api/runs", Authorization="Bearer wrong").status == 401
    assert closed.get("/api/runs", Cookie=f"acme_live={TOKEN}").status == 401
    assert closed.get(f"/api/runs?token={TOKEN}").status == 401  # it would stay in logs


def test_the_address_with_the_token_opens_the_page(closed: Site):
    answer = closed.get(f"/?token={TOKEN}")
    cookie = answer.headers["Set-Cookie"]
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert closed.get("/api/runs", Cookie=cookie.partition(";")[0]).status == 200
    assert closed.get("/api/runs", Authorization=f"Bearer {TOKEN}", Host="far").status == 200


def test_a_host_that_others_reach_gets_a_token(runs: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(live.uvicorn.Server, "run", lambda self, sockets: None)
    live.serve(Board([runs]), "127.0.0.1", 0, None, said.append)
    live.serve(Board([runs]), "0.0.0.0", 0, None, said.append)
    live.serve(Board([runs]), "127.0.0.1", 0, TOKEN, said.append)
    assert "token" not in said[0]
    assert len(said[1].partition("?token=")[2]) >= 32
    assert said[2].endswith(f"?token={TOKEN}")


@pytest.mark.parametrize(
    ("host", "port", "token", "told"),
    [
        ("127.0.0.1", 0, "short", "at least 16"),
        ("127.0.0.1", 0, "sixteen characters", "without spaces"),
        ("no-such-host.invalid", 0, None, "cannot listen on no-such-host"),
    ],
)
def test_wrong_places_and_tokens(runs: Path, host: str, port: int, token: str | None, told: str):
    with pytest.raises(FleetError, match=told):
        live.serve(Board([runs]), host, port, token, lambda _: None)


def test_a_port_that_is_taken(runs: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FleetError, match=f"cannot listen on 127.0.0.1, port {port}"):
            live.serve(Board([runs]), "127.0.0.1", port, None, lambda _: None)
