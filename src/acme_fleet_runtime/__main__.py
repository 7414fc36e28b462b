"""``acme-runtime``, also as ``python -m acme_fleet_runtime``."""

import sys

from acme_fleet_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
