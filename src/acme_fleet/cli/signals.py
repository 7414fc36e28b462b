"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from acme_fleet.cli.app import say

ENDING = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if name in signal.Signals.__members__
)


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def heed(seen: list[KeyboardInterrupt]) -> None:
    """Let the signals raise :class:`Stopped` in the main thread, and put it into ``seen``."""

    def stop(number: int, _: FrameType | None) -> None:
        seen.append(Stopped(number))
        raise seen[-1]

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` has SIGHUP ignored
            signal.signal(number, stop)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    return 128 + int(number)


@contextmanager
def stop_explained(advice: str) -> Iterator[None]:
    """After a signal the last line says how to go on, and the exit code which signal it was."""
    try:
        yield
    except KeyboardInterrupt as stop:
        say(f"interrupted; {advice}", error=True)
        raise typer.Exit(exit_code(stop)) from None
