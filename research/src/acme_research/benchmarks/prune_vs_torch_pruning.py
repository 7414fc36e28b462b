"""Our cut against Torch-Pruning's Taylor pruning: the same ViT, size, data and recovery.

The reference is the demo's, trained on the demo's public digits. Ours: importance, re-ordering, and
half the width, the same in each layer or spread over the layers (`backbone.allocation`; the
default is what counts). Torch-Pruning, with the gradients of the same samples, in three ways: as in
its own example for ViTs (hidden size, head size and neurons by one ratio, such that the
parameters are at least as many as ours), and in heads and neurons alone, by layer or globally. All
are then fine-tuned on the labels alike, without a teacher, and the epoch is chosen by validation.
The rival is the way with the best mean validation accuracy.
"""

from __future__ import annotations

import bisect
import copy
import time
from importlib.metadata import version

import numpy as np
import torch
import torch_pruning as tp
from record import write_result
from scipy import stats
from torch import nn
from torch.nn import functional as F

from acme_fleet.cli import EXAMPLE
from acme_fleet.cloud.importance import taylor_importance
from acme_fleet.cloud.reference import untrained_reference
from acme_fleet.config.backbone import Backbone
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import distribute
from acme_fleet.data.samples import Samples
from acme_fleet.models.backbone.elastic import reorder
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier
from acme_fleet.seeding import generator
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

SEEDS, WIDTH, GOAL = [0, 1, 2, 3, 4], 0.5, 0.0
RECOVERY = Training(epochs=20, batch_size=16, learning_rate=0.002)
WAYS = ("all dimensions", "heads and neurons", "heads and neurons, global")
RIVALS = tuple(f"Torch-Pruning, {way}" for way in WAYS)
OURS = f"ours, {Backbone().allocation}"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def taylor_pruned(reference: Classifier, samples: Samples, ratio: float, way: str) -> Classifier:
    """Torch-Pruning's model; ``ratio`` is the share of hidden size or neurons that goes."""
    all_dimensions = way == "all dimensions"
    model = copy.deepcopy(reference)
    backbone = model.backbone
    F.cross_entropy(model(**samples.inputs), samples.labels).backward()
    attentions = [layer.attention for layer in backbone.layers]
    heads = dimensions(backbone.config).heads
    stream = [backbone.embeddings, *(a.o_proj for a in attentions)]
    stream += [layer.mlp.fc2 for layer in backbone.layers]
    pruner = tp.pruner.BasePruner(
        model,
        samples[:1].inputs["pixel_values"],
        importance=tp.importance.TaylorImportance(),
        pruning_ratio=ratio,
        global_pruning=way == "heads and neurons, global",
        ignored_layers=[model.head, *([] if all_dimensions else stream)],
        num_heads={linear: heads for a in attentions for linear in (a.q_proj, a.k_proj, a.v_proj)},
        prune_head_dims=all_dimensions,
        prune_num_heads=not all_dimensions,
        head_pruning_ratio=0.0 if all_dimensions else 1 - WIDTH,
        unwrapped_parameters=[
            (backbone.embeddings.cls_token, 2),
            (backbone.embeddings.position_embeddings, 2),
        ],
        in_channel_groups={},  # its defaults are shared between pruners
        out_channel_groups={},
        forward_fn=lambda module, pixels: module(pixel_values=pixels),
    )
    pruner.step()
    for attention in attentions:
        attention.head_dim = attention.q_proj.out_features // pruner.num_heads[attention.q_proj]
    model.zero_grad()
    return model.eval()


def taylor_pruned_to(reference: Classifier, samples: Samples, size: int, way: str) -> Classifier:
    """Torch-Pruning's smallest model with at least ``size`` parameters, on a grid of ratios."""
    grid = dimensions(reference.backbone.config).neurons

    def pruned(kept: int) -> Classifier:
        return taylor_pruned(reference, samples, 1 - kept / grid, way)

    kept = bisect.bisect_left(
        range(grid), size, lo=grid // 4, key=lambda kept: parameters(pruned(kept))
    )
    return pruned(kept)


def cuts(reference: Classifier, samples: Samples) -> dict[str, Classifier]:
    """Small models of one size before any recovery; ``samples`` are what importance is from."""
    heads, neurons = taylor_importance(reference, samples)
    ordered = Classifier(reorder(reference.backbone, heads, neurons), reference.head)
    cut = {}
    for way, importance in (("uniform", None), ("global", Importance.sorted(heads, neurons))):
        elastic = ElasticClassifier(ordered, importance)
        backbone = elastic.extract(elastic.shape(WIDTH, elastic.sizes.layers))
        cut[f"ours, {way}"] = Classifier(backbone, copy.deepcopy(reference.head)).eval()
    size = parameters(cut["ours, uniform"])
    for way in WAYS:
        cut[f"Torch-Pruning, {way}"] = taylor_pruned_to(reference, samples, size, way)
    return cut


def run_seed(seed: int) -> dict[str, dict[str, float]]:
    """Accuracies and parameters of the reference and of each small model."""
    fleet = Fleet.from_yaml(EXAMPLE).model_copy(update={"seed": seed})
    source = load_source(fleet.data)
    world = distribute(fleet, source)
    train, validation = world.public.train, world.public.validation
    reference = untrained_reference(fleet, world.public, world.classes)
    draw = generator(seed, "reference training")
    fit(reference, train, fleet.reference.training, draw, validation=validation)
    row = {"reference": {"test": evaluate(reference, source.test).accuracy}}
    for name, model in cuts(reference, train[: fleet.backbone.importance_samples]).items():
        row[name] = {
            "parameters": parameters(model),
            "test before recovery": evaluate(model, source.test).accuracy,
        }
        fit(model, train, RECOVERY, generator(seed, "recovery"), validation=validation)
        row[name] |= {
            "validation": evaluate(model, validation).accuracy,
            "test": evaluate(model, source.test).accuracy,
        }
    return row


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean."""
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return float(differences.mean() - half), float(differences.mean() + half)


def main() -> None:
    start = time.perf_counter()
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
    path = write_result(
        name="prune_vs_torch_pruning",
        value=float(differences[rival].mean()),
        unit="test accuracy of ours - of Torch-Pruning's (0.01 is one point)",
        better="higher",
        goal=GOAL,
        rival=f"{rival} (the best of three ways by validation), {version('torch-pruning')}",
        seeds=SEEDS,
        interval=interval(differences[rival]),
        seconds=time.perf_counter() - start,
        details={
            "model": "the digits demo's ViT: 6 layers, 4 heads, hidden 64, 256 neurons",
            "recovery": f"fine-tuning on labels, {RECOVERY.model_dump()}",
            "mean": {
                name: {key: float(column(name, key).mean()) for key in row}
                for name, row in rows[0].items()
            },
            "ours - others, test": {
                name: {"mean": float(d.mean()), "interval": interval(d)}
                for name, d in differences.items()
            },
            "seeds": rows,
        },
    )
    low, high = interval(differences[rival])
    print(f"{differences[rival].mean():+.4f} [{low:+.4f}, {high:+.4f}] against {rival}; {path}")


if __name__ == "__main__":
    main()
