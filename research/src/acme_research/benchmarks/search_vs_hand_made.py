"""The searched header − the best hand-made one of its size, in test accuracy.

``python -m acme_research.benchmarks.search_vs_hand_made`` reads
``research/results/header_search_*.json``, where both were trained side by side on the same backbone
and data; run the experiment first.
"""

from __future__ import annotations

import json

from acme_research.frame.places import RESULTS
from acme_research.frame.record import write_benchmark

DEFAULT = "random, frozen, fresh - best hand-made"
SOURCE = "cifar20"  # the larger of the two; both are in the details


def main() -> None:
    results = {
        path.stem.removeprefix("header_search_"): json.loads(path.read_text())
        for path in sorted(RESULTS.glob("header_search_*.json"))
    }
    details = {
        source: {
            row: gap
            for row, gap in result["differences in points of test accuracy"].items()
            if row.endswith("best hand-made")
        }
        for source, result in results.items()
    }
    for source, rows in details.items():
        for row, gap in rows.items():
            print(f"{source:<8} {row:<44} {gap['mean']:+.2f} {gap['interval']}")
    low, high = (x / 100 for x in details[SOURCE][DEFAULT]["interval"])
    write_benchmark(
        name="search_vs_hand_made",
        value=low,
        unit="lower end of the 95 % interval of (searched - best hand-made), test accuracy",
        better="higher",
        goal=0.0,
        rival="the best of linear, MLP, CNN and Mixer of equal size by the edge's own choice data",
        seeds=[record["seed"] for record in results[SOURCE]["seeds"]],
        interval=(low, high),
        details={"points of test accuracy": details},
    )


if __name__ == "__main__":
    main()
