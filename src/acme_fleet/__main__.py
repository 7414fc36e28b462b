"""``acme``, also as ``python -m acme_fleet``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that was typed.

    Little is imported before the ``try``: an early Ctrl-C is told in one word, too.
    """
    try:
        from acme_fleet.cli.__main__ import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
