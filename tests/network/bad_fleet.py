"""A small fleet with mutual TLS in which every host dials over a line that can be made bad."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bad_line import BadLine

from acme_fleet.config.fleet import Fleet
from acme_research.frame.loopback import Hosts, hosts_up, short_folder
from tiny_fleet import tiny

RUN_S = 300
Lines = dict[str, BadLine]


def bad_fleet() -> Fleet:
    """One edge server with three devices, of which one suffices for a round."""
    changes = {
        "reference.training.epochs": 2,
        "backbone.distillation.training.epochs": 1,
        "search.rivals": False,
        "personalization.rounds": 1,
        "personalization.quorum": 0.3,
        "personalization.mix": "weights",
    }
    content = tiny(**changes).model_dump()
    (north, *_) = content["clusters"]
    third = {**north["devices"][0], "name": "cam-3"}
    return Fleet.model_validate(
        {**content, "clusters": [{**north, "devices": [*north["devices"], third]}]}
    )


@contextmanager
def over_lines(fleet: Fleet, grace_s: float) -> Iterator[tuple[Hosts, Lines]]:
    """All hosts, up, and the line of each that dials; good ones until somebody says otherwise."""
    lines: Lines = {}

    def dial(name: str, port: int) -> int:
        lines[name] = BadLine(port, seed=len(lines))
        return lines[name].port

    try:
        with short_folder() as folder:
            hosts = Hosts(folder, fleet, {"grace_s": grace_s, "mutual_tls": True}, dial=dial)
            with hosts_up(hosts):
                yield hosts, lines
    finally:
        for line in lines.values():
            line.close()
