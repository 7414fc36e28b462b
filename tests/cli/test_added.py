"""Commands that other installed packages add to ``acme``."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from acme_fleet.cli import app


def _install(monkeypatch: pytest.MonkeyPatch, *entries: object) -> None:
    monkeypatch.setattr("acme_fleet.cli.added.entry_points", lambda group: entries)


def _added(name: str, loaded: list[str]) -> SimpleNamespace:
    added = typer.Typer(add_completion=False)

    @added.command()
    def command(size: int = 1) -> None:
        """Do what no other command does."""
        typer.echo(f"did it {size} times")

    def load() -> typer.Typer:
        loaded.append(name)
        return added

    return SimpleNamespace(name=name, load=load)


def test_an_added_command_is_listed_and_run(monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []
    _install(monkeypatch, _added("extra", loaded))
    told = CliRunner().invoke(app, ["--help"])
    assert told.exit_code == 0
    assert "extra" in told.output
    assert "Do what no other command does." in told.output
    told = CliRunner().invoke(app, ["extra", "--size", "3"])
    assert (told.exit_code, told.output) == (0, "did it 3 times\n")


def test_it_is_loaded_by_nobody_else_and_replaces_nothing(monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []
    _install(monkeypatch, _added("extra", loaded), _added("check", loaded))
    told = CliRunner().invoke(app, ["check", "none.yaml"])
    assert told.exit_code == 2
    assert "none.yaml" in told.output
    assert loaded == []


@pytest.mark.parametrize("arguments", [[], ["fig8"], ["--help"]])
def test_reproduce_says_how_it_is_installed(arguments: list[str], monkeypatch: pytest.MonkeyPatch):
    _install(monkeypatch)
    told = CliRunner().invoke(app, ["reproduce", *arguments])
    assert told.exit_code == 2
    assert "pip install -e research" in told.output
    assert "Traceback" not in told.output
    assert "no such command" in CliRunner().invoke(app, ["reproduces"]).output.lower()


def test_a_package_that_is_broken_is_told_by_its_command(monkeypatch: pytest.MonkeyPatch):
    _install(monkeypatch, EntryPoint("extra", "no_such_module_at_all:app", "acme_fleet.commands"))
    assert CliRunner().invoke(app, ["check", "none.yaml"]).exit_code == 2
    told = CliRunner().invoke(app, ["extra"])
    assert told.exit_code not in (0, None)
    assert "no_such_module_at_all" in told.output
    assert "Traceback" not in told.output


def test_one_that_cannot_be_loaded_spoils_no_other(monkeypatch: pytest.MonkeyPatch):
    """A package that is half removed leaves its entry point."""

    def load() -> None:
        raise ModuleNotFoundError("No module named 'gone'")

    loaded: list[str] = []
    _install(monkeypatch, SimpleNamespace(name="broken", load=load), _added("extra", loaded))
    told = CliRunner().invoke(app, ["--help"])
    assert told.exit_code == 0
    assert "extra" in told.output
    assert "cannot be loaded: " in told.output
    assert CliRunner().invoke(app, ["broken", "--size", "3"]).exit_code == 2
