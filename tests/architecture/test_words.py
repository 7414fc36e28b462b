"""Documentation is complete and plain, and the map from the paper to the code is right."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SOURCE = _ROOT / "src" / "acme_fleet"
_MODULES = sorted(
    path
    for folder in ("src", "research", "tests", "examples", "docs")
    for path in (_ROOT / folder).rglob("*.py")
)
_VAGUE = re.compile(r"(What|Who|Whose|Whether|How|Where|Which)\b")
_ROW = re.compile(r"\| (.+) \| `(.+): (.+)` \| `(.+): (.+)` \|")


def _documented(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield getattr(node, "name", "the module"), ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", _MODULES, ids=lambda path: path.relative_to(_ROOT).as_posix())
def test_docstrings_name_a_thing_or_say_what_is_done(path: Path):
    for name, docstring in _documented(ast.parse(path.read_text())):
        assert not _VAGUE.match(docstring), f"{name}: {docstring.splitlines()[0]}"
        assert "TODO" not in docstring, name


def _definitions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)}


def test_paper_map_names_functions_and_tests_that_exist():
    rows = _ROW.findall((_ROOT / "docs" / "paper_map.md").read_text())
    numbers = {int(n) for row in rows for n in re.findall(r"\d+", row[0].split(" the ")[0])}
    assert {*range(1, 22)} - numbers == {5}  # of Eq. 4 and 5 only the constraint is computed
    for _, module, function, test_module, test in rows:
        assert function in _definitions(_SOURCE / module), f"{module}: {function}"
        assert test in _definitions(_ROOT / test_module), f"{test_module}: {test}"


def test_every_package_is_in_the_readmes_tree():
    tree = (_ROOT / "README.md").read_text().split("## The tree", 1)[1]
    for package in sorted(path for path in _SOURCE.iterdir() if path.is_dir()):
        if package.name != "__pycache__":
            assert f" {package.name}/" in tree, f"{package.name} is missing in README's tree"
