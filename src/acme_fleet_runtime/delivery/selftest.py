"""A self-test: an artifact must give on this machine what it gave on the publisher's.

Its inputs are noise that both sides make by themselves, so no sample of anybody is published.
"""

from __future__ import annotations

from hashlib import shake_128
from pathlib import Path

import numpy as np

from acme_fleet_runtime.errors import DeliveryError
from acme_fleet_runtime.manifest import ImagePreparation, LanguagePreparation, TextPreparation
from acme_fleet_runtime.writer import Writer, open_artifact

_SAMPLES, _TOKENS = 3, 16
_LEAST_SPREAD = 1e-6


def answers(folder: Path) -> tuple[tuple[float, ...], ...]:
    """Logits of an artifact for the samples of the self-test; all its files are checked before.

    Raises:
        ArtifactError: if it is damaged, or this machine cannot run it.
    """
    runner = open_artifact(folder, threads=1)
    rule = runner.manifest.preparation
    samples = [_sample(rule, number) for number in range(_SAMPLES)]
    if isinstance(runner, Writer):  # logits behind the last token
        rows = [runner.steps.step(s[None], runner.steps.empty(1))[0, -1] for s in samples]
        return tuple(tuple(row.tolist()) for row in rows)
    return tuple(tuple(runner.logits([sample])[0]) for sample in samples)


def check_answers(folder: Path, expected: tuple[tuple[float, ...], ...], tolerance: float) -> None:
    """Compare an artifact's logits with those of the publisher's machine.

    Args:
        folder: of the artifact.
        expected: logits of each sample.
        tolerance: the largest difference, as a share of the logits' spread, that is accepted.

    Raises:
        ArtifactError: if it is damaged, or this machine cannot run it.
        DeliveryError: with the numbers, if it answers differently.
    """
    ours = np.array(answers(folder))
    if (len(expected), *{len(row) for row in expected}) != ours.shape:
        raise DeliveryError(f"{folder}: the release's self-test is of another model")
    theirs = np.array(expected)
    spread = max(float((theirs.max(axis=1) - theirs.min(axis=1)).mean()), _LEAST_SPREAD)
    difference = float(np.abs(ours - theirs).max()) / spread
    if not difference <= tolerance:  # NaN too
        raise DeliveryError(
            f"the self-test failed: on this machine logits differ from the publisher's by "
            f"{difference:.2g} of their spread, at most {tolerance:g} is accepted"
        )


def _sample(
    rule: ImagePreparation | TextPreparation | LanguagePreparation, number: int
) -> np.ndarray:
    """Noise of SHAKE-128, which is the same on every machine."""
    stream = shake_128(f"acme-fleet self-test {number}".encode())
    if isinstance(rule, ImagePreparation):
        shape = rule.height, rule.width, rule.channels
        return np.frombuffer(stream.digest(int(np.prod(shape))), np.uint8).reshape(shape)
    most = rule.max_tokens if isinstance(rule, TextPreparation) else rule.context
    words = np.frombuffer(stream.digest(4 * min(_TOKENS, most)), "<u4")
    return (words % rule.vocabulary).astype(np.int64)
