"""The registry: what is exported and published goes in, what each device has comes out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acme_fleet.deploy.registry.tables import library, tables
from acme_fleet.errors import FleetError
from acme_fleet.outside import listed, one_line, read_regular, reading, resolved
from acme_fleet.runs.directory import FLEET, RunDirectory
from acme_fleet_runtime.manifest import LARGEST_MANIFEST, MANIFEST, Manifest, parse_manifest

NO_FLEET = "unknown"
"""The fleet of artifacts whose run is not beside them."""
_PATIENCE_S = 30  # while others write
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x61636D65  # of PostgreSQL's advisory locks


@dataclass(frozen=True)
class Artifact:
    """An artifact of a device in the registry.

    Attributes:
        fleet, device: their names.
        number: from 1, counted for the device in the order of recording.
        sha256: of its manifest.
        manifest: its content.
        run: path of the run; none where it is not known.
        path: of the artifact's folder at that time.
        recorded: the time, UTC.
        releases: ``(site, number)`` of each release.
    """

    fleet: str
    device: str
    number: int
    sha256: str
    manifest: Manifest
    run: str | None
    path: str
    recorded: str
    releases: tuple[tuple[str, int], ...]


class Registry:
    """An open registry. Several processes may write at once."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    @staticmethod
    def open(where: str, *, make: bool = True) -> Registry:
        """Open a registry, which is brought to the newest version if need be.

        Args:
            where: ``postgresql://…``, ``sqlite:///…``, or the path of a file of SQLite.
            make: make a file that does not exist.

        Raises:
            FleetError: if it cannot be reached, is of a newer version, or its packages are missing.
        """
        sa = library("sqlalchemy")
        url = where if "://" in where else f"sqlite:///{where}"
        with reading(f"the registry {one_line(url.partition('@')[2] or url)}", FleetError):
            parsed = sa.make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            if parsed.get_backend_name() not in ("sqlite", "postgresql"):
                raise FleetError(
                    f"the registry {one_line(parsed.render_as_string())}: sqlite or postgresql "
                    f"is needed"
                )
            if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
                raise ValueError("it names no file, and would be gone at the end")
            missing = parsed.get_backend_name() == "sqlite" and not Path(parsed.database).exists()
            if missing and not make:
                raise ValueError("no such file; `acme export` and `acme publish` make it")
            engine = sa.create_engine(parsed, **_options(parsed))
            if engine.dialect.name == "sqlite":
                _make_serial(engine)
            try:
                _migrate(engine)
            except BaseException:
                engine.dispose()
                raise
        return Registry(engine)

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()

    def record(
        self, folder: Path, release: tuple[Path, int] | None = None, run: Path | None = None
    ) -> None:
        """Enter an artifact, and a release of it; what is there already stays.

        Args:
            folder: of the artifact.
            release: the site, and the release's number there.
            run: the run that it is of; the one around the folder without it.

        Raises:
            FleetError: if the registry cannot be written.
            ArtifactError: if there is no artifact.
        """
        with reading(f"cannot read {folder / MANIFEST}", FleetError):
            content = read_regular(folder / MANIFEST, LARGEST_MANIFEST)
        manifest = parse_manifest(content, folder / MANIFEST)
        found = run or _run_around(folder)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        fleet = NO_FLEET if found is None else RunDirectory(found).fleet.name
        with self._writing() as put:
            fleet_id = put("fleets", {"name": fleet[:200]})
            run_id = None
            if found is not None:
                told = {"path": str(resolved(found)), "recorded": now}
                run_id = put("runs", {"fleet_id": fleet_id, "digest": _digest(found)}, told)
            device_id = put("devices", {"fleet_id": fleet_id, "name": manifest.name[:64]})
            told = {"run_id": run_id, "manifest": content.decode(), "recorded": now}
            told["path"] = str(resolved(folder))
            sha256 = hashlib.sha256(content).hexdigest()
            artifact_id = put("artifacts", {"device_id": device_id, "sha256": sha256}, told)
            if release is not None:
                site, number = str(resolved(release[0])), release[1]
                key = {"site": site, "device_id": device_id, "number": number}
                put("releases", key, {"artifact_id": artifact_id, "recorded": now})

    def history(self, device: str, fleet: str | None = None) -> list[Artifact]:
        """All artifacts of a device, the oldest first.

        Raises:
            FleetError: if there is no such device, or one in each of several fleets.
        """
        fitting = self.artifacts(fleet, device)
        fleets = sorted({each.fleet for each in fitting})
        if not fitting:
            known = sorted({each.device for each in self.artifacts(fleet)})
            raise FleetError(
                f"the registry has no device {one_line(device, 64)}, but "
                f"{listed(known, 10) or 'none at all'}"
            )
        if len(fleets) > 1:
            raise FleetError(f"{device} is in the fleets {listed(fleets)}; name one with --fleet")
        return fitting

    def newest(self, fleet: str | None = None) -> list[Artifact]:
        """The newest artifact of each device, by fleet and device."""
        last = {(each.fleet, each.device): each for each in self.artifacts(fleet)}
        return [last[key] for key in sorted(last)]

    def artifacts(self, fleet: str | None = None, device: str | None = None) -> list[Artifact]:
        """All artifacts in the order of recording; of one fleet or device, where it is named.

        Raises:
            FleetError: if the registry cannot be read.
        """
        sa, known = library("sqlalchemy"), tables().tables
        artifacts, devices, fleets = (known[n] for n in ("artifacts", "devices", "fleets"))
        runs, releases = known["runs"], known["releases"]
        columns = (fleets.c.name, devices.c.name, runs.c.path, artifacts)
        joined = (
            artifacts.join(devices).join(fleets).outerjoin(runs, artifacts.c.run_id == runs.c.id)
        )
        asked = sa.select(*columns).select_from(joined).order_by(artifacts.c.id)
        if fleet is not None:
            asked = asked.where(fleets.c.name == fleet)
        if device is not None:
            asked = asked.where(devices.c.name == device)
        with reading("the registry cannot be read", FleetError), self._engine.begin() as connection:
            rows = connection.execute(asked).all()
            placed = connection.execute(sa.select(releases).order_by(releases.c.id)).all()
        return _artifacts(rows, placed)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A function that finds or makes a row in a transaction, and returns its number."""
        known = tables().tables
        with (
            reading("the registry cannot be written", FleetError),
            self._engine.begin() as connection,
        ):
            dialect = library(f"sqlalchemy.dialects.{self._engine.dialect.name}")
            select = library("sqlalchemy").select

            def put(name: str, key: dict[str, Any], values: dict[str, Any] | None = None) -> int:
                table = known[name]
                row = dialect.insert(table).values({**key, **(values or {})})
                connection.execute(row.on_conflict_do_nothing(index_elements=list(key)))
                same = [table.c[column] == value for column, value in key.items()]
                return connection.execute(select(table.c.id).where(*same)).scalar_one()

            yield put


def changes(old: Artifact, new: Artifact) -> list[tuple[str, str, str]]:
    """Differences of two artifacts' manifests: name, old and new value."""
    before, after = (_flat(json.loads(each.manifest.written())) for each in (old, new))
    names = [*before, *(name for name in after if name not in before)]
    pairs = ((name, before.get(name, "–"), after.get(name, "–")) for name in names)
    return [pair for pair in pairs if pair[1] != pair[2]]


