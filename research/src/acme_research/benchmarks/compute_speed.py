"""The speed of distillation in the numbers that ``compute: auto`` chooses, against float32.

A sandwich step of ViT-S at 56 × 56 in patches of 14, the second step of Eq. 9 with four students,
teacher and optimiser included. ``auto`` measures as a run does, then both take turns. Where it
chooses float32 both sides are the same work, and the ratio is the noise of the measurement.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch

from acme_fleet.config.training import Training
from acme_fleet.distillation.elastic import teach
from acme_fleet.seeding import threads
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.loop import Optimization
from acme_fleet.training.precision import Numbers, has_bfloat16, training_device, training_numbers
from acme_research.benchmarks.distil_step import STEP, STUDENTS, student_of
from acme_research.frame.intervals import ratio_of_medians
from acme_research.frame.record import print_medians, wall_times, write_benchmark

SIDE = 56


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=8)
    given = parser.parse_args()
    place = training_device(given.device, "--device")
    torch.manual_seed(0)
    student = student_of(384, 6, SIDE, 14)
    student.classifier.to(place)
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
    write_benchmark(
        "compute_speed" if given.device == "cpu" else "compute_speed_cuda",
        *ratio_of_medians(seconds["float32"], seconds["auto"]),
        {
            "model": f"ViT-S, {SIDE} x {SIDE}, patches of 14",
            "chosen": chosen,
            "processor multiplies in bfloat16": has_bfloat16(place),
            "batch": given.batch,
            "threads": given.threads,
            "median seconds": print_medians(seconds),
        },
        instead={"goal": 0.95} if chosen == "float32" else None,
    )


if __name__ == "__main__":
    main()
