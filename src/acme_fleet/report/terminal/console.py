"""The console that tables are printed to."""

from __future__ import annotations

from rich.console import Console


def table_console() -> Console:
    """A console for tables; in a log file they need not fit a terminal's 80 columns.

    It takes text as it is: brackets in names are no markup.
    """
    console = Console(markup=False)
    if console.is_terminal:
        return console
    return Console(markup=False, width=max(console.width, 120))