def _flat(value: Any, place: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = (_flat(each, f"{place}.{name}".lstrip(".")) for name, each in value.items())
        return {name: text for part in parts for name, text in part.items()}
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return _flat({str(number): each for number, each in enumerate(value, 1)}, place)
    return {place: one_line(json.dumps(value, ensure_ascii=False), 100)}


def _artifacts(rows: Sequence[Any], releases: Sequence[Any]) -> list[Artifact]:
    counted: dict[int, int] = {}
    placed: dict[int, list[tuple[str, int]]] = {}
    for each in releases:
        placed.setdefault(each.artifact_id, []).append((each.site, each.number))
    found = []
    for fleet, device, run, number, device_id, _, sha256, manifest, path, recorded in rows:
        counted[device_id] = counted.get(device_id, 0) + 1
        content = parse_manifest(manifest.encode(), Path(f"the registry's artifact {number}"))
        found.append(
            Artifact(
                *(fleet, device, counted[device_id], sha256, content),
                *(run, path, recorded, tuple(placed.get(number, ()))),
            )
        )
    return found


def _run_around(folder: Path) -> Path | None:
    """The run whose artifacts a folder is among."""
    around = resolved(folder).parent.parent
    return around if (around / FLEET).exists() else None


def _digest(run: Path) -> str:
    """The identity of a run: of its summary, or of its fleet file until it is finished."""
    directory = RunDirectory(run)
    path = directory.summary if directory.summary.exists() else run / FLEET
    with reading(f"cannot read {path}", FleetError):
        return hashlib.sha256(read_regular(path)).hexdigest()


def _options(url: Any) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _PATIENCE_S}}
    return {"connect_args": {"connect_timeout": _PATIENCE_S}, "pool_pre_ping": True}


def _make_serial(engine: Any) -> None:
    """A transaction of SQLite takes the lock at its begin, so that none fails in the middle."""
    event = library("sqlalchemy.event")

    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where the next function says
        connection.execute("PRAGMA foreign_keys = ON")

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def _migrate(engine: Any) -> None:
    """Bring the tables to the newest version; of several processes one does, the others wait.

    Raises:
        FleetError: if a newer acme-fleet has changed them.
    """
    config = library("alembic.config").Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    script = library("alembic.script").ScriptDirectory.from_config(config)
    migration = library("alembic.migration").MigrationContext
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        current = migration.configure(connection).get_current_revision()
        if current == script.get_current_head():
            return
        if current is not None and current not in {
            each.revision for each in script.walk_revisions()
        }:
            raise FleetError(
                f"the registry is of version {one_line(current, 40)}, which a newer acme-fleet "
                f"made: pip install -U acme-fleet"
            )
        config.attributes["connection"] = connection
        library("alembic.command").upgrade(config, "head")
