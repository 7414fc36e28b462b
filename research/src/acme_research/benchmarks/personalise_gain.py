"""Mixing rows by class − the better of Alone and FedAvg, non-IID, in test accuracy.

``python benchmarks/personalise_gain.py`` reads ``experiments/results/personalisation.json``, where
all were trained side by side on the same devices, splits and coarse header; run the experiment
first. All train for 40 epochs; FedAvg is there with three rounds and, as ours, with seven. The best
rival is chosen by the mean over all seeds, case by case, which favours the rivals.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from record import student_interval, write_result

SOURCE = Path(__file__).parents[1] / "experiments" / "results" / "personalisation.json"
OURS, RIVALS = "FedAvg, rows by class", ("Alone", "FedAvg", "FedAvg, seven rounds")


def main() -> None:
    started = time.perf_counter()
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
        details[name] = {
            "rival": best,
            "mean": float(gain.mean()),
            "interval": list(student_interval(gain)),
        }
        print(f"{name:<16} ours - {best:<8} {gain.mean():+.2f} {details[name]['interval']}")
    # A seed's mean over the cases is one observation.
    by_seed = np.mean(gains, axis=0)
    low, high = (end / 100 for end in student_interval(by_seed))
    path = write_result(
        "personalise_gain",
        low,
        "lower end of the 95 % interval of (ours - the better of Alone and FedAvg), test accuracy",
        "higher",
        0.02,
        "the better of Alone and FedAvg in each non-IID case",
        list(range(len(by_seed))),
        (low, high),
        time.perf_counter() - started,
        {"mean, points": float(by_seed.mean()), "cases, points": details},
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
