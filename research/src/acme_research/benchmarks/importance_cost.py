"""The cost of the importance of all heads and neurons, against a training step on the same batch.

ViT-tiny at 224 × 224, a batch of 8. Beside it: exact ablation (Eq. 6), one forward pass for each
unit, measured for the heads of one layer and multiplied up.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from acme_fleet.data.samples import Samples
from acme_fleet.distillation.importance import (
    ablation_importance,
    labels_objective,
    taylor_importance,
)
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_research.frame.record import cpu_times, print_medians, write_ratio

BATCH, CLASSES, REPETITIONS = 8, 100, 15


def main() -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    model = Classifier(
        as_elastic(ViTModel(config, add_pooling_layer=False)), nn.Linear(192, CLASSES)
    )
    samples = Samples(
        {"pixel_values": torch.randn(BATCH, 3, 224, 224)},
        torch.randint(CLASSES, (BATCH,)),
        torch.ones(BATCH, dtype=torch.int64),
    )
    labels = labels_objective(CLASSIFICATION)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def training_step() -> None:
        F.cross_entropy(model(**samples.inputs), samples.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = cpu_times(
        {
            "training step": training_step,
            "importance of all units": lambda: taylor_importance(model, samples, labels, BATCH),
            "ablation of one layer's heads": lambda: ablation_importance(
                CLASSIFICATION, model, samples, layer=0, heads=True
            ),
        },
        REPETITIONS,
    )
    medians = print_medians(seconds)
    sizes = dimensions(config)
    passes = 1 + sizes.layers * (sizes.heads + sizes.neurons)
    exact = medians["ablation of one layer's heads"] / (1 + sizes.heads) * passes
    print(f"{'ablation of all units':<32}{1000 * exact:9.0f} ms ({passes} passes)")
    write_ratio(
        "importance_cost",
        seconds["importance of all units"],
        seconds["training step"],
        {
            "model": "ViT-tiny, 224 x 224",
            "batch": BATCH,
            "repetitions": REPETITIONS,
            "median CPU seconds, one thread": medians,
            "exact ablation, CPU seconds": exact,
            "exact ablation / importance": exact / medians["importance of all units"],
        },
    )


if __name__ == "__main__":
    main()
