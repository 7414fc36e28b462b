"""Our cut against Torch-Pruning's Taylor pruning: the same ViT, size, data and recovery.

The reference is that of ``examples/digits.yaml``. Ours: importance, re-ordering, and
half the width, the same in each layer or spread over the layers (`backbone.allocation`; the
default is what counts). Torch-Pruning, with the gradients of the same samples, in three ways: as in
its own example for ViTs (hidden size, head size and neurons by one ratio, such that the
parameters are at least as many as ours), and in heads and neurons alone, by layer or globally. All
are then fine-tuned on the labels alike, without a teacher, and the epoch is chosen by validation.
The rival is the way with the best mean validation accuracy.
"""

import bisect
import copy
from importlib.metadata import version

import numpy as np
import torch
import yaml
from torch import nn

from acme_fleet.config.backbone import Backbone
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import distribute
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.importance import labels_objective, taylor_importance
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.models.backbone.elastic import reorder
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit
from acme_research.frame.intervals import mean_interval, student_interval
from acme_research.frame.places import EXAMPLES
from acme_research.frame.record import write_benchmark
from acme_research.rivals.taylor_pruning import taylor_pruned

SEEDS, WIDTH = range(5), 0.5
RECOVERY = Training(epochs=20, batch_size=16, learning_rate=0.002)
WAYS = ("all dimensions", "heads and neurons", "heads and neurons, global")
RIVALS = tuple(f"Torch-Pruning, {way}" for way in WAYS)
OURS = f"ours, {Backbone().allocation}"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def taylor_pruned_to(reference: Classifier, samples: Samples, size: int, way: str) -> Classifier:
    """Torch-Pruning's smallest model with at least ``size`` parameters, on a grid of ratios."""
    grid = dimensions(reference.backbone.config).neurons

    def pruned(kept: int) -> Classifier:
        return taylor_pruned(reference, samples, 1 - kept / grid, way, WIDTH)

    def size_of(kept: int) -> int:
        return parameters(pruned(kept))

    return pruned(bisect.bisect_left(range(grid), size, lo=grid // 4, key=size_of))


def cuts(reference: Classifier, samples: Samples) -> dict[str, Classifier]:
    """Small models of one size before any recovery; ``samples`` are what importance is from."""
    heads, neurons, _ = taylor_importance(reference, samples, labels_objective(CLASSIFICATION))
    ordered = Classifier(reorder(reference.backbone, heads, neurons), reference.head)
    cut = {}
    for way, importance in (("uniform", None), ("global", Importance.sorted(heads, neurons))):
        elastic = ElasticClassifier(ordered, importance)
        backbone = elastic.extract(elastic.shape(Variant(WIDTH, elastic.sizes.layers)))
        cut[f"ours, {way}"] = Classifier(backbone, copy.deepcopy(reference.head)).eval()
    size = parameters(cut["ours, uniform"])
    for way in WAYS:
        cut[f"Torch-Pruning, {way}"] = taylor_pruned_to(reference, samples, size, way)
    return cut


def run_seed(seed: int) -> dict[str, dict[str, float]]:
    """Accuracies and parameters of the reference and of each small model."""
    content = yaml.safe_load((EXAMPLES / "digits.yaml").read_text())
    fleet = Fleet.parse(content | {"seed": seed})
    source = load_source(fleet.data)
    world = distribute(fleet, source)
    train, validation, test = world.public.train, world.public.validation, source.test
    reference = untrained_reference(fleet, world.public, world.classes, world.vocabulary)
    draw, training = generator(seed, "reference training"), fleet.reference.training
    fit(CLASSIFICATION, reference, train, training, draw, validation=validation)
    row = {"reference": {"test": evaluate(CLASSIFICATION, reference, test).score}}
    for_importance = train[: fleet.backbone.importance_samples]
    for name, model in cuts(reference, for_importance).items():
        before = evaluate(CLASSIFICATION, model, test).score
        row[name] = {"parameters": parameters(model), "test before recovery": before}
        draw = generator(seed, "recovery")
        fit(CLASSIFICATION, model, train, RECOVERY, draw, validation=validation)
        row[name] |= {
            "validation": evaluate(CLASSIFICATION, model, validation).score,
            "test": evaluate(CLASSIFICATION, model, test).score,
        }
    return row


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for seed in SEEDS:
        rows.append(run_seed(seed))
        for name, row in rows[-1].items():
            print(f"seed {seed}, {name:<36}{row}", flush=True)

    def column(name: str, key: str) -> np.ndarray:
        return np.array([row[name][key] for row in rows])

    rival = max(RIVALS, key=lambda name: column(name, "validation").mean())
    differences = {
        name: column(OURS, "test") - column(name, "test") for name in rows[0] if name != OURS
    }
    told = f"{rival} (the best of three ways by validation), {version('torch-pruning')}"
    write_benchmark(
        "prune_vs_torch_pruning",
        float(differences[rival].mean()),
        student_interval(differences[rival]),
        {
            "model": "the digits' ViT: 6 layers, 4 heads, hidden 64, 256 neurons",
            "recovery": f"fine-tuning on labels, {RECOVERY.model_dump()}",
            "mean": {
                name: {key: float(column(name, key).mean()) for key in row}
                for name, row in rows[0].items()
            },
            "ours - others, test": {name: mean_interval(d) for name, d in differences.items()},
            "seeds": rows,
        },
        seeds=SEEDS,
        instead={"rival": told},
    )


if __name__ == "__main__":
    main()
