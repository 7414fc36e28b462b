"""Every threat in SECURITY.md has a protection, and a test that exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_ATTACKERS = {"cloud", "edge", "device", "network", "checkpoint", "any"}


@cache
def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _rows() -> list[list[str]]:
    text = (_ROOT / "SECURITY.md").read_text()
    table = text.partition("## Threats, protections, tests")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_threat_has_an_attacker_a_protection_and_a_test_that_exists() -> None:
    rows = _rows()
    assert len(rows) > 20
    assert {row[0] for row in rows} == _ATTACKERS
    for attacker, threat, protection, tests in rows:
        assert threat, attacker
        assert protection, threat
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, threat
        for path, function in named:
            assert (_ROOT / path).exists(), path
            assert function in _functions(_ROOT / path), f"{path} has no {function}"
