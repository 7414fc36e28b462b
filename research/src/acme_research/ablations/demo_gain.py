"""The gain of personalisation and of the searched header on the demo, over several seeds.

``python -m acme_research.ablations.demo_gain [--seeds 5] [--out runs/demo_gain]`` runs ``acme
demo`` for each seed and compares, on every device's full test set, the final model with the coarse
model it received, with a plain linear header on the same backbone and data, and with the
practitioner's rival: a logistic regression on the pixels, a device's own and the mean of all.
Devices of one run share a backbone, so a seed's mean over its devices is one observation; the
interval is Student's over seeds.
"""

import json
import statistics

from acme_fleet.runs.summary import DeviceSummary, Summary
from acme_research.frame.intervals import mean_interval
from acme_research.frame.record import write_result
from acme_research.frame.runs import demo, finished_run, parser_of


def main() -> None:
    arguments = parser_of(__doc__, "demo_gain").parse_args()
    summaries = []
    for seed in range(arguments.seeds):
        summaries.append(finished_run(demo(seed), arguments.out / f"seed-{seed}"))
        print(f"seed {seed} done in {sum(summaries[-1].seconds.values()):.0f} s", flush=True)
    result = evaluate(summaries)
    print(json.dumps(result, indent=2))
    write_result("demo_gain", result)


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
    }


def difference(summaries: list[Summary], rival: str) -> dict[str, object]:
    """Mean of (final − rival) with its 95 % interval, in points, paired by device."""

    def gain(device: DeviceSummary) -> float:
        return 100 * (device.accuracy - getattr(device, rival))

    by_seed = [statistics.fmean(gain(d) for d in summary.devices) for summary in summaries]
    return {**mean_interval(by_seed), "by seed": by_seed}


if __name__ == "__main__":
    main()
