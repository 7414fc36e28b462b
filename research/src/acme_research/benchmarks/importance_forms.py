"""Rankings of heads and neurons with and without labels: the cut that each leaves.

``python -m acme_research.benchmarks.importance_forms --data DATA --references REFERENCES``

DATA holds ``clinc150`` and ``cifar100``, REFERENCES the checkpoints ``minilm-l6`` and
``dinov2-small``. ``labels`` and ``features`` are the two forms of ``backbone.importance``;
``activation`` is a unit's absolute activation times the length of its column in the next matrix.
Each ranks the untouched checkpoint's heads and neurons on the same samples. Nothing is trained
after the cut but a logistic regression on its pooled features. Test data are held out from
everything; a seed draws the split and the samples on which importance is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import acme_fleet
from acme_fleet.config.backbone import Pooling
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import relative_error
from acme_fleet.distillation.importance import (
    _record_outputs,
    _zeros,
    objective_of,
    taylor_importance,
)
from acme_fleet.distillation.reference import checkpoint_backbone
from acme_fleet.models.backbone.elastic import architecture, extract, reorder
from acme_fleet.models.families import dimensions, family_of
from acme_fleet.models.features import Classifier, activations, moved
from acme_fleet.models.pooling import poolings_of
from acme_fleet.models.probe import choose_pooling, pooled_features
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.probe import Features, fit_probe
from acme_research.benchmarks.versus_probe import data_of
from acme_research.frame.intervals import mean_interval, student_interval, text
from acme_research.frame.record import write_benchmark

CASES = {"minilm-l6": 0.15, "dinov2-small": 0.08}  # share of the data set's samples that is used
WIDTHS = (0.75, 0.5)
FORMS = ("labels", "features", "activation")
SAMPLES, BATCH = 512, 64  # on which importance is measured
Row = dict[str, Any]


class Whole(NamedTuple):
    """The untouched checkpoint, with a regression on its features as the classifier.

    ``test`` are its pooled features of the test samples, ``accuracy`` the regression's on them.
    """

    model: Classifier
    public: Splits
    pooling: Pooling
    test: Features
    accuracy: float


def whole_model(name: str, seed: int, given: argparse.Namespace) -> Whole:
    """Load one seed's samples and the checkpoint."""
    fleet = acme_fleet.Fleet.parse(
        {
            "name": name,
            "seed": seed,
            "data": {**data_of(name, given.data), "public": CASES[name]},
            "reference": {"checkpoint": given.references / name},
            "clusters": [{"name": "hub", "devices": [{"name": "device", "storage": "150 MB"}]}],
        }
    )
    world = load_world(fleet, [])
    public, classes = world.public, len(world.classes)
    backbone, known = checkpoint_backbone(fleet.reference, public.train.inputs)
    backbone.to(given.device)
    ways = poolings_of(backbone.config, known)
    pooling, probe = choose_pooling(fit_probe, backbone, public, classes, ways)
    backbone.config.pooling = pooling
    head = nn.Linear(probe.weight.shape[1], classes)
    head.load_state_dict(probe.tensors())
    test = pooled_features(backbone, public.test, [pooling])[pooling]
    accuracy = probe.accuracy(test, public.test.labels.numpy())
    return Whole(
        Classifier(backbone, head).to(given.device).eval(), public, pooling, test, accuracy
    )


@torch.no_grad()
def activation_importance(model: Classifier, samples: Samples) -> tuple[Tensor, Tensor]:
    """Σ_c |O_c| · ‖W_c‖ over a unit's channels c, mean over real tokens, then over samples.

    W is the matrix that the unit's output O enters.

    Returns:
        Heads ``(layers, heads)`` and neurons ``(layers, neurons)``.
    """
    family = family_of(model.backbone.config)
    layers = list(model.backbone.get_submodule(family.layers).children())
    found = _zeros(model)
    for batch in samples.batches(BATCH):
        with _record_outputs(model) as records:
            mask = activations(model.backbone, moved(batch.inputs, model.backbone.device)).mask
        for kind, name in enumerate((family.output, family.neurons_out)):
            for layer, output in enumerate(records[kind]):
                real = output.new_ones(output.shape[:2]) if mask is None else mask.to(output.dtype)
                share = (real / real.sum(dim=1, keepdim=True))[:, :, None]
                weight = layers[layer].get_submodule(name).get_parameter("weight")
                size = (output.abs() * weight.norm(dim=0) * share).sum(dim=(0, 1))
                found[kind][layer] += size.unflatten(0, (found[kind].shape[1], -1)).sum(dim=1).cpu()
    return found[0] / len(samples), found[1] / len(samples)


def importance(form: str, model: Classifier, samples: Samples, seed: int) -> tuple[Tensor, Tensor]:
    """Importance of heads and neurons in one of the ``FORMS``."""
    if form == "activation":
        return activation_importance(model, samples)
    assert form in ("labels", "features")
    objective = objective_of(CLASSIFICATION, form, generator(seed, "signs"), labelled=True)
    heads, neurons, _ = taylor_importance(model, samples, objective, BATCH)
    return heads, neurons


