"""The gain of each part of the elastic backbone, on ``examples/digits.yaml``.

``python -m acme_research.ablations.backbone_ablations [--seeds 5]`` trains its reference for
each seed and makes it elastic in several ways. Accuracy is measured for every width and depth, on
the public validation samples and on the digits' whole test set: no device takes part. A seed's mean
over the candidates that are smaller than the reference is one observation; differences are paired
by seed, intervals are Student's. A seed that is on disk already is not run again.
"""

import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from acme_fleet.config.backbone import LogitsLoss
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.elastic import DistillationStep, distill, sandwich
from acme_fleet.distillation.importance import (
    ablation_importance,
    labels_objective,
    taylor_importance,
)
from acme_fleet.models.backbone.elastic import reorder
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.features import Classifier
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import Optimization, steps_of
from acme_research.frame.intervals import mean_interval, rank_correlation
from acme_research.frame.record import write_result
from acme_research.frame.runs import parser_of, trained_digits

BASE = "whole method, uniform"
Cells = dict[str, dict[str, float]]
SPLITS = ("validation", "test")


class Seed:
    """One seed's data, its trained reference, and what is made of it."""

    def __init__(self, seed: int) -> None:
        known = trained_digits(seed)
        self.fleet, self.reference = known.fleet, known.reference
        self.train, self.validation, self.test = known.train, known.validation, known.test
        self.widths, self.depths = self.fleet.backbone.widths, self.fleet.backbone.depths
        self.for_importance = known.for_importance
        heads, neurons, _ = taylor_importance(
            self.reference, self.for_importance, labels_objective(CLASSIFICATION)
        )
        self.taylor = heads, neurons
        self.importance = Importance.sorted(heads, neurons)
        ordered = reorder(self.reference.backbone, heads, neurons)
        self.ordered = Classifier(ordered, self.reference.head)

    def step(self, number: int, logits_loss: LogitsLoss) -> DistillationStep:
        settings = self.fleet.backbone.distillation
        return DistillationStep(
            widths=self.widths,
            depths=[max(self.depths)] if number == 0 else self.depths,
            narrow_teacher=number == 1,
            logits_weight=settings.logits_weight[number],
            embeddings_weight=settings.embeddings_weight[number],
            random_subnetworks=settings.random_subnetworks,
            logits_loss=logits_loss,
        )

    def distilled(
        self,
        start: Classifier,
        importance: Importance | None = None,
        logits_loss: LogitsLoss = "mse",
        steps: int = 2,
    ) -> ElasticClassifier:
        student = ElasticClassifier(copy.deepcopy(start), importance)
        for number in range(steps):
            distill(
                CLASSIFICATION,
                student.frozen_copy(),
                student,
                self.step(number, logits_loss),
                self.train,
                self.fleet.backbone.distillation.training,
                generator(self.fleet.seed, "distillation", number),
            )
        return student

    def labelled(self) -> ElasticClassifier:
        """The same students, steps and batches, taught by the labels alone."""
        student = ElasticClassifier(copy.deepcopy(self.ordered))
        training = self.fleet.backbone.distillation.training
        for number in range(2):
            draw = generator(self.fleet.seed, "distillation", number)
            steps = steps_of(self.train, training)
            optimization = Optimization(student.classifier.parameters(), training, steps)
            for _ in range(training.epochs):
                for batch in self.train.batches(training.batch_size, draw):
                    for variant in sandwich(self.step(number, "mse"), draw):
                        logits = student.run(student.shape(variant), batch.inputs).logits
                        F.cross_entropy(logits, batch.labels).backward()
                    optimization.step()
        return student

    def cells(self, elastic: ElasticClassifier) -> Cells:
        """Accuracy and loss of every candidate, by ``width,depth``."""
        table = {}
        for width, depth in itertools.product(self.widths, self.depths):
            shape = elastic.shape(Variant(width, depth))
            run: Callable[..., torch.Tensor] = lambda shape=shape, **x: elastic.run(shape, x).logits  # noqa: E731
            results = {name: evaluate(CLASSIFICATION, run, getattr(self, name)) for name in SPLITS}
            table[f"{width:g},{depth}"] = {
                f"{name} {key}": round(value, 4)
                for name, result in results.items()
                for key, value in (("accuracy", result.score), ("loss", result.loss))
            }
        return table

    def variants(self) -> dict[str, Callable[[], ElasticClassifier]]:
        return {
            BASE: lambda: self.distilled(self.ordered),
            "global allocation": lambda: self.distilled(self.ordered, self.importance),
            "without re-ordering": lambda: self.distilled(self.reference),
            "without the second step": lambda: self.distilled(self.ordered, steps=1),
            "without distillation (cut only)": lambda: ElasticClassifier(self.ordered),
            "labels in place of the teacher": self.labelled,
            "soft cross-entropy on logits": lambda: self.distilled(
                self.ordered, logits_loss="soft_cross_entropy"
            ),
        }

    def rank_correlation(self) -> dict[str, float]:
        """Spearman's ρ of Eq. 8 with Eq. 6, over all units and as a mean over layers."""
        found = {}
        for name, taylor in zip(("heads", "neurons"), self.taylor, strict=True):
            exact = torch.stack(
                [
                    ablation_importance(
                        CLASSIFICATION,
                        self.reference,
                        self.for_importance,
                        layer,
                        heads=name == "heads",
                    )
                    for layer in range(len(taylor))
                ]
            )
            pairs = [(one.numpy(), other.numpy()) for one, other in zip(taylor, exact, strict=True)]
            everything = rank_correlation(taylor.flatten().numpy(), exact.flatten().numpy())
            found[f"{name}, all layers"] = everything
            by_layer = [rank_correlation(*pair) for pair in pairs]
            found[f"{name}, within a layer"] = statistics.fmean(by_layer)
        return found


