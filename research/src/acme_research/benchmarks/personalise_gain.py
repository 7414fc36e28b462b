"""Mixing rows by class − the better of Alone and FedAvg, non-IID, in test accuracy.

``python -m acme_research.benchmarks.personalise_gain`` reads
``research/results/personalisation.json``, where all were trained side by side on the same devices,
splits and coarse header; run the experiment first. All train for 40 epochs; FedAvg is there with
three rounds and, as ours, with seven. The best rival is chosen by the mean over all seeds, case by
case, which favours the rivals.
"""

import json

import numpy as np

from acme_research.frame.intervals import mean_interval, student_interval
from acme_research.frame.places import RESULTS
from acme_research.frame.record import write_benchmark

SOURCE = RESULTS / "personalisation.json"
OURS, RIVALS = "FedAvg, rows by class", ("Alone", "FedAvg", "FedAvg, seven rounds")


def main() -> None:
    cases = {
        name: methods
        for name, methods in json.loads(SOURCE.read_text())["methods"].items()
        if not name.endswith("iid")
    }
    gains, details = [], {}
    for name, methods in cases.items():
        best = max(RIVALS, key=lambda rival: methods[rival]["test"])
        gain = 100 * np.subtract(methods[OURS]["by seed"], methods[best]["by seed"])
        gains.append(gain)
        details[name] = {"rival": best, **mean_interval(gain)}
        print(f"{name:<16} ours - {best:<8} {gain.mean():+.2f} {details[name]['interval']}")
    # A seed's mean over the cases is one observation.
    by_seed = np.mean(gains, axis=0)
    low, high = (end / 100 for end in student_interval(by_seed))
    write_benchmark(
        "personalise_gain",
        low,
        (low, high),
        {"mean, points": float(by_seed.mean()), "cases, points": details},
        seeds=list(range(len(by_seed))),
    )


if __name__ == "__main__":
    main()
