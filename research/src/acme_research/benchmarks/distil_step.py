"""The cost of one sandwich step, against its forward and backward passes made one by one.

ViT-tiny at 64 × 64, a batch of 16, the second step of Eq. 9 with four students. The rival runs each
student as an ordinary small module of its own and each teacher once: what a step must cost
at least. More than 1 is the price of running views of shared weights.
"""

import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from acme_fleet.cost.variant import Variant
from acme_fleet.distillation.elastic import DistillationStep, distillation_loss, teach
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.features import Classifier, activations
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_research.frame.record import cpu_times, print_medians, write_ratio

BATCH, REPETITIONS = 16, 12
STUDENTS = [Variant(1.0, 12), Variant(0.25, 2), Variant(0.5, 6), Variant(0.75, 9)]
STEP = DistillationStep([0.25, 0.5, 0.75, 1.0], [2, 6, 9, 12], True, 1.0, 1.0, 2)


def student_of(hidden: int, heads: int, side: int, patch: int) -> ElasticClassifier:
    """An elastic ViT of 12 layers with random weights and 100 classes."""
    config = ViTConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        image_size=side,
        patch_size=patch,
    )
    backbone = as_elastic(ViTModel(config, add_pooling_layer=False))
    return ElasticClassifier(Classifier(backbone, nn.Linear(hidden, 100)))


def run_of(classifier: Classifier, inputs: dict[str, torch.Tensor]) -> Run:
    observed = activations(classifier.backbone, inputs)
    return Run(observed, classifier.head(observed.pooled))


def main() -> None:
    torch.manual_seed(0)
    student = student_of(192, 3, 64, 8)
    teacher = student.frozen_copy()
    inputs = {"pixel_values": torch.randn(BATCH, 3, 64, 64)}
    shapes = [student.shape(variant) for variant in STUDENTS]
    alone = [Classifier(student.extract(shape), nn.Linear(192, 100)) for shape in shapes]
    widths = dict.fromkeys(variant.width for variant in STUDENTS)
    teachers = {
        width: Classifier(teacher.extract(teacher.shape(Variant(width, 12))), nn.Linear(192, 100))
        for width in widths
    }

    def sandwich_step() -> None:
        teach(CLASSIFICATION, teacher, student, STEP, inputs, STUDENTS)
        student.classifier.zero_grad()

    def one_by_one() -> None:
        with torch.no_grad():
            lessons = {width: run_of(module, inputs) for width, module in teachers.items()}
        for variant, shape, module in zip(STUDENTS, shapes, alone, strict=True):
            run = run_of(module, inputs)
            distillation_loss(
                CLASSIFICATION, run, lessons[variant.width], shape.layers, 1.0, 1.0
            ).backward()
            module.zero_grad()

    seconds = cpu_times({"sandwich": sandwich_step, "one by one": one_by_one}, REPETITIONS)
    write_ratio(
        "distil_step",
        seconds["sandwich"],
        seconds["one by one"],
        {
            "model": "ViT-tiny, 64 x 64, patch 8",
            "batch": BATCH,
            "students (width, depth)": [(each.width, each.depth) for each in STUDENTS],
            "repetitions": REPETITIONS,
            "median CPU seconds, one thread": print_medians(seconds),
        },
    )


if __name__ == "__main__":
    main()
