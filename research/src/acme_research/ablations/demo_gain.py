"""The gain of personalisation and of the searched header on the demo, over several seeds.

``python -m acme_research.ablations.demo_gain [--seeds 5] [--out runs/demo_gain]`` runs ``acme
demo`` for each seed and compares, on every device's full test set, the final model with the coarse
model it received, with a plain linear header on the same backbone and data, and with the
practitioner's rivals, a device's own and the mean of all: a logistic regression on the pixels, and
one on the features of the whole trained reference in int8. Another rival is that reference as it
is, answering among the classes that a device trained on. Devices of one run share a backbone, so a
seed's mean over its devices is one observation; the interval is Student's over seeds. The best of
ten lines is, in each seed, the best of the four regressions on the test set itself.
"""

import json
import statistics
from pathlib import Path

import torch

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Splits
from acme_fleet.models.features import Classifier
from acme_fleet.runs.summary import Summary
from acme_fleet.simulation.probe_rival import measure_probe
from acme_research.frame.intervals import mean_interval
from acme_research.frame.record import write_result
from acme_research.frame.runs import demo, finished_run, parser_of, reference_of

TEN_LINES = ("probe", "probe averaged", "features", "features averaged")


def main() -> None:
    arguments = parser_of(__doc__, "demo_gain").parse_args()
    summaries, references, sizes = [], [], []
    for seed in range(arguments.seeds):
        path = arguments.out / f"seed-{seed}"
        summaries.append(finished_run(demo(seed), path))
        columns, size_bytes = whole_reference(path)
        references.append(columns)
        sizes.append(size_bytes)
        print(f"seed {seed} done in {sum(summaries[-1].seconds.values()):.0f} s", flush=True)
    result = evaluate(summaries, references, sizes)
    print(json.dumps(result, indent=2))
    write_result("demo_gain", result)


def whole_reference(path: Path) -> tuple[dict[str, dict[str, float]], int]:
    """The trained reference of a finished run, whole and in int8.

    Returns:
        By device, on its full test set: accuracies of a regression on the reference's features, of
        the mean of all, and of its own classifier among the classes that the device trained on.
        Bytes of the reference with a regression.
    """
    world = load_world(Fleet.from_yaml(path / "fleet.yaml"))
    model = reference_of(path, world)
    measured = measure_probe(model.backbone, None, world, lambda *_: None)  # rounds it
    itself = {name: accuracy_among_own(model, own) for name, own in world.private.items()}
    columns = {"features": measured.alone, "features averaged": measured.averaged}
    return columns | {"whole reference": itself}, measured.size_bytes_int8


@torch.no_grad()
def accuracy_among_own(model: Classifier, own: Splits) -> float:
    """Share of right answers where only classes of the training samples are answered."""
    seen, labels = own.train.labels.unique(), own.test.labels
    answers = seen[model(**own.test.inputs)[:, seen].argmax(dim=1)]
    return float((answers == labels).double().mean())


def evaluate(
    summaries: list[Summary], references: list[dict[str, dict[str, float]]], sizes: list[int]
) -> dict[str, object]:
    devices = [device for summary in summaries for device in summary.devices]
    seconds = [sum(summary.seconds.values()) for summary in summaries]
    by_seed = [seed_means(*pair) for pair in zip(summaries, references, strict=True)]
    best = [max(means[name] for name in TEN_LINES) for means in by_seed]
    columns = {name: [means[name] for means in by_seed] for name in by_seed[0]}
    rivals = {name: column for name, column in columns.items() if name != "final"}
    return {
        **{f"final - {name}": gain(by_seed, column) for name, column in rivals.items()},
        "final - best of ten lines": gain(by_seed, best),
        "accuracy": {name: statistics.fmean(column) for name, column in columns.items()},
        "accuracy by seed": by_seed,
        "probe bytes": [s.probe.size_bytes for s in summaries if s.probe],
        "features bytes": sizes,
        "device bytes": [device.size_bytes for device in devices],
        "reference accuracy": [summary.reference.accuracy for summary in summaries],
        "every device within its limit": all(d.size_bytes <= d.capacity_bytes for d in devices),
        "lost devices": sum(len(c.lost) for summary in summaries for c in summary.clusters),
        "upload_ratio": [summary.traffic.upload_ratio for summary in summaries],
        "test samples": sum(d.test_samples for d in devices),
        "seconds": {"median": statistics.median(seconds), "max": max(seconds)},
        "seeds": [summary.seed for summary in summaries],
    }


def seed_means(summary: Summary, reference: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean accuracy over a run's devices, by model."""
    names = ("", "coarse", "linear", "probe", "probe averaged")
    keys = {name or "final": "_".join(["accuracy", *name.split()]) for name in names}
    devices = summary.devices
    columns = {name: [getattr(device, key) for device in devices] for name, key in keys.items()}
    columns |= {name: [of[device.name] for device in devices] for name, of in reference.items()}
    return {name: statistics.fmean(column) for name, column in columns.items()}


def gain(by_seed: list[dict[str, float]], rivals: list[float]) -> dict[str, object]:
    """Mean of (final − rival) with its 95 % interval, in points, paired by seed."""
    gains = [100 * (means["final"] - rival) for means, rival in zip(by_seed, rivals, strict=True)]
    return {**mean_interval(gains), "by seed": gains}


if __name__ == "__main__":
    main()
