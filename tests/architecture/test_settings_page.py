"""The reference of settings is what the settings' classes say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from acme_fleet.config.base import Settings
from acme_fleet.config.fleet import Fleet
from acme_fleet.stratos.pairs import PairTable
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.servers.hardware import Hardware
from acme_fleet.stratos.servers.machines import Machines

_DOCS = Path(__file__).parents[2] / "docs"


def test_page_is_up_to_date():
    """If not: ``python docs/settings.py``."""
    page = runpy.run_path(str(_DOCS / "settings.py"))["page"]
    assert (_DOCS / "settings.md").read_text() == page()


@pytest.mark.parametrize("kind", [Fleet, Request, Machines, PairTable, Hardware])
def test_page_says_of_every_setting_what_it_does(kind: type[Settings]):
    text = (_DOCS / "settings.md").read_text()
    schema = kind.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        for key, told in definition.get("properties", {}).items():
            line = told.get("description", "")
            assert re.match(r"[A-ZΑ-Ωα-ω`].*\.$", line, re.DOTALL), f"{key}: {line!r}"
            row = next(row for row in text.splitlines() if row.startswith(f"| `{key}` |"))
            assert row.count(" | ") == 3
            assert line.split("\n")[0].replace("``", "`") in text
