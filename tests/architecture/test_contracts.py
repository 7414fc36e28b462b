"""The shape of the code: who may import whom, what is public, and what no module does."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import acme_fleet
import acme_fleet_runtime
from acme_fleet import errors

_ROOT = Path(__file__).parents[2]
_SOURCE = Path(acme_fleet.__file__).parent
_RUNTIME = Path(acme_fleet_runtime.__file__).parent
_SCRIPTS = _SOURCE / "deploy" / "scripts"  # run on devices, without this package
_MODULES = sorted([*_SOURCE.rglob("*.py"), *_RUNTIME.rglob("*.py")])
_LARGEST = 400


def _name(path: Path) -> str:
    root = _SOURCE if path.is_relative_to(_SOURCE) else _RUNTIME.parent
    return path.relative_to(root).as_posix()


def _imports(path: Path) -> Iterator[str]:
    """Modules of this package that a module imports, whenever and in whatever way."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_import_contracts_are_kept():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    told = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    settings = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    assert len(contracts) >= 3
    for contract in contracts:
        assert f"{contract['name']} KEPT" in told.stdout


@pytest.mark.parametrize("tier", ["cloud", "edge", "device"])
def test_a_tier_imports_no_other_tier(tier: str):
    """The same as the first contract, read without import-linter."""
    others = {"cloud", "edge", "device"} - {tier}
    paths = list((_SOURCE / tier).glob("*.py"))
    assert len(paths) > 2
    for path in paths:
        for module in _imports(path):
            for other in others:
                assert not f"{module}.".startswith(f"acme_fleet.{other}."), (
                    f"{_name(path)}: {module}"
                )


@pytest.mark.parametrize(
    ("tier", "role"),
    [
        # What a peer replied is checked beside the role that asked; an assignment is a message.
        ("cloud", {"server.py", "replies.py"}),
        # What a role keeps on its disk are messages, and so is an assignment.
        ("edge", {"server.py", "replies.py", "memory.py", "assigned.py"}),
        ("device", {"client.py", "state.py", "received.py"}),
    ],
)
def test_only_the_role_talks(tier: str, role: set[str]):
    """A tier's other modules are mathematics: no messages, links or journal."""
    values = ("header_plan", "importance_set", "peer_weights")
    types = tuple(f"acme_fleet.messages.{name}" for name in values)
    talking = ("acme_fleet.messages", "acme_fleet.links", "acme_fleet.runs.journal")
    for path in (_SOURCE / tier).glob("*.py"):
        imported = [m for m in _imports(path) if not m.startswith(types)]
        spoken = [module for module in imported if module.startswith(talking)]
        assert bool(spoken) == (path.name in role), f"{_name(path)}: {spoken}"


def test_public_names():
    assert sorted(acme_fleet.__all__) == [
        "Callback",
        "Fleet",
        "Run",
        "customize",
        "load",
        "open_run",
    ]
    for name in acme_fleet.__all__:
        assert callable(getattr(acme_fleet, name))
    scope: dict[str, object] = {}
    exec("from acme_fleet import *", scope)
    assert set(acme_fleet.__all__) <= scope.keys()
    assert acme_fleet.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        acme_fleet.nonsense  # noqa: B018


def test_every_error_on_purpose_has_one_base():
    raised = [e for e in vars(errors).values() if isinstance(e, type) and e is not errors.AcmeError]
    assert len(raised) >= 4
    assert all(issubclass(error, errors.AcmeError) for error in raised)
    assert all(error.__name__ in (errors.__doc__ or "") for error in raised)


def _calls(source: str, name: str) -> list[int]:
    """Lines in which a function is called by its bare name."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_module_follows_the_style(path: Path):
    source, name = path.read_text(), _name(path)
    assert not _calls(source, "print"), "messages go through the console or the journal"
    assert not _calls(source, "hasattr"), "abstract or final (DESIGN 5.7)"
    assert not re.search(r"import pickle|allow_pickle=True|torch\.load\(", source)
    assert ast.get_docstring(ast.parse(source)), "says what it is for"
    assert path.name not in ("utils.py", "helpers.py", "common.py", "misc.py")
    assert "manual_seed(" not in source or name in ("seeding.py")
    lines = len(source.splitlines())
    assert lines <= _LARGEST, f"{name} has {lines} lines"


def test_modules_are_found():
    assert len(_MODULES) > 40


def test_every_module_can_be_imported():
    """Optional libraries must be asked for when they are used, not when a module is imported."""
    for path in _MODULES:
        if path.parent.name == "app" or path.parent == _SCRIPTS or "migrations" in path.parts:
            continue  # imported by Flower or Alembic alone, or run as they are
        parts = path.relative_to(_SOURCE.parent).with_suffix("").parts
        importlib.import_module(".".join(part for part in parts if part != "__init__"))


def test_nothing_private_is_imported_across_modules():
    for path in _MODULES:
        for module in _imports(path):
            if module.startswith("acme_fleet"):
                private = [p for p in module.split(".") if p.startswith("_") and p[:2] != "__"]
                assert not private, f"{_name(path)} imports {module}"
