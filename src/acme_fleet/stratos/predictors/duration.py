"""Seconds of labels, training and answers (ours)."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from acme_fleet.stratos.predictors.estimate import Estimate
from acme_fleet.stratos.predictors.memory import cache_bytes
from acme_fleet.stratos.predictors.size import ModelSize
from acme_fleet.stratos.predictors.speeds import Speeds
from acme_fleet.stratos.request import Workload


def answer_seconds(
    speeds: Speeds, size: ModelSize, weights: float, prompt: int, answer: int, sequences: int = 1
) -> Float[np.ndarray, " servers"]:
    """Seconds until ``sequences`` questions that are answered at once all have their answer.

    The prompt is read in one pass of 2·N·b·s operations; of each further token's pass the slower
    of reading weights and cache, and of 2·N·b operations, counts. The first token comes with the
    prompt. Waiting for other requests is not in it.

    Args:
        size: of the model. weights: bytes that are read for each token.
        prompt, answer: tokens of a question and of an answer. sequences: b.
    """
    first = speeds.seconds("prefill", 2.0 * size.products * sequences * prompt, size)
    bytes_read = weights + cache_bytes(size, sequences, prompt + answer // 2)
    by_reading = speeds.seconds("decoding", bytes_read, size)
    by_computing = 2.0 * size.products * sequences / speeds.per_second["prefill"]
    return first + (answer - 1) * np.maximum(by_reading, by_computing)


def label_seconds(
    speeds: Speeds, teacher: ModelSize, weights: float, workload: Workload
) -> Float[np.ndarray, " servers"]:
    """Seconds in which the teacher answers all training questions, some at once.

    Args:
        teacher: its size. weights: its bytes.
    """
    batches = math.ceil(workload.training_questions / workload.label_batch)
    of = workload.prompt_tokens, workload.answer_tokens, workload.label_batch
    return batches * answer_seconds(speeds, teacher, weights, *of)


def training_seconds(
    speeds: Speeds, student: ModelSize, teacher: ModelSize | None, workload: Workload
) -> Float[np.ndarray, " servers"]:
    """Seconds of all training steps: 6·N·D for the student, 2·N_t·D for a teacher of logits.

    Args:
        student, teacher: their sizes; no teacher where answers are learned.
    """
    steps = workload.epochs * math.ceil(workload.training_questions / workload.batch_size)
    tokens = workload.batch_size * (workload.prompt_tokens + workload.answer_tokens)
    step = speeds.seconds("training", 6.0 * student.products * tokens, student)
    if teacher is not None:
        step = step + speeds.seconds("prefill", 2.0 * teacher.products * tokens, teacher)
    return steps * step


def distillation_time(
    speeds: Speeds,
    student: ModelSize,
    teacher: ModelSize,
    teacher_weights: float,
    workload: Workload,
    *,
    logits: bool,
) -> Estimate:
    """Seconds of labels and training on each server.

    With logits the training texts are given and the teacher reads them in every step; with
    answers it writes them once before.
    """
    value = training_seconds(speeds, student, teacher if logits else None, workload)
    if not logits:
        value = value + label_seconds(speeds, teacher, teacher_weights, workload)
    errors = np.max([speeds.error[kind] for kind in speeds.error], axis=0)
    return Estimate(value, errors, speeds.calibrated, "s")


def answer_latency(speeds: Speeds, size: ModelSize, weights: float, workload: Workload) -> Estimate:
    """Seconds to a whole answer, while ``concurrency`` questions are answered at once."""
    of = workload.prompt_tokens, workload.answer_tokens, workload.concurrency
    value = answer_seconds(speeds, size, weights, *of)
    errors = np.maximum(speeds.error["prefill"], speeds.error["decoding"])
    return Estimate(value, errors, speeds.calibrated, "s")
