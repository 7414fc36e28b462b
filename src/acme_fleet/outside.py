"""The border to data from outside, which the runner of artifacts has too."""

from acme_fleet_runtime.outside import (
    listed,
    one_line,
    optional,
    read_regular,
    reading,
    reason,
    regular,
    resolved,
)

__all__ = [
    "listed",
    "one_line",
    "optional",
    "read_regular",
    "reading",
    "reason",
    "regular",
    "resolved",
]
