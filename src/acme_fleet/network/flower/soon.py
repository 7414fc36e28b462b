"""Flower looks again soon for a part of a message that was announced before it was there.

Flower announces a message, then moves its parts. Who pulls in between sleeps for a second before
the next look, and a relay that sleeps passes nothing on. Flower 1.41 has no setting for it, so the
first pause of its functions is set here, in processes of ours: the relay, and those of messages.
"""

from __future__ import annotations

import importlib

SOON_S = 0.05
"""The first pause; each one is twice as long as the one before, up to ten seconds."""
_PULLING = ("pull_objects", "pull_and_inflate_object_from_tree")


def look_again_soon() -> None:
    """Set the first pause of the functions that pull a message's parts, in this process.

    Raises:
        KeyError: if this version of Flower has no such pause.
    """
    inflatable = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    for name in _PULLING:
        defaults = getattr(inflatable, name).__kwdefaults__
        defaults["initial_backoff"] = min(SOON_S, defaults["initial_backoff"])
