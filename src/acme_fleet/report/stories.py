"""The stories of the paper's evaluation, which a clone of the project has in ``experiments/``."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from acme_fleet.errors import FleetError

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
_ORDER = (
    *("fig1", "table1", "fig7a", "fig7b", "fig8"),
    *("fig9", "fig10", "fig11", "fig12", "fig13", "clinc150"),
)


def read_stories() -> dict[str, str]:
    """Names of all stories, each with the first line of its file.

    Raises:
        FleetError: if the package was not installed from a clone.
    """
    if not (EXPERIMENTS / "reproduction").is_dir():
        raise FleetError(
            f"there is no {EXPERIMENTS}: the stories are in a clone of the project; install from "
            f"it with `pip install -e .`"
        )
    texts = {name: (EXPERIMENTS / f"{name}.py").read_text() for name in _ORDER}
    docs = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def run_story(name: str, options: Sequence[str]) -> int:
    """Run a story in a process of its own; returns its exit status.

    Raises:
        FleetError: if there is no such story.
    """
    stories = read_stories()
    if name not in stories:
        raise FleetError(f"there is no story {name}; choose one of {', '.join(stories)}")
    with subprocess.Popen([sys.executable, str(EXPERIMENTS / f"{name}.py"), *options]) as story:
        while True:
            try:
                return story.wait()
            except KeyboardInterrupt as stop:
                # Ctrl-C has reached the story too, which ends its processes; SIGTERM has not.
                if stop.args and stop.args[0] != signal.SIGINT:
                    story.send_signal(signal.SIGINT)
