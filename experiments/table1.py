"""Table I: search space and upload against a centralised system."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from reproduction.bench import Bench
from reproduction.drawing import bars
from reproduction.frame import Findings, Goal, Story, main, mean_interval, text

from acme_fleet.data.partition import raw_bytes
from acme_fleet.edge.search_space import space_size

UPLOAD, LENT = "uploaded ÷ raw data", "uploaded, edges' shared data counted ÷ raw data"
EVALUATED, SPACE = "architectures tried ÷ centralised space", "space of all edges ÷ centralised"


def measure(bench: Bench) -> dict[str, Any]:
    summary, world = bench.summary, bench.world
    candidates = len(summary.clusters[0].candidates)
    headers = space_size(bench.fleet.header.blocks)
    # A centralised system searches backbone and header together, for each device.
    centralised = candidates * headers * len(summary.devices)
    edges = len(summary.clusters)
    tried = sum(c.contenders[0].evaluated for c in summary.clusters) + candidates
    lent = sum(int(samples.stored_bytes.sum()) for samples in world.shared.values())
    private = sum(raw_bytes(own) for own in world.private.values())
    traffic = summary.traffic
    return {
        "backbones": candidates,
        "headers of a space": headers,
        "devices": len(summary.devices),
        "centralised space": centralised,
        SPACE: (candidates + edges * headers) / centralised,
        EVALUATED: tried / centralised,
        "architectures tried": tried,
        UPLOAD: traffic.device_up_bytes / private,
        # The edges' data may have come from the devices; a centralised system uploads them too.
        LENT: (traffic.device_up_bytes + lent) / (private + lent),
        "bytes": {"uploaded": traffic.device_up_bytes, "private": private, "edges' own": lent},
        "accuracy": sum(d.accuracy for d in summary.devices) / len(summary.devices),
    }


def find(rows: list[dict[str, Any]]) -> Findings:
    keys = (UPLOAD, LENT, EVALUATED, SPACE, "accuracy")
    numbers = {key: mean_interval([row[key] for row in rows]) for key in keys}
    upload, tried = numbers[UPLOAD], numbers[EVALUATED]
    goals = [
        Goal(
            f"devices upload at most 1 % of their raw data: {text(upload, 2)} %",
            upload["mean"],
            upload["mean"] <= 0.01,
            "half-precision features of 32 samples, importance per neuron; not yet tried here: "
            "personalization.mix importance, which sends no weights of headers",
        ),
        Goal(
            f"at most 1 % of the centralised space's architectures are tried: {text(tried, 5)} %",
            tried["mean"],
            tried["mean"] <= 0.01,
        ),
    ]
    return Findings(
        f"space {text(numbers[SPACE], 2)} % of the centralised one, {text(tried, 5)} % of it "
        f"tried; uploaded {text(upload, 2)} % of the raw data, {text(numbers[LENT], 1)} % if "
        f"the edges' own data came from the devices",
        numbers,
        goals,
    )


def draw(figure: Figure, result: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    bars(
        left,
        {"space": result["numbers"][SPACE], "tried": result["numbers"][EVALUATED]},
        "% of the centralised space",
    )
    bars(
        right,
        {"messages": result["numbers"][UPLOAD], "and edges' data": result["numbers"][LENT]},
        "upload, % of the raw data",
    )


STORY = Story(
    "table1",
    "search space and upload against a centralised system",
    "search space about 1 %, upload on average 6 % of a centralised system's",
    measure,
    find,
    draw,
)

if __name__ == "__main__":
    main(STORY)
