"""The cost of the importance of all heads and neurons, against a training step on the same batch.

ViT-tiny at 224 × 224, a batch of 8. Beside it: exact ablation (Eq. 6), one forward pass for each
unit, measured for the heads of one layer and multiplied up.
"""

import torch
from torch.nn import functional as F

from acme_fleet.data.samples import Samples
from acme_fleet.distillation.importance import (
    ablation_importance,
    labels_objective,
    taylor_importance,
)
from acme_fleet.models.families import dimensions
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_research.benchmarks.distil_step import student_of
from acme_research.frame.record import cpu_times, print_medians, write_ratio

BATCH, REPETITIONS = 8, 15


def main() -> None:
    torch.manual_seed(0)
    model = student_of(192, 3, 224, 16).classifier
    samples = Samples(
        {"pixel_values": torch.randn(BATCH, 3, 224, 224)},
        torch.randint(100, (BATCH,)),
        torch.ones(BATCH, dtype=torch.int64),
    )
    labels = labels_objective(CLASSIFICATION)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def training_step() -> None:
        F.cross_entropy(model(**samples.inputs), samples.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def ablation() -> None:
        ablation_importance(CLASSIFICATION, model, samples, layer=0, heads=True)

    works = {
        "training step": training_step,
        "importance of all units": lambda: taylor_importance(model, samples, labels, BATCH),
        "ablation of one layer's heads": ablation,
    }
    seconds = cpu_times(works, REPETITIONS)
    medians = print_medians(seconds)
    sizes = dimensions(model.backbone.config)
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
