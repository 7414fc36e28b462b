"""The first rival of every run, beside a story's own accuracies: the reference is kept whole.

Its weights are untouched and in int8; without a checkpoint its features are the raw inputs. A
logistic regression on its pooled features is all that is trained, see
:mod:`acme_fleet.simulation.probe_rival`. A story without an accuracy of a model of ours has no such
rival.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.reference import checkpoint_backbone
from acme_fleet.runs.summary import DeviceSummary, Summary
from acme_fleet.simulation.probe_rival import Encoder, measure_regressions
from acme_fleet.tasks.probe import Read, Scaling, fit_probe
from acme_research.frame.bench import Bench
from acme_research.frame.intervals import mean_interval, text

ALONE, AVERAGED = "a regression on each device", "the mean of all devices' regressions"
PUBLIC = "a regression on the public data"
ON_PUBLIC = "public data, all test samples"

Figures = dict[str, Any]
"""``accuracy`` by way, the mean over the devices, and bytes of what a device keeps."""
Places = dict[str, Figures]
"""By a part of the story: a storage limit, a distribution."""


def accuracies(devices: Sequence[DeviceSummary]) -> dict[str, list[float]] | None:
    """By way, of each device; none for a run of before the rival was measured."""
    columns = {
        ALONE: [device.accuracy_probe for device in devices],
        AVERAGED: [device.accuracy_probe_averaged for device in devices],
    }
    found = {way: [x for x in column if x is not None] for way, column in columns.items()}
    return found if all(len(column) == len(devices) for column in found.values()) else None


def of_devices(summary: Summary, devices: Sequence[DeviceSummary]) -> Figures | None:
    """The rival on these devices of a run."""
    found = accuracies(devices)
    if found is None or summary.probe is None:
        return None
    return {
        "accuracy": {way: fmean(column) for way, column in found.items()},
        "size_bytes": summary.probe.size_bytes,
        "size_bytes_int8": summary.probe.size_bytes_int8,
    }


def of_run(bench: Bench) -> Places | None:
    """The rival on all devices of the fleet's run."""
    found = of_devices(bench.summary, bench.summary.devices)
    return found and {"all devices": found}


def on_public(bench: Bench) -> Places:
    """The rival with the cloud's public data alone, on all test samples, as headers are judged."""
    reference, public = bench.fleet.reference, bench.world.public
    known = (None, None)
    if reference.checkpoint is not None:
        known = checkpoint_backbone(reference, public.train.inputs)
    classes = len(bench.world.classes)
    encoder = Encoder.rounded(*known, public, classes)
    read = [encoder.read(samples) for samples in (public.train, public.validation, bench.test)]
    probe = fit_probe(read[0], read[1], classes)
    row = 4 * (probe.weight.shape[1] + 1) * len(probe.seen)
    found = {
        "accuracy": {PUBLIC: probe.accuracy(*read[2])},
        "size_bytes": row + encoder.size_bytes(int8=False),
        "size_bytes_int8": row + encoder.size_bytes(int8=True),
    }
    return {ON_PUBLIC: found}


def probe_over_seeds(seeds: Sequence[Places | None]) -> dict[str, Any] | None:
    """The rival's means over seeds, by place, and a line; none where a seed lacks it."""
    measured = [places for places in seeds if places is not None]
    if not measured or len(measured) < len(seeds):
        return None
    places = {name: _over_seeds([seed[name] for seed in measured]) for name in measured[0]}
    lines = (f"{name}: {_line(figures)}" for name, figures in places.items())
    return {"headline": "; ".join(lines), "places": places}


def _over_seeds(seeds: Sequence[Figures]) -> Figures:
    ways = seeds[0]["accuracy"]
    means = {way: mean_interval([figures["accuracy"][way] for figures in seeds]) for way in ways}
    sizes = {key: max(figures[key] for figures in seeds) for key in seeds[0] if key != "accuracy"}
    return {"accuracy": means, **sizes}


def _line(figures: Figures) -> str:
    ways = [f"{way} {text(value)} %" for way, value in figures["accuracy"].items()]
    names = {"size_bytes": "MB", "size_bytes_int8": "MB in int8"}
    sizes = [f"{figures[key] / 1e6:.3g} {unit}" for key, unit in names.items() if key in figures]
    return ", ".join([*ways, *sizes])


def on_features(
    private: Sequence[Splits], public: Samples, classes: int, whole: int | None
) -> Figures:
    """The rival on kept features of a frozen whole backbone, whose weights are not rounded.

    ``private`` and ``public`` have ``pooled`` features, the public ones scale; ``whole`` are bytes
    of the backbone, where they are known. Returns ``accuracy`` by way, of each device, and
    ``size_bytes`` with the largest regression.
    """

    def read(samples: Samples) -> Read:
        return samples.inputs["pooled"].numpy(), samples.labels.numpy()

    devices = {str(number): own for number, own in enumerate(private)}
    scaling = Scaling.of(read(public)[0])
    found = measure_regressions(devices, read, classes, scaling)
    columns = {ALONE: list(found.alone.values()), AVERAGED: list(found.averaged.values())}
    row = 4 * (len(scaling.mean) + 1) * found.largest
    return {"accuracy": columns} | ({} if whole is None else {"size_bytes": whole + row})
