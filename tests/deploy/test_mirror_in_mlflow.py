"""MLflow's registry as a copy: every artifact once, the last one with its alias."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

pytest.importorskip("sqlalchemy", reason="pip install 'acme-fleet[registry]'")
pytest.importorskip("alembic", reason="pip install 'acme-fleet[registry]'")

from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.deploy.registry.mirror import mirror
from acme_fleet.deploy.registry.store import Registry
from acme_fleet.errors import FleetError
from tiny_artifact import write_artifact


class _Refused(Exception):
    pass


class _Client:
    """The methods of MLflow's client that are used here; pages of one version."""

    kept: ClassVar[dict[str, dict[str, list[Any]]]] = defaultdict(dict)
    aliases: ClassVar[dict[tuple[str, str, str], str]] = {}

    def __init__(self, tracking_uri: str, registry_uri: str) -> None:
        assert tracking_uri == registry_uri
        if "nobody" in registry_uri:
            raise _Refused("nobody\nanswers")
        self._uri = registry_uri

    def search_registered_models(self, asked: str) -> list[str]:
        return [name for name in self.kept[self._uri] if asked == f"name='{name}'"]

    def create_registered_model(self, name: str, tags: dict[str, str]) -> None:
        assert name not in self.kept[self._uri]
        self.kept[self._uri][name] = []

    def search_model_versions(self, asked: str, page_token: int | None) -> Any:
        found = self.kept[self._uri].get(asked.removeprefix("name='").removesuffix("'"), [])
        first = page_token or 0

        class Page(list[Any]):
            token = first + 1 if first + 1 < len(found) else None

        return Page(found[first : first + 1])

    def create_model_version(self, name: str, source: str, tags: dict[str, str]) -> Any:
        versions = self.kept[self._uri][name]
        version = SimpleNamespace(version=len(versions) + 1, source=source, tags=tags)
        versions.append(version)
        return version

    def set_registered_model_alias(self, name: str, alias: str, version: Any) -> None:
        self.aliases[self._uri, name, alias] = version

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        number = self.aliases[self._uri, name, alias]
        return next(v for v in self.kept[self._uri][name] if v.version == number)


@pytest.fixture(params=["made up", "real"])
def mlflow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "real":
        return pytest.importorskip("mlflow", reason="pip install 'acme-fleet[mlflow]'")
    known = SimpleNamespace(
        MlflowClient=_Client, exceptions=SimpleNamespace(MlflowException=_Refused)
    )
    monkeypatch.setitem(sys.modules, "mlflow", known)
    return known


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_every_artifact_is_entered_once(mlflow: Any, tmp_path: Path):
    registry, uri = Registry.open(str(tmp_path / "fleet.db")), f"sqlite:///{tmp_path}/mlflow.db"

    def record(device: str, precision: str) -> None:
        folder = tmp_path / f"{device}-{precision}"
        write_artifact(folder, "texts", name=device, precision=precision)
        registry.record(folder)

    record("cam-1", "float32")
    record("cam-2", "float32")
    model = "unknown.cam-1"
    assert mirror(registry.artifacts(), uri) == [f"{model} 1", "unknown.cam-2 1"]
    record("cam-1", "int8")
    registry.close()
    arguments = ["fleet", "mirror", "--registry", str(tmp_path / "fleet.db"), "--to", uri]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert f"entered {model} 2\n1 new" in said.output
    assert "\n0 new" in f"\n{CliRunner().invoke(app, arguments).output}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    newest = client.get_model_version_by_alias(model, "newest")
    assert newest.tags["acme.precision"] == "int8"
    assert newest.tags["acme.artifact"] == "2"
    assert Path(newest.source) == tmp_path / "cam-1-int8"


@pytest.mark.filterwarnings("ignore")
def test_a_place_that_does_not_answer_is_told(mlflow: Any, tmp_path: Path):
    registry = Registry.open(str(tmp_path / "fleet.db"))
    write_artifact(tmp_path / "cam", "texts", name="cam-1")
    registry.record(tmp_path / "cam")
    with pytest.raises(FleetError, match=r"^MLflow at ") as told:
        mirror(registry.artifacts(), "nobody://here")
    assert "\n" not in str(told.value)
    registry.close()


def test_without_mlflow_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(FleetError, match=r"pip install 'acme-fleet\[mlflow\]'"):
        mirror([], "sqlite:///m.db")
