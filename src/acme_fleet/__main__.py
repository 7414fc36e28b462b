"""``acme``, also as ``python -m acme_fleet``."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command that was typed.

    Little is imported before the ``try``: an early end is told in one word, too.
    """
    try:
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` has SIGHUP ignored
                signal.signal(number, _stop)
        from acme_fleet.cli.__main__ import main as run

        run()
    except KeyboardInterrupt as stop:
        sys.stderr.write("interrupted\n")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


def _stop(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    main()
