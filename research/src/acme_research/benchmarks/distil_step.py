"""The cost of one sandwich step, against its forward and backward passes made one by one.

ViT-tiny at 64 × 64, a batch of 16, the second step of Eq. 9 with four students. The rival runs each
student as an ordinary small module of its own and each teacher once: what a step must cost
at least. More than 1 is the price of running views of shared weights.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from acme_fleet.distillation.elastic import DistillationStep, distillation_loss, teach
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.features import Classifier, activations
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_research.frame.intervals import ratio_of_medians
from acme_research.frame.record import cpu_times, print_medians, write_benchmark

BATCH, REPETITIONS, GOAL = 16, 12, 1.15
STUDENTS = [(1.0, 12), (0.25, 2), (0.5, 6), (0.75, 9)]
STEP = DistillationStep([0.25, 0.5, 0.75, 1.0], [2, 6, 9, 12], lambda w: w, 1.0, 1.0, 2)


def run_of(classifier: Classifier, inputs: dict[str, torch.Tensor]) -> Run:
    observed = activations(classifier.backbone, inputs)
    return Run(observed, classifier.head(observed.pooled))


def main() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=64, patch_size=8
    )
    backbone = as_elastic(ViTModel(config, add_pooling_layer=False))
    student = ElasticClassifier(Classifier(backbone, nn.Linear(192, 100)))
    teacher = student.frozen_copy()
    inputs = {"pixel_values": torch.randn(BATCH, 3, 64, 64)}
    shapes = [student.shape(*which) for which in STUDENTS]
    alone = [Classifier(student.extract(shape), nn.Linear(192, 100)) for shape in shapes]
    widths = dict.fromkeys(width for width, _ in STUDENTS)
    teachers = {
        width: Classifier(teacher.extract(teacher.shape(width, 12)), nn.Linear(192, 100))
        for width in widths
    }

    def sandwich_step() -> None:
        teach(CLASSIFICATION, teacher, student, STEP, inputs, STUDENTS)
        student.classifier.zero_grad()

    def one_by_one() -> None:
        with torch.no_grad():
            lessons = {width: run_of(module, inputs) for width, module in teachers.items()}
        for (width, _), shape, module in zip(STUDENTS, shapes, alone, strict=True):
            run = run_of(module, inputs)
            distillation_loss(
                CLASSIFICATION, run, lessons[width], shape.layers, 1.0, 1.0
            ).backward()
            module.zero_grad()

    seconds = cpu_times({"sandwich": sandwich_step, "one by one": one_by_one}, REPETITIONS)
    value, interval = ratio_of_medians(seconds["sandwich"], seconds["one by one"])
    medians = print_medians(seconds)
    write_benchmark(
        name="distil_step",
        value=value,
        unit="CPU time of a sandwich step / of its passes as separate modules",
        better="lower",
        goal=GOAL,
        rival="ordinary small modules, one forward and backward pass each, teachers once",
        interval=interval,
        details={
            "model": "ViT-tiny, 64 x 64, patch 8",
            "batch": BATCH,
            "students (width, depth)": STUDENTS,
            "repetitions": REPETITIONS,
            "median CPU seconds, one thread": medians,
        },
    )
    print(f"{value:.3f}, 95 % interval {interval}")


if __name__ == "__main__":
    main()
