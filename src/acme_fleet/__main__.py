"""``acme``, also as ``python -m acme_fleet``."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end the process.

    Little is imported before the first ``try``: Ctrl-C is told in one word from then on.
    """
    code = 130
    try:
        from acme_fleet.cli import app
        from acme_fleet.failures import own_process

        code = own_process(app)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
