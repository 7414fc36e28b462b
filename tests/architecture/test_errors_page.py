"""Every message that docs/errors.md quotes is one that the programs can print."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "errors.md").read_text()
_QUOTED = re.findall(r"(?<!`)``(?!`)(.+?)(?<!`)``(?!`)", _PAGE)
_FIRST = re.compile(r"^(warning|error): ")  # said before any of them


def _texts() -> str:
    """All strings of the sources, with … for what is filled in."""
    texts = []
    for folder in ("src/acme_fleet", "src/acme_fleet_runtime"):
        for path in (_ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            texts += [_text(node) for node in ast.walk(tree) if isinstance(node, _KINDS)]
    return "\n".join(texts)


_KINDS = (ast.Constant, ast.JoinedStr)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return "…"


_TEXTS = _texts()


@pytest.mark.parametrize("message", _QUOTED)
def test_message_is_in_the_sources(message: str):
    """Its words between two … may be of several strings, where one is put into another."""
    parts = [part.strip(" :;(") for part in _FIRST.sub("", message).split("…")]
    whole = [part for part in parts if len(part) > 3]
    assert whole, f"{message} says nothing"
    for part in whole:
        assert part in _TEXTS, part


def test_page_quotes_many():
    assert len(_QUOTED) > 50
