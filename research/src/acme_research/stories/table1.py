"""Table I: search space and upload against a centralised system."""

from typing import Any

from matplotlib.figure import Figure

from acme_fleet.data.partition import raw_bytes
from acme_fleet.edge.search_space import space_size
from acme_fleet.runs.summary import Summary
from acme_research.frame.bench import Bench
from acme_research.frame.drawing import bars
from acme_research.frame.intervals import mean_interval, text
from acme_research.frame.probe import of_run
from acme_research.frame.story import Findings, Goal, Story

CHEAPEST = "importance, sketches"
UPLOAD, LENT = "uploaded ÷ raw data", "uploaded, edges' shared data counted ÷ raw data"
EVALUATED, SPACE = "architectures tried ÷ centralised space", "space of all edges ÷ centralised"


def ways(hidden: int) -> dict[str, dict[str, Any]]:
    """Settings of devices' uploads, by name; sketches are a third as long as features."""
    return {
        "weights too": {"mix": "both"},
        "importance": {"mix": "importance"},
        "importance, 8 bits": {"mix": "importance", "privacy": {"sketch_bits": 8}},
        CHEAPEST: {"mix": "importance", "privacy": {"sketch_bits": 8, "sketch_dim": hidden // 3}},
    }


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
    asked = ways(bench.elastic.sizes.hidden)
    uploads = {name: bench.personalised(name, changes) for name, changes in asked.items()}
    return {
        "backbones": candidates,
        "headers of a space": headers,
        "devices": len(summary.devices),
        "centralised space": centralised,
        SPACE: (candidates + edges * headers) / centralised,
        EVALUATED: tried / centralised,
        "architectures tried": tried,
        "bytes": {"private": private, "edges' own": lent},
        "ways": {name: _upload(told, private, lent) for name, told in uploads.items()},
    }


def _upload(summary: Summary, private: int, lent: int) -> dict[str, float]:
    uploaded = summary.traffic.device_up_bytes
    return {
        "uploaded bytes": uploaded,
        UPLOAD: uploaded / private,
        # The edges' data may have come from the devices; a centralised system uploads them too.
        LENT: (uploaded + lent) / (private + lent),
        "accuracy": sum(d.accuracy for d in summary.devices) / len(summary.devices),
    }


def find(rows: list[dict[str, Any]]) -> Findings:
    numbers: dict[str, Any] = {
        k: mean_interval([row[k] for row in rows]) for k in (EVALUATED, SPACE)
    }
    for way, keys in rows[0]["ways"].items():
        columns = {key: [row["ways"][way][key] for row in rows] for key in keys}
        numbers[way] = {key: mean_interval(values) for key, values in columns.items()}
    tried, cheapest = numbers[EVALUATED], numbers[CHEAPEST][UPLOAD]
    uploads = "; ".join(
        f"{way} {text(numbers[way][UPLOAD], 2)} % (accuracy {text(numbers[way]['accuracy'])})"
        for way in rows[0]["ways"]
    )
    goals = [
        Goal(
            f"devices upload at most 1 % of their raw data ({CHEAPEST}): {text(cheapest, 2)} %",
            cheapest["mean"],
            cheapest["mean"] <= 0.01,
            "features projected to a third of their length, 8 bits; importance per neuron",
        ),
        Goal(
            f"at most 1 % of the centralised space's architectures are tried: {text(tried, 5)} %",
            tried["mean"],
            tried["mean"] <= 0.01,
        ),
    ]
    return Findings(
        f"space {text(numbers[SPACE], 2)} % of the centralised one, {text(tried, 5)} % of it "
        f"tried; uploaded, of the raw data: {uploads}",
        numbers,
        goals,
    )


def draw(figure: Figure, result: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    numbers = result["numbers"]
    spaces = {"space": numbers[SPACE], "tried": numbers[EVALUATED]}
    bars(left, spaces, "% of the centralised space")
    uploads = {way: numbers[way][UPLOAD] for way in result["seeds"][0]["ways"]}
    bars(right, uploads, "upload, % of the raw data")


STORY = Story(
    "table1",
    "search space and upload against a centralised system",
    "search space about 1 %, upload on average 6 % of a centralised system's",
    measure,
    find,
    draw,
    of_run,
)
