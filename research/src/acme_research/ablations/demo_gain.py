"""What personalisation and the searched header are worth on the demo, over several seeds.

``python experiments/demo_gain.py [--seeds 5] [--out runs/demo_gain]`` runs ``acme demo`` for each
seed and compares, on every device's full test set, the final model with the coarse model it
received, with a plain linear header on the same backbone and data, and with the practitioner's
rival: a logistic regression on the pixels, a device's own and the mean of all. Devices of one run
share a backbone, so a seed's mean over its devices is one observation; the interval is Student's
over seeds.
"""

import argparse
import json
import statistics
from datetime import UTC, datetime
from pathlib import Path

from scipy import stats

import acme_fleet
from acme_fleet.cli import EXAMPLE
from acme_fleet.runs.summary import DeviceSummary, Summary

RESULT = Path(__file__).parent / "results" / "demo_gain.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_gain"))
    arguments = parser.parse_args()
    fleet = acme_fleet.Fleet.from_yaml(EXAMPLE)
    summaries = []
    for seed in range(arguments.seeds):
        out = arguments.out / f"seed-{seed}"
        if (out / "summary.json").exists():
            summaries.append(Summary.read(out / "summary.json"))
            continue
        seeded = fleet.model_copy(update={"seed": seed})
        resume = (out / "fleet.yaml").exists()
        summaries.append(acme_fleet.customize(seeded, out, resume=resume))
        print(f"seed {seed} done in {sum(summaries[-1].seconds.values()):.0f} s", flush=True)
    result = evaluate(summaries)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def evaluate(summaries: list[Summary]) -> dict[str, object]:
    devices = [device for summary in summaries for device in summary.devices]
    seconds = [sum(summary.seconds.values()) for summary in summaries]
    return {
        "final - coarse": difference(summaries, "accuracy_coarse"),
        "final - linear": difference(summaries, "accuracy_linear"),
        "final - probe": difference(summaries, "accuracy_probe"),
        "final - probe averaged": difference(summaries, "accuracy_probe_averaged"),
        "accuracy": {
            name: statistics.fmean(getattr(d, name) for d in devices)
            for name in (
                *("accuracy_coarse", "accuracy_linear", "accuracy"),
                *("accuracy_probe", "accuracy_probe_averaged"),
            )
        },
        "probe bytes": [s.probe.size_bytes for s in summaries if s.probe],
        "reference accuracy": [summary.reference.accuracy for summary in summaries],
        "every device within its limit": all(d.size_bytes <= d.capacity_bytes for d in devices),
        "lost devices": sum(len(c.lost) for summary in summaries for c in summary.clusters),
        "upload_ratio": [summary.traffic.upload_ratio for summary in summaries],
        "test samples": sum(d.test_samples for d in devices),
        "seconds": {"median": statistics.median(seconds), "max": max(seconds)},
        "seeds": [summary.seed for summary in summaries],
        "date": datetime.now(UTC).date().isoformat(),
    }


def difference(summaries: list[Summary], rival: str) -> dict[str, object]:
    """Mean of (final − rival) with its 95 % interval, in points, paired by device."""

    def gain(device: DeviceSummary) -> float:
        return 100 * (device.accuracy - getattr(device, rival))

    by_seed = [statistics.fmean(gain(d) for d in summary.devices) for summary in summaries]
    mean = statistics.fmean(by_seed)
    half = 0.0
    if len(by_seed) > 1:
        error = statistics.stdev(by_seed) / len(by_seed) ** 0.5
        half = float(stats.t.ppf(0.975, len(by_seed) - 1)) * error
    return {"mean": mean, "interval": [mean - half, mean + half], "by seed": by_seed}


if __name__ == "__main__":
    main()
