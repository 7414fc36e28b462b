"""Every command, setting, import and make target that the documentation shows exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

import acme_fleet
from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet_runtime import cli as runtime
from tiny_fleet import tiny

_ROOT = Path(__file__).parents[2]
_PAGES = [
    path
    for path in (
        *(_ROOT / folder / "README.md" for folder in (".", "examples", "research")),
        *(_ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")),
        *(_ROOT / "docs").glob("*.md"),
    )
    if path.name != "settings.md"  # written by the program
]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_ANY_BLOCK = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`acme ([^`\n|]+)`")
_SCHEDULE = r"(?:[\d*/]+ ){5}"  # of cron
_COMMAND = re.compile(
    rf"(?:{_SCHEDULE}|docker compose exec \S+ )?(?:\S+/)?(acme|acme-runtime|make|python) (.*)"
)
_ROW = re.compile(r"^\| `(.+?)`", re.MULTILINE)  # of a table that begins with a command
_COMMANDS = typer.main.get_command(app)


def _blocks(kinds: set[str]) -> Iterator[tuple[str, str]]:
    for page in sorted(_PAGES):
        text = page.read_text()
        for found in _BLOCK.finditer(text):
            if found[1] in kinds:
                line = text.count("\n", 0, found.start()) + 2
                yield f"{page.name}:{line}", found[2]


def _commands() -> Iterator[Any]:
    for place, block in _blocks({"", "bash", "console"}):
        for line in block.replace("\\\n", " ").splitlines():
            if (found := _COMMAND.match(line)) and "──" not in line:
                words = shlex.split(re.split(r" [>&|]{1,2} ", found[2])[0], comments=True)
                yield pytest.param(found[1], words, id=f"{place} {' '.join(words)[:60]}")
    for words in map(shlex.split, _ROW.findall((_ROOT / "examples/README.md").read_text())):
        yield pytest.param(words[0], words[1:], id=f"examples {' '.join(words[1:])[:60]}")


def _parse(words: list[str]) -> None:
    """Let every command on the way parse its words; nothing is run."""
    command: Any
    command, name, words = _COMMANDS, "acme", list(words)
    context = None
    while True:
        context = command.make_context(name, words, parent=context)
        if not isinstance(command, TyperGroup):
            return
        rest = [*context._protected_args, *context.args]
        name, found, words = command.resolve_command(context, rest)
        assert found is not None, name
        command = found


@pytest.mark.parametrize(("program", "words"), [*_commands()])
def test_command_can_be_typed_as_it_stands(program: str, words: list[str]):
    if program == "acme":
        _parse(words)
    elif program == "acme-runtime":
        runtime._parser().parse_args(words)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
    elif program != "python" or words[0].endswith(".py"):  # sh, jupyter lab
        assert any((_ROOT / word).is_file() for word in words)


def _mentioned() -> Iterator[Any]:
    """Commands in the running text of pages, with placeholders for what is not a name."""
    for page in sorted(_PAGES):
        for span in _SPAN.findall(_ANY_BLOCK.sub("", page.read_text())):
            yield pytest.param(span.split(), id=f"{page.name} {span[:60]}")


@pytest.mark.parametrize("words", [*_mentioned()])
def test_commands_and_options_in_the_text_exist(words: list[str]):
    command: Any = _COMMANDS
    while isinstance(command, TyperGroup) and words and words[0] != "…":
        name, *words = words
        command, group = command.get_command(None, name), command.name
        assert command is not None, f"{group} has no command {name}"
    known = {option for each in command.params for option in each.opts + each.secondary_opts}
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option.rstrip("…") in known | {"--help"}, f"{command.name} has no {option}"


@pytest.mark.parametrize(("place", "block"), [*_blocks({"python"})])
def test_names_in_python_exist(place: str, block: str):
    """Every name that is imported from here, and every attribute of ``acme_fleet``."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("acme"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                getattr(module, name.name)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "acme_fleet":
            getattr(acme_fleet, node.attr)


_TEXTS = {"data": {"source": "text", "train": "train.jsonl"}, "reference": {"checkpoint": "minilm"}}


@pytest.mark.parametrize(("place", "block"), [*_blocks({"yaml"})])
def test_settings_are_a_part_of_a_fleet_file(place: str, block: str, tmp_path: Path):
    """With the rest of the tests' own fleet they make a whole one."""
    shutil.copy(_ROOT / "research/results/profile_vit_tiny.yaml", tmp_path / "board.yaml")
    settings = yaml.safe_load(block)
    whole = tiny().model_dump(mode="json", exclude_defaults=True)
    if "vocabulary" in settings.get("backbone", {}):
        whole |= _TEXTS
    if "devices" in settings:
        del whole["clusters"]
    Fleet.parse(whole | settings, place, tmp_path)
