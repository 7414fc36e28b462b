"""The live page in a real browser: a run from its beginning to its end, errors, keys, a phone.

``ACME_PICTURES=FOLDER`` keeps pictures of what was tested.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the live page needs FastAPI: pip install 'acme-fleet[ui]'")

from test_page_facts import measured
from test_report import make_summary

from acme_fleet.runs.directory import PROGRESS, RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.runs.progress import ProgressFile
from acme_fleet.runs.summary import Summary
from chromium import PROGRAM, Tab
from tiny_fleet import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no chromium: apt-get install chromium"),
]

HOSTILE = "<img src=x onerror=document.title='broken-in'>"
PICTURES = os.environ.get("ACME_PICTURES")


def acme(*arguments: object, **rest: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "acme_fleet", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(timeout=30)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def server(runs: Path) -> Iterator[subprocess.Popen[str]]:
    process = acme("ui", runs, "--port", 0)
    yield process
    ended(process)


@pytest.fixture
def address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    told = server.stdout.readline()
    assert told.startswith("live page: http://127.0.0.1:"), told
    return told.removeprefix("live page: ").strip()


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with Tab(tmp_path / "browser") as tab:
        yield tab
        assert tab.run("document.title") != "broken-in"
        assert not tab.told  # no exception, and no refusal of the page's policy


def keep(tab: Tab, name: str) -> None:
    if PICTURES:
        tab.picture(Path(PICTURES, f"{name}.png"), whole=True)


def text(tab: Tab, selector: str) -> str:
    return tab.run(f"document.querySelector({json.dumps(selector)}).innerText")


def test_it_follows_a_run_to_its_end(runs: Path, address: str, tab: Tab, tmp_path: Path):
    tab.open(address)
    tab.wait("!document.getElementById('none').hidden")
    assert "No run here yet" in text(tab, "main")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(tiny().to_yaml())
    run = acme("run", fleet, "--out", runs / "mine")
    try:
        tab.wait("document.querySelector('.badge.running')", 120)
        tab.wait("document.querySelector('.now progress')", 120)
        tab.wait("/ %, .* left/.test(document.querySelector('.now .whole')?.innerText)", 120)
        tab.wait("document.querySelectorAll('.plots svg').length === 2", 120)
        tab.wait("document.querySelector('.reward svg polyline')", 120)
        keep(tab, "running")
        tab.run("location.reload()")
        tab.wait("document.querySelector('.badge.finished')", 180)
    finally:
        assert run.wait(timeout=60) == 0
        ended(run)
    tab.wait("document.querySelectorAll('.devices li.done').length === 4")
    keep(tab, "finished")
    summary = Summary.read(runs / "mine" / "summary.json")
    for device in summary.devices:
        assert f"{device.name} {100 * device.accuracy:.1f} %" in text(tab, ".devices")
    assert tab.run("document.querySelectorAll('.accuracy svg polyline').length") == 4
    assert tab.run("document.querySelectorAll('.reward svg polyline').length") == 2
    assert tab.run("document.querySelectorAll('.choice .pick').length") == 2
    up = sum(summary.sent[d.name].get("FeatureSample", [0])[0] for d in summary.devices)
    assert up > 0
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert "FeatureSample" in text(tab, ".traffic table")
    assert "header search" in text(tab, ".stages table")
    assert all(url.startswith((address, "data:", "about:")) for url in tab.requested)
    tab.open(f"{address}runs/mine/report")
    assert "Did every device get a model that fits?" in text(tab, "main")


def stopped(folder: Path) -> RunDirectory:
    """A run that has begun, and has a fault with a hostile text."""
    run = RunDirectory.create(folder, tiny(), resume=False)
    Journal(run.events).fault("north", "edge", "cam-2", HOSTILE)
    return run


def test_errors_are_shown(runs: Path, address: str, server: subprocess.Popen[str], tab: Tab):
    run = stopped(runs / HOSTILE.replace("/", ""))
    ProgressFile(run.path).end("failed", f"no candidate fits {HOSTILE}")
    tab.open(address)
    tab.wait("document.querySelector('.badge.failed')")
    keep(tab, "failed")
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert f"no candidate fits {HOSTILE}" in text(tab, ".trouble")
    assert "Go on: acme run" in text(tab, ".trouble")
    assert HOSTILE in text(tab, ".faults")
    assert ("alert", "") in [(role, "") for role, _ in tab.names()]
    # A run that was killed cannot tell: its process is not there any more.
    progress = json.loads((run.path / PROGRESS).read_text())
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    (run.path / PROGRESS).write_text(json.dumps(progress | {"ended": None, "pid": child.pid}))
    tab.wait("document.querySelector('.badge.stopped')")
    (run.path / "fleet.yaml").write_text("{no")
    stopped(runs / "second")
    tab.wait("document.querySelectorAll('#choices label').length === 2")
    server.send_signal(signal.SIGTERM)
    tab.wait("document.querySelector('#line.lost')")
    assert "no answer" in text(tab, "#line")
    tab.told.clear()  # the browser tells that the server is gone


def test_by_keys_and_for_a_screen_reader(runs: Path, address: str, tab: Tab):
    stopped(runs / "one")
    time.sleep(0.01)
    stopped(runs / "two")
    tab.open(address)
    tab.wait("document.querySelectorAll('article').length === 1")
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    tab.press("Enter")
    assert tab.run("document.activeElement.id") == "runs"
    tab.run("document.querySelectorAll('#choices input')[1].focus()")
    tab.press("Space")
    tab.wait("document.querySelectorAll('article').length === 2")
    assert tab.run("document.activeElement.type") == "checkbox"  # updates leave the focus
    tab.run("document.querySelector('.traffic, .stages'); document.querySelector('#line')")
    names = tab.names()
    roles = {role for role, _ in names}
    assert {"main", "status", "group", "checkbox", "article", "heading", "log"} <= roles
    assert all(name for role, name in names if role in ("checkbox", "article", "region", "img"))
    tab.run("location.reload()")
    tab.wait("document.querySelectorAll('article').length === 2")  # the address keeps the choice
    keep(tab, "two")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_on_a_phone(runs: Path, address: str, tab: Tab, scheme: str):
    stopped(runs / "a-name-of-a-run-that-is-longer-than-a-phone-is-wide-whatever-one-does-with-it")
    tab.open(address, 400, 800, prefers_color_scheme=scheme)
    tab.wait("document.querySelector('article')")
    keep(tab, f"phone-{scheme}")
    assert tab.run("document.documentElement.scrollWidth") == 400
    assert not tab.run(too_wide())
    assert shades(tab, ".scroll")


def shades(tab: Tab, wide: str) -> bool:
    """True if all that can be wider than a phone shows at its edge that there is more."""
    shade = "getComputedStyle(one).backgroundImage.includes('gradient')"
    return tab.run(f"[...document.querySelectorAll('{wide}')].every((one) => {shade})")


def too_wide() -> str:
    return (
        "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right"
        " > innerWidth + 1 && !one.closest('.scroll, .plot')).map((one) => one.outerHTML)"
    )


# --- the report, which is as well a page ----------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 2), (60,)])
def test_the_report_sorts_searches_and_fits_a_phone(
    sizes: tuple[int, ...], tab: Tab, tmp_path: Path
):
    from acme_fleet.report.page.html import write_report

    path = tmp_path / "report.html"
    summary = measured(make_summary(*sizes))
    write_report(summary, [], path)
    tab.open(path.as_uri(), 400, 800)
    keep(tab, f"report-phone-{len(sizes)}")
    assert tab.run("document.documentElement.scrollWidth") == 400
    assert not tab.run(too_wide())
    assert shades(tab, ".scroll, .plot")
    words = "document.querySelector('#leaving .scroll')"
    assert tab.run(f"{words}.scrollWidth <= {words}.clientWidth")  # a table of words wraps
    tab.open(path.as_uri())
    column = "[...document.querySelectorAll('#device-table tbody td:nth-child(6)')]"
    read = f"{column}.map((cell) => Number(cell.textContent))"
    press = "document.querySelector('#device-table th:nth-child(6) button').click()"
    tab.run(press)
    assert tab.run(read) == sorted(tab.run(read))
    tab.run(press)
    assert tab.run(read) == sorted(tab.run(read), reverse=True)
    tab.run(
        "const field = document.querySelector('[data-for=device-table] input');"
        "field.value = 'DEV-0-1'; field.dispatchEvent(new Event('input'));"
    )
    shown = "[...document.querySelectorAll('#device-table tbody tr')].filter((row) => !row.hidden)"
    found = [device.name for device in summary.devices if "dev-0-1" in device.name]
    assert tab.run(f"{shown}.length") == len(found)
    assert f"{len(found)} of {len(summary.devices)}" in text(tab, "[data-for=device-table] output")
    tab.run(
        "const model = document.getElementById('model'); model.value = 'dev-0-2';"
        "model.dispatchEvent(new Event('input'));"
    )
    assert "--device dev-0-2" in text(tab, "#use pre")
