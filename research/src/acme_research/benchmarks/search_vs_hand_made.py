"""The searched header − the best hand-made one of its size, in test accuracy.

``python -m acme_research.benchmarks.search_vs_hand_made`` reads the results of ``acme reproduce
fig7b``, where both were trained side by side on the same backbones and data; the value is of the
largest scale that was measured. A seed's mean over the backbones' depths is one observation.
"""

from acme_research.frame.intervals import text
from acme_research.frame.page import read_results
from acme_research.frame.record import write_benchmark


def main() -> None:
    results = {r["scale"]: r for r in read_results() if r["name"] == "fig7b"}  # the largest first
    gaps = {
        scale: result["numbers"]["mean over depths, - best"] for scale, result in results.items()
    }
    for scale, gap in gaps.items():
        print(f"{scale:<8}{text(gap, 2)} points")
    scale = next(iter(results))
    low, high = gaps[scale]["interval"]
    write_benchmark(
        "search_vs_hand_made",
        low,
        (low, high),
        {"scale": scale, "mean over depths": gaps},
        seeds=range(len(results[scale]["seeds"])),
    )


if __name__ == "__main__":
    main()
