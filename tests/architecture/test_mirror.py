"""Tests lie where the code lies: a file of tests is named after a module or a package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import acme_fleet
import acme_fleet_runtime

_TESTS = Path(__file__).parents[1]
_SOURCE = Path(acme_fleet.__file__).parent
# Of equations, of whole runs, and of other trees than src.
_ACROSS = {"architecture", "faults", "fuzz", "integration", "network", "paper", "research", "slow"}
_ALONE = {
    "models/test_export.py",  # whatever ships, in another runtime
    "runtime/test_distribution.py",  # the wheel
}


def _names(package: Path) -> set[str]:
    """A package, and all modules and packages below it."""
    below = (path for path in package.rglob("*") if path.is_dir() or path.suffix == ".py")
    return {package.name, *(path.stem for path in below)}


def _packages(folder: Path) -> Iterator[Path]:
    """Packages of a test's folder's name, wherever they are."""
    if folder.name == "runtime":
        yield Path(acme_fleet_runtime.__file__).parent
    yield from (path for path in _SOURCE.rglob(folder.name) if (path / "__init__.py").exists())


def test_a_file_of_tests_is_named_after_what_it_tests():
    """``test_NAME.py``, or ``test_NAME_ASPECT.py`` where a module has several files of tests."""
    files = sorted(_TESTS.rglob("test_*.py"))
    assert len(files) > 50
    for path in files:
        name = path.relative_to(_TESTS)
        if name.parts[0] in _ACROSS or name.as_posix() in _ALONE:
            continue
        roots = [_SOURCE] if path.parent == _TESTS else list(_packages(path.parent))
        assert roots, f"{name}: there is no package {path.parent.name}"
        known, own = set().union(*map(_names, roots)), path.stem.removeprefix("test_")
        assert any(own == other or own.startswith(f"{other}_") for other in known), (
            f"{name}: there is no module {own} in {path.parent.name}"
        )


def test_no_two_files_of_tests_have_one_name() -> None:
    names = [path.name for path in _TESTS.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
