"""Write docs/demo.svg, the README's picture of a terminal, from a run of the demo.

``python docs/terminal.py`` runs ``acme demo`` and one export, in two to three minutes; the picture
holds what they print, but for stages in the middle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

_PICTURE = Path(__file__).parent / "demo.svg"
_COLUMNS = 118
_STAGES = 9, 2  # shown of them, first and last
_COMMANDS = ("acme demo", "acme export runs/demo --device badge-1")
_THEME = TerminalTheme(
    (24, 28, 34),
    (222, 226, 230),
    [
        *((60, 64, 70), (240, 113, 120), (126, 200, 140), (236, 196, 108)),
        *((110, 170, 240), (198, 146, 233), (99, 205, 205), (222, 226, 230)),
    ],
)
# Rich's own without a font from elsewhere.
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width}}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def main() -> None:
    """Run the commands, and draw what they print."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [_output(command, folder) for command in _COMMANDS]
    _PICTURE.write_text(picture(dict(zip(_COMMANDS, printed, strict=True))), encoding="utf-8")


def _output(command: str, folder: str) -> str:
    """All that a command prints; it is shown meanwhile."""
    words = [sys.executable, "-m", "acme_fleet", *command.split()[1:]]
    sizes = {"COLUMNS": str(_COLUMNS), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        words, cwd=folder, env={**os.environ, **sizes}, stdout=subprocess.PIPE, text=True
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        sys.stdout.write(line)
    if process.wait():
        raise SystemExit(f"{command} failed")
    return "".join(lines).replace(f"{Path(folder).resolve()}/", "").replace(f"{folder}/", "")


def picture(printed: dict[str, str]) -> str:
    """The terminal as SVG, by command."""
    console = Console(record=True, width=_COLUMNS, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    for command, output in printed.items():
        console.print(Text(f"$ {command}", style="bold green"))
        for line in _shortened(output.splitlines()):
            console.print(_styled(line.rstrip()), soft_wrap=False)
    return console.export_svg(title="", theme=_THEME, code_format=_SVG, unique_id="acme")


def _shortened(lines: list[str]) -> list[str]:
    """Without the stages in the middle, and what was told of them meanwhile."""
    lines = [line for line in lines if " so far; " not in line]
    stages = [number for number, line in enumerate(lines) if " done in " in line]
    first, last = _STAGES
    if len(stages) <= first + last:
        return lines
    begin, end = stages[first], stages[-last]
    return [*lines[:begin], f"⋮ {end - begin} more lines", *lines[end:]]


def _styled(line: str) -> Text:
    text = Text(line)
    if " done in " in line or line.startswith("⋮"):
        text.stylize("dim")
    text.highlight_regex(r"^(warning|next):", "bold yellow")
    text.highlight_regex(r"^\s+\w.*accuracy on devices' test data.*$", "bold")
    text.highlight_regex(r"(?<=[┃│])[^┃│]*(?=[┃│][^┃│]*[┃│]$)", "cyan")  # the column `final`
    return text


if __name__ == "__main__":
    main()