def run_seed(number: int, folder: Path) -> dict[str, Any]:
    """All figures of one seed; each variant is written as soon as it is measured."""
    path = folder / f"seed-{number}.json"
    record = json.loads(path.read_text()) if path.exists() else {"seed": number, "variants": {}}
    seed = Seed(number)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))

    for split in SPLITS:
        samples: Samples = getattr(seed, split)
        record[f"reference {split} accuracy"] = evaluate(
            CLASSIFICATION, seed.reference, samples
        ).score
    for name, make in seed.variants().items():
        if name not in record["variants"]:
            start = time.perf_counter()
            record["variants"][name] = seed.cells(make())
            mean = mean_accuracy(record["variants"][name], "test")
            print(
                f"seed {number}, {name}: {mean:.4f} in {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            write()
    if "rank correlation" not in record:
        record["rank correlation"] = seed.rank_correlation()
        write()
    return record


def mean_accuracy(
    cells: Cells, split: str, keep: Callable[[float, int], bool] | None = None
) -> float:
    """Mean over the candidates that are smaller than the reference, or those to keep."""
    keep = keep or (lambda width, depth: (width, depth) != (1.0, 6))
    places = ((cell, *key.split(",")) for key, cell in cells.items())
    kept = [cell for cell, width, depth in places if keep(float(width), int(depth))]
    return statistics.fmean(cell[f"{split} accuracy"] for cell in kept)


GROUPS: dict[str, Callable[[float, int], bool]] = {
    "all candidates": lambda w, d: (w, d) != (1.0, 6),
    "narrower than the reference": lambda w, d: w < 1,
    "width 0.25": lambda w, d: w == 0.25,
    "width 0.5": lambda w, d: w == 0.5,
    "depth 2": lambda w, d: d == 2,
}


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    table = {}
    for name in records[0]["variants"]:
        row = table[name] = {}
        for group, keep in GROUPS.items():
            for split in SPLITS:
                ours, base = (
                    [mean_accuracy(r["variants"][which], split, keep) for r in records]
                    for which in (name, BASE)
                )
                row[f"{group}, {split}"] = {
                    "mean": round(statistics.fmean(ours), 5),
                    "standard deviation": round(statistics.stdev(ours), 5) if len(ours) > 1 else 0,
                    "minus base": mean_interval(np.subtract(ours, base), 5),
                }
    return table


def main() -> None:
    arguments = parser_of(__doc__, "backbone_ablations").parse_args()
    torch.set_num_threads(1)
    records = [run_seed(number, arguments.out) for number in range(arguments.seeds)]
    result = {
        "summary": summarise(records),
        "rank correlation of Taylor (Eq. 8) with ablation (Eq. 6)": {
            key: mean_interval([r["rank correlation"][key] for r in records], 5)
            for key in records[0]["rank correlation"]
        },
        "reference test accuracy": mean_interval(
            [r["reference test accuracy"] for r in records], 5
        ),
        "seeds": records,
    }
    for name, row in result["summary"].items():
        cell = row["all candidates, test"]
        print(f"{name:<34}{cell['mean']:.4f}  {cell['minus base']}")
    write_result("backbone_ablations", result)


if __name__ == "__main__":
    main()
