"""The registry: recorded once, by many at a time, in SQLite and in a PostgreSQL server."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="pip install 'acme-fleet[registry]'")
pytest.importorskip("alembic", reason="pip install 'acme-fleet[registry]'")

from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.deploy.registry.store import NO_FLEET, Registry, changes
from acme_fleet.deploy.registry.tables import library, tables
from acme_fleet.errors import AcmeError, FleetError
from acme_fleet.runs.directory import RunDirectory
from tiny_artifact import write_artifact


def _program(name: str) -> str | None:
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr/pgsql").glob("*/bin")]
    return shutil.which(name) or next(
        (p for p in (shutil.which(name, path=str(b)) for b in places) if p), None
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that listens to a socket alone."""
    pytest.importorskip("psycopg", reason="pip install 'acme-fleet[registry]'")
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    user = {"user": "nobody"} if os.getuid() == 0 else {}  # it refuses to run as root
    name = "nobody" if user else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="acme-postgres-"))
    if user:
        shutil.chown(folder, "nobody")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    made = [initdb, "-D", folder / "data", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"]
    subprocess.run(made, check=True, **quiet)
    options = [*("-k", folder), *("-c", "listen_addresses="), *("-c", "fsync=off")]
    with subprocess.Popen([server, "-D", folder / "data", *options], **quiet) as running:
        try:
            yield f"postgresql://{name}@/postgres?host={folder}"
        finally:
            running.terminate()
            running.wait(30)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield str(tmp_path / "fleet.db")
        return
    server = request.getfixturevalue("postgres")
    engine = _reachable(server)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE registry")
        yield server.replace("/postgres?", "/registry?")
        connection.exec_driver_sql("DROP DATABASE registry WITH (FORCE)")
    engine.dispose()


def _reachable(server: str):
    """An engine, once the server answers."""
    sa = library("sqlalchemy")
    engine = sa.create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
    for attempt in range(200):
        try:
            engine.connect().close()
            return engine
        except sa.exc.OperationalError:
            threading.Event().wait(0.05)
            assert attempt < 199
    raise AssertionError


def _artifact(tmp_path: Path, device: str, precision: str = "float32", run: str = "alone") -> Path:
    folder = tmp_path / run / "artifacts" / device
    write_artifact(folder, "images", name=device, precision=precision)
    return folder


def test_what_is_recorded_comes_out_once(url: str, tmp_path: Path):
    registry = Registry.open(url)
    for _ in range(2):  # the same again changes nothing
        registry.record(_artifact(tmp_path, "cam-1"), (tmp_path / "site", 1))
    registry.record(_artifact(tmp_path, "cam-2"))
    registry.record(_artifact(tmp_path, "cam-1", "int8"), (tmp_path / "site", 2))
    registry.record(_artifact(tmp_path, "cam-1", "int8"), (tmp_path / "other", 1))
    registry.close()

    again = Registry.open(url)
    first, second = again.history("cam-1")
    assert (first.number, first.manifest.precision) == (1, "float32")
    assert first.releases == ((str(tmp_path / "site"), 1),)
    assert (second.number, second.manifest.precision) == (2, "int8")
    assert second.releases == ((str(tmp_path / "site"), 2), (str(tmp_path / "other"), 1))
    assert [(each.device, each.number) for each in again.newest()] == [("cam-1", 2), ("cam-2", 1)]
    assert changes(first, second) == [("precision", '"float32"', '"int8"')]
    assert first.fleet == NO_FLEET
    again.close()


def test_many_writers_at_once(url: str, tmp_path: Path):
    """All begin with an empty database, which each wants to set up, and share their rows."""
    folders = [
        _artifact(tmp_path, f"cam-{number % 3}", precision, run=f"{number}")
        for number, precision in enumerate(("float32", "float16", "int8", "int4") * 3)
    ]
    failures: list[Exception] = []
    start = threading.Barrier(6)

    def write(turn: int) -> None:
        try:
            start.wait()
            registry = Registry.open(url)
            for number in range(len(folders)):
                chosen = (number + turn) % len(folders)
                registry.record(folders[chosen], (tmp_path / "site", chosen))
            registry.close()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=write, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    registry = Registry.open(url)
    found = registry.artifacts()
    assert len(found) == len({(each.device, each.sha256) for each in found}) == 12
    assert sorted(number for each in found for _, number in each.releases) == list(range(12))
    registry.close()


def test_migrations_make_the_tables(url: str):
    registry = Registry.open(url)
    with registry._engine.connect() as connection:
        context = library("alembic.migration").MigrationContext.configure(connection)
        assert library("alembic.autogenerate").compare_metadata(context, tables()) == []
    registry.close()


def test_registry_of_a_newer_version_is_refused(url: str):
    registry = Registry.open(url)
    with registry._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    registry.close()
    with pytest.raises(FleetError, match="is of version 9999, which a newer acme-fleet made"):
        Registry.open(url)


def test_fleets_and_runs_are_told_apart(tmp_path: Path):
    registry = Registry.open(str(tmp_path / "fleet.db"))
    for name in ("north", "south"):
        fleet = Fleet.model_validate(_FLEET | {"name": name})
        RunDirectory.create(tmp_path / name, fleet, resume=False)
        registry.record(_artifact(tmp_path, "cam-1", run=name))
    with pytest.raises(FleetError, match="cam-1 is in the fleets north, south; name one with --f"):
        registry.history("cam-1")
    (one,) = registry.history("cam-1", "south")
    assert (one.fleet, one.run) == ("south", str(tmp_path / "south"))
    with pytest.raises(FleetError, match="has no device cam-9, but cam-1"):
        registry.history("cam-9")
    registry.close()


_FLEET = {
    "data": {"source": "digits"},
    "clusters": [{"name": "all", "devices": [{"name": "cam-1", "storage": "1 MB"}]}],
}


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("mysql://a/b", "sqlite or postgresql is needed"),
        ("sqlite:////nowhere/a.db", "unable to open database file"),
        ("postgresql://me:secret@127.0.0.1:1/b", "the registry 127.0.0.1:1/b: .*[Cc]onnection"),
        ("://", "the registry ://: "),
        ("", "names no file, and would be gone at the end"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_registry_that_cannot_be_opened(url: str, match: str):
    with pytest.raises(AcmeError, match=match) as told:
        Registry.open(url)
    assert "secret" not in str(told.value)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def told(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["fleet", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    assert "name a registry with --registry" in told("list", code=2)
    monkeypatch.setenv("ACME_REGISTRY", "fleet.db")
    assert "fleet.db: no such file; `acme export` and" in told("list", code=2)
    registry = Registry.open("fleet.db")
    registry.record(_artifact(tmp_path, "cam-1"), (tmp_path / "site", 7))
    registry.record(_artifact(tmp_path, "cam-1", "int8"))
    registry.close()
    assert told("list").splitlines()[1].split()[:4] == ["unknown", "cam-1", "2", "int8"]
    assert [line.split()[1] for line in told("history", "cam-1").splitlines()[1:]] == [
        "float32",
        "int8",
    ]
    assert "7 (site)" in told("history", "cam-1")
    assert "upper left, upper right" in told("show", "cam-1")
    assert told("diff", "cam-1").splitlines()[1].split() == ["precision", '"float32"', '"int8"']
    assert len(told("diff", "cam-1", "2", "2").splitlines()) == 1
    assert "has artifacts 1 to 2, and not 3" in told("diff", "cam-1", "1", "3", code=2)


def test_publishing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also what was published when the registry could not be reached: by the same command again."""
    pytest.importorskip("tuf", reason="pip install 'acme-fleet[delivery]'")
    monkeypatch.chdir(tmp_path)
    _artifact(tmp_path, "cam-1")
    publish = ["publish", "alone", "--to", "site"]
    assert CliRunner().invoke(app, publish).exit_code == 0
    refused = CliRunner().invoke(app, [*publish, "--registry", "nowhere/fleet.db"])
    assert (refused.exit_code, "nowhere/fleet.db" in refused.output) == (2, True)
    assert CliRunner().invoke(app, [*publish, "--registry", "fleet.db"]).exit_code == 0
    registry = Registry.open("fleet.db")
    (only,) = registry.newest()
    assert only.releases == ((str(tmp_path / "site"), 1),)
    registry.close()
