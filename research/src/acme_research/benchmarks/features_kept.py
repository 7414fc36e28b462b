"""The features that a cut without labels keeps: a regression on it ÷ on the untouched reference.

``python -m acme_research.benchmarks.features_kept --data DATA --references REFERENCES``

MiniLM on CLINC150 and DINOv2-small on CIFAR-100. Heads and neurons are ranked by features, half of
them are kept, and at a quarter half of the hidden size too. The cut then learns the reference's
hidden states and pooled features on public samples whose labels nobody reads. A regression with at
most 50 labels of each class is fitted to the features of both; test data are held out from
everything.
"""

import argparse
import copy
import itertools
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from acme_fleet.config.backbone import Distillation, Pooling
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import Lesson, distill, recovery_of
from acme_fleet.distillation.importance import features_objective, taylor_importance
from acme_fleet.distillation.reference import checkpoint_backbone
from acme_fleet.models.backbone.supernet import ElasticClassifier, reorder_classifier
from acme_fleet.models.features import Classifier
from acme_fleet.models.pooling import poolings_of
from acme_fleet.models.probe import choose_pooling
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.probe import fit_probe
from acme_research.frame.intervals import mean_interval, student_interval, text
from acme_research.frame.record import write_benchmark
from acme_research.frame.references import data_of, parser_on_references, probed

CASES = {"minilm-l6": 0.15, "dinov2-small": 0.08}  # share of the data set's samples that is used
CUTS = {"half": ((0.5, 1.0), 0.98), "quarter": ((0.5, 0.5), 0.95)}
"""Shares of heads and neurons and of the hidden size, and the goal."""
LABELS, SAMPLES, BATCH = 50, 512, 32
LESSON = Lesson("features", logits=False)


class Whole(NamedTuple):
    """The untouched checkpoint, with a regression on its features as the classifier."""

    model: Classifier
    public: Splits
    pooling: Pooling


def whole_model(name: str, seed: int, given: argparse.Namespace) -> Whole:
    """Load one seed's samples and the checkpoint."""
    fleet = Fleet.parse(
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
    backbone.to(given.accelerator)
    ways = poolings_of(backbone.config, known)
    pooling, probe = choose_pooling(fit_probe, backbone, public, classes, ways)
    backbone.config.pooling = pooling
    head = nn.Linear(probe.weight.shape[1], classes)
    head.load_state_dict(probe.tensors())
    return Whole(Classifier(backbone, head).to(given.accelerator).eval(), public, pooling)


def few_labels(samples: Samples, each: int, seed: int) -> Samples:
    """At most so many samples of each class."""
    order = np.random.default_rng(seed).permutation(len(samples))
    labels, kept = samples.labels.numpy(), []
    for label in np.unique(labels):
        kept += order[labels[order] == label][:each].tolist()
    return samples[torch.tensor(sorted(kept))]


def recovered(whole: Whole, variant: Variant, training: Training, seed: int) -> ElasticClassifier:
    """A cut of the untouched reference after it has learned its features again."""
    train = whole.public.train
    samples = train[torch.randperm(len(train), generator=generator(seed, "importance"))[:SAMPLES]]
    objective = features_objective(generator(seed, "signs"))
    found = taylor_importance(whole.model, samples, objective)
    home = whole.model.head.weight.device
    ordered = reorder_classifier(copy.deepcopy(whole.model).cpu(), *found).to(home)
    teacher, student = ElasticClassifier(ordered).frozen_copy(), ElasticClassifier(ordered)
    step, draw = recovery_of(Distillation(), variant, LESSON), generator(seed, "recovery")
    distill(CLASSIFICATION, teacher, student, step, train, training, draw)
    return student


def one_seed(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both cuts of a checkpoint beside the whole of it."""
    whole = whole_model(name, seed, given)
    public, way, classes = whole.public, whole.pooling, whole.model.head.out_features
    parts = few_labels(public.train, LABELS, seed), public.validation, public.test

    row: dict[str, Any] = {
        "seed": seed,
        "pooling": way,
        "whole": probed(whole.model.backbone, way, parts, classes),
    }
    row["samples"] = {part: len(getattr(public, part)) for part in vars(public)}
    layers = whole.model.backbone.config.num_hidden_layers
    for cut, ((width, hidden), _) in CUTS.items():
        variant = Variant(width, layers, hidden)
        training = Training(epochs=given.epochs, batch_size=BATCH, learning_rate=given.rate)
        student = recovered(whole, variant, training, seed)
        small = student.extract(student.shape(variant)).eval().to(given.accelerator)
        accuracy = probed(small, way, parts, classes)
        row[cut] = {"accuracy": accuracy, "kept": accuracy / row["whole"]}
        print(f"{name}, seed {seed}, {cut}: {accuracy:.1f} of {row['whole']:.1f} %", flush=True)
    return row


def main() -> None:
    parser = parser_on_references(__doc__)
    parser.add_argument("--reference", action="append", choices=list(CASES))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=3e-4)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = given.reference or list(CASES)
    runs = {name: [one_seed(name, seed, given) for seed in given.seeds] for name in names}
    summary = {
        name: {cut: mean_interval([row[cut]["kept"] for row in rows]) for cut in CUTS}
        for name, rows in runs.items()
    }
    for (name, cuts), cut in itertools.product(summary.items(), CUTS):
        print(f"{name}, {cut}: {text(cuts[cut], 3, 1)}")
    # By seed, the margin over the goals in the worst case.
    goals = {cut: goal for cut, (_, goal) in CUTS.items()}
    margins = [
        min(row[cut]["kept"] - goal for row in rows for cut, goal in goals.items())
        for rows in zip(*runs.values(), strict=True)
    ]
    write_benchmark(
        "features_kept",
        fmean(margins),
        student_interval(margins),
        {
            "goals": goals,
            "labels of each class": LABELS,
            "epochs": given.epochs,
            "summary": summary,
            "runs": runs,
        },
        seeds=given.seeds,
    )


if __name__ == "__main__":
    main()
