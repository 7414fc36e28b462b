"""Names and addresses of hosts: which are none, and what is said about those that nobody has."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from difflib import get_close_matches

_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_MOST_SHOWN = 5


def is_host(text: str) -> bool:
    """True for an IP address, or a host name by RFC 1123."""
    if is_ip(text):
        return True
    labels = text.split(".")
    # A name whose last part is a number would be read as an address, e.g. 10.0.0.300.
    return (
        len(text) <= 253
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdecimal()
    )


def is_ip(text: str) -> bool:
    """True for an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def instead_of(name: str, known: Sequence[str]) -> str:
    """Suggestions for an unknown name: a few of the known ones."""
    close = get_close_matches(name, known, n=1)
    shown = ", ".join(known[:_MOST_SHOWN])
    left = len(known) - _MOST_SHOWN
    listed = f"it has {shown}" + (f" and {left} more" if left > 0 else "")
    return listed + (f"; did you mean {close[0]}?" if close else "")
