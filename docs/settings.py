"""Writes ``settings.md`` from the settings' own classes: ``python docs/settings.py``."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from acme_fleet.config.base import Settings
from acme_fleet.config.fleet import Fleet
from acme_fleet.stratos.pairs import PairTable
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.servers.hardware import Hardware
from acme_fleet.stratos.servers.machines import Machines

PAGE = Path(__file__).with_name("settings.md")
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {}",
}


def page() -> str:
    """The whole page."""
    lines = [
        "# Every setting of a fleet file",
        "",
        "Written by `python docs/settings.py`. A fleet file may leave out whatever has a default;",
        "unknown keys are refused. `acme init FILE` writes a commented example. Files that give",
        "`devices` and `device_types` in place of `clusters` are described in [costs](costs.md).",
        "Task files, machines and pairs of `acme distill` follow [below](#a-task-file).",
        *_sections("the file itself", Fleet),
        "",
        "# Every setting of `acme distill`",
        "",
        "`acme distill init FILE` writes commented examples; see [Stratos](stratos.md).",
        *_sections("a task file", Request),
        *_sections("a file of machines", Machines),
        *_sections("a table of pairs", PairTable),
        *_sections("a table of hardware", Hardware),
    ]
    return "\n".join(lines) + "\n"


def _sections(title: str, kind: type[Settings]) -> list[str]:
    """A file's settings, and those of every class that they mention."""
    schema = kind.model_json_schema()
    lines = _section(title, schema, schema.get("$defs", {}))
    waiting, seen = _references(schema), set()
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen.add(name)
            lines += _section(name, schema["$defs"][name], schema["$defs"])
            waiting += _references(schema["$defs"][name])
    return lines


def _section(name: str, schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    if "properties" not in schema:
        return []
    text = inspect.cleandoc(schema.get("description", "")).replace("``", "`")
    rows = [
        f"| `{key}` | {_type(told, definitions)} | {_default(key, told, schema, definitions)} "
        f"| {_line(told)} |"
        for key, told in schema["properties"].items()
    ]
    head = ["| key | value | default | meaning |", "|---|---|---|---|"]
    return ["", f"## {name}", "", text, "", *head, *rows]


def _line(told: dict[str, Any]) -> str:
    """A setting's own docstring."""
    return " ".join(told["description"].replace("``", "`").split())


def _type(told: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in told:
        name = told["$ref"].rpartition("/")[2]
        link = f"[{name}](#{name.lower()})"
        return link if "properties" in definitions[name] else _type(definitions[name], definitions)
    for several in ("anyOf", "oneOf"):
        if several in told:
            words = [_type(one, definitions) for one in told[several]]
            return " or ".join(dict.fromkeys(words))
    if "const" in told:
        return f"`{told['const']}`"
    if "enum" in told:
        return ", ".join(f"`{value}`" for value in told["enum"])
    if told.get("type") == "array":
        inner = [_type(one, definitions) for one in told.get("prefixItems", [])]
        words = ", ".join(inner) or _type(told.get("items", {}), definitions)
        words = f"list of {words}"
    else:
        words = {"integer": "whole number", "string": "text", "null": "none"}.get(
            told.get("type", "any"), told.get("type", "any")
        )
        words = "path" if told.get("format") == "path" else words
    bounds = [form.format(f"{told[key]:g}") for key, form in _BOUNDS.items() if key in told]
    return ", ".join([words, *bounds])


def _default(
    key: str, told: dict[str, Any], schema: dict[str, Any], definitions: dict[str, Any]
) -> str:
    if key in schema.get("required", []):
        return "**required**"
    default = told.get("default")
    if isinstance(default, dict) and "$ref" in told:
        own = definitions[told["$ref"].rpartition("/")[2]]["properties"]
        other = {k: v for k, v in default.items() if v != own[k].get("default")}
        return f"`{json.dumps(other)}`" if other else "its own"
    return "none" if default is None else f"`{json.dumps(default)}`"


def _references(schema: dict[str, Any]) -> list[str]:
    """Names of the classes that a class mentions, in order."""
    found = []
    text = json.dumps(schema.get("properties", {}))
    for part in text.split('"#/$defs/')[1:]:
        found.append(part.partition('"')[0])
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
