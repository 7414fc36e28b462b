"""The speed of distillation in the numbers that ``compute: auto`` chooses, against float32.

A sandwich step of ViT-S at 56 × 56 in patches of 14, the second step of Eq. 9 with four students,
teacher and optimiser included. ``auto`` measures as a run does, then both take turns. Where it
chooses float32 both sides are the same work, and the ratio is the noise of the measurement.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.distillation.elastic import DistillationStep, teach
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier
from acme_fleet.seeding import threads
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.loop import Optimization
from acme_fleet.training.precision import Numbers, has_bfloat16, training_device, training_numbers
from acme_research.frame.intervals import ratio_of_medians
from acme_research.frame.record import print_medians, wall_times, write_benchmark

STUDENTS = [Variant(1.0, 12), Variant(0.25, 2), Variant(0.5, 6), Variant(0.75, 9)]
STEP = DistillationStep([0.25, 0.5, 0.75, 1.0], [2, 6, 9, 12], True, 1.0, 1.0, 2)
CLASSES, SIDE = 100, 56


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=8)
    given = parser.parse_args()
    place = training_device(given.device, "--device")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=SIDE,
        patch_size=14,
    )
    backbone = as_elastic(ViTModel(config, add_pooling_layer=False))
    student = ElasticClassifier(Classifier(backbone, nn.Linear(384, CLASSES)).to(place))
    teacher = student.frozen_copy()
    inputs = {"pixel_values": torch.randn(given.batch, 3, SIDE, SIDE)}
    training = Training(epochs=1, batch_size=given.batch, learning_rate=1e-5)
    optimization = Optimization(student.classifier.parameters(), training, 10_000)

    def step(numbers: Numbers) -> None:
        loss = teach(CLASSIFICATION, teacher, student, STEP, inputs, STUDENTS, numbers=numbers)
        optimization.step()
        loss.item()  # a GPU works behind the program's back

    def loss() -> torch.Tensor:
        return student.classifier(**inputs).square().mean()

    with threads(given.threads), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compute.json"
        chosen = training_numbers("auto", student.classifier, loss, path)
        works = {"float32": partial(step, "float32"), "auto": partial(step, chosen)}
        seconds = wall_times(works, given.repetitions)
    value, interval = ratio_of_medians(seconds["float32"], seconds["auto"])
    goal = 0.95 if chosen == "float32" else 5.0 if given.device == "cuda" else 2.0
    write_benchmark(
        name="compute_speed" if given.device == "cpu" else "compute_speed_cuda",
        value=value,
        unit="seconds of a distillation step in float32 / in the automatic choice",
        better="higher",
        goal=goal,
        rival="the same step in float32",
        interval=interval,
        details={
            "model": f"ViT-S, {SIDE} x {SIDE}, patches of 14",
            "chosen": chosen,
            "processor multiplies in bfloat16": has_bfloat16(place),
            "batch": given.batch,
            "threads": given.threads,
            "median seconds": print_medians(seconds),
        },
    )
    print(f"auto is {chosen}: {value:.2f} times float32's speed, 95 % interval {interval}")


if __name__ == "__main__":
    main()
