"""The reference of settings is what the settings' classes say."""

from __future__ import annotations

import runpy
from pathlib import Path

from acme_fleet.config.fleet import Fleet

_DOCS = Path(__file__).parents[2] / "docs"


def test_page_is_up_to_date():
    """If not: ``python docs/settings.py``."""
    page = runpy.run_path(str(_DOCS / "settings.py"))["page"]
    assert (_DOCS / "settings.md").read_text() == page()


def test_page_names_every_setting():
    text = (_DOCS / "settings.md").read_text()
    schema = Fleet.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        for key in definition.get("properties", {}):
            assert f"| `{key}` |" in text