def judged(cut: PreTrainedModel, whole: Whole, classes: int) -> dict[str, float]:
    """Error of a cut's pooled features, and accuracy of a regression on them, on test data."""
    public = whole.public
    train, validation, test = (
        pooled_features(cut, samples, [whole.pooling])[whole.pooling]
        for samples in (public.train, public.validation, public.test)
    )
    probe = fit_probe(
        (train, public.train.labels.numpy()),
        (validation, public.validation.labels.numpy()),
        classes,
    )
    mine, theirs = (torch.from_numpy(x)[:, None] for x in (test, whole.test))
    return {
        "error": float(relative_error(mine, theirs, None)),
        "accuracy": 100 * probe.accuracy(test, public.test.labels.numpy()),
    }


def one_seed(name: str, seed: int, given: argparse.Namespace) -> Row:
    """All forms at all widths on the same samples."""
    torch.set_num_threads(given.threads)
    whole = whole_model(name, seed, given)
    backbone, classes = whole.model.backbone, whole.model.head.out_features
    train, sizes = whole.public.train, dimensions(backbone.config)
    samples = train[torch.randperm(len(train), generator=generator(seed, "importance"))[:SAMPLES]]
    row: Row = {"seed": seed, "pooling": whole.pooling, "whole": 100 * whole.accuracy, "cuts": {}}
    row["samples"] = {part: len(getattr(whole.public, part)) for part in vars(whole.public)}
    for form in FORMS:
        ordered = reorder(backbone, *importance(form, whole.model, samples, seed))
        for width in WIDTHS:
            cut = extract(ordered, architecture(sizes, width, sizes.layers)).eval()
            row["cuts"].setdefault(f"{width:g}", {})[form] = judged(cut, whole, classes)
    return row


def over_seeds(rows: list[Row], value: Callable[[Row], float]) -> Row:
    return mean_interval([value(row) for row in rows])


def difference(row: Row, width: str, ours: str, theirs: str) -> float:
    """Points of accuracy."""
    cuts = row["cuts"][width]
    return cuts[ours]["accuracy"] - cuts[theirs]["accuracy"]


def table(rows: list[Row]) -> Row:
    """Means over seeds of one checkpoint; differences are paired by seed."""
    found: Row = {"whole": over_seeds(rows, lambda row: row["whole"])}
    for width in rows[0]["cuts"]:
        found[width] = {
            form: {
                key: over_seeds(rows, lambda r, w=width, f=form, k=key: r["cuts"][w][f][k])
                for key in ("error", "accuracy")
            }
            for form in FORMS
        }
        for ours, theirs in (("features", "labels"), ("features", "activation")):
            found[width][f"{ours} - {theirs}, points"] = over_seeds(
                rows, lambda r, w=width, a=ours, b=theirs: difference(r, w, a, b)
            )
    return found


def told(name: str, summary: Row) -> None:
    """Print one checkpoint's table."""
    print(f"{name}: the whole {text(summary['whole'], 1, 1)} %")
    print(f"{'width':<7}{'form':<12}{'error / variance':<24}{'accuracy, regression again'}")
    for width in map("{:g}".format, WIDTHS):
        for form in FORMS:
            cell = summary[width][form]
            print(
                f"{width:<7}{form:<12}{text(cell['error'], 3, 1):<24}{text(cell['accuracy'], 1, 1)}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2, help="of each job")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    given.data, given.references = given.data.resolve(), given.references.resolve()
    started = time.perf_counter()
    runs: dict[str, list[Row]] = {name: [] for name in CASES}
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        names, seeds = zip(*product(CASES, given.seeds), strict=True)
        for name, row in zip(names, pool.map(one_seed, names, seeds, repeat(given)), strict=True):
            runs[name].append(row)
            print(f"{name}, seed {row['seed']}: {time.perf_counter() - started:.0f} s", flush=True)
    summary = {name: table(rows) for name, rows in runs.items()}
    for name, of_one in summary.items():
        told(name, of_one)
    gains = np.array(
        [
            fmean(difference(r, w, "features", "activation") for r in seed for w in r["cuts"])
            for seed in zip(*runs.values(), strict=True)
        ]
    )
    write_benchmark(
        name="importance_forms",
        value=float(gains.mean()),
        unit="points of accuracy, features - activation, mean over both checkpoints and widths",
        better="higher",
        goal=0.0,
        rival="absolute activation times the length of the unit's column in the next matrix",
        seeds=given.seeds,
        interval=student_interval(gains),
        details={
            "samples for importance": SAMPLES,
            "error": "squared error over the variance of each channel of the whole's features",
            "summary": summary,
            "runs": runs,
        },
    )
    print(f"features - activation {gains.mean():+.2f} points {student_interval(gains)}")


if __name__ == "__main__":
    main()
