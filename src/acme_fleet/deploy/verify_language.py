"""A language model's artifact against PyTorch: logits, losses, and how fast it writes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acme_fleet.config.devices import Precision
from acme_fleet.deploy.base import Inputs, Logits, Writing
from acme_fleet.deploy.samples import Evidence, Judged
from acme_fleet.deploy.verify import TOLERANCES, Verified, machine, told
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.features import CustomizedModel, language_logits
from acme_fleet.models.header.module import Header
from acme_fleet.tasks.base import Evaluation
from acme_fleet.tasks.generation import GENERATION
from acme_fleet_runtime.manifest import Speed, TokenAccuracy, Verification

_BATCH, _ALONE = 4, 3
_MOST_TEXTS = 96  # of each part: a text has a logit for each of its tokens and each word
_LARGEST_LOSS = 0.01  # more per token than the device's model has
_AT_INT8 = 0.1  # of their spread: dozens of layers round again what was rounded otherwise
_RUNS, _TOKENS, _LONGEST_PROMPT = 3, 16, 32


@dataclass
class _Compared:
    """Sums over batches."""

    ours: Evaluation
    theirs: Evaluation
    largest: float = 0.0
    spreads: float = 0.0
    same: int = 0
    tokens: int = 0

    @property
    def difference(self) -> float:
        """The largest difference of logits, as a share of their mean spread."""
        return self.largest / max(self.spreads / max(self.tokens, 1), 1e-6)


def verify_language(
    artifact: Writing,
    pytorch: Logits,
    shipped: Logits,
    evidence: Evidence,
    precision: Precision,
    *,
    forced: bool,
    alone: bool,
) -> Verified:
    """Compare a language model's artifact with PyTorch, at every real token.

    Its logits must be PyTorch's, in a batch, as alone and token by token. On validation data its
    loss per token must be the device's model's too, unless the header was left out on demand. Test
    data decide nothing. Of each part the first texts are compared.

    Args:
        artifact: in its own program.
        pytorch: logits by the same arithmetic.
        shipped: logits of the device's model, header included.
        evidence: the inputs.
        precision: of the weights, which decides the tolerance.
        forced: goes into the record.
        alone: the backbone was written without the header.
    """
    parts = {evidence.data: evidence.first}
    if evidence.test is not None:
        parts["test"] = evidence.test
    accuracy, refusals, first = [], [], None
    for name, part in parts.items():
        found = _compared(artifact.logits, pytorch, shipped, _first(part, _MOST_TEXTS))
        first = first or found
        if part.labels is None or (name != "validation" and name != "test"):
            continue
        losses = [told(each.loss) for each in (found.ours, found.theirs)]
        scores = found.ours.score, found.theirs.score
        row = TokenAccuracy(name, found.ours.count, *scores, *losses)
        accuracy.append(row)
        worse = row.artifact_loss - row.pytorch_loss
        if name == "validation" and not alone and not worse <= _LARGEST_LOSS:
            refusals.append(
                f"loss per token is {row.artifact_loss:.4f} and PyTorch's {row.pytorch_loss:.4f} "
                f"on {row.tokens} validation tokens"
            )
    assert first is not None
    few = _first(evidence.first, _ALONE)
    by_token = None if artifact.in_parts is None else _one_by_one(artifact.in_parts)
    single = _compared(_one_by_one(artifact.logits), artifact.logits, None, few).difference
    in_parts = _compared(by_token, artifact.logits, None, few).difference if by_token else 0.0
    tolerance = _AT_INT8 if precision == "int8" else TOLERANCES[precision]
    refusals[:0] = [
        f"{what} by {value:.2g} of their spread, at most {tolerance:g} is accepted"
        for what, value in (
            ("logits differ from PyTorch's", first.difference),
            ("logits of one text differ from those in a batch", single),
            ("logits token by token differ from those of all at once", in_parts),
        )
        if not value <= tolerance  # NaN too
    ]
    record = Verification(
        data=evidence.data,
        samples=min(len(evidence.first), _MOST_TEXTS),
        largest_difference=told(max(first.difference, single, in_parts)),
        tolerance=tolerance,
        same_class=first.same / max(first.tokens, 1),
        forced=forced and bool(refusals),
    )
    return Verified(record, tuple(accuracy), tuple(refusals))


def _compared(ours: Logits, theirs: Logits, shipped: Logits | None, part: Judged) -> _Compared:
    """Compare batch by batch; evaluations are of ``ours``, and of ``shipped`` where it is given."""
    found = _Compared(Evaluation(), Evaluation())
    for batch, labels in _batches(part):
        mask = batch["attention_mask"] != 0
        rows = [np.moveaxis(run(batch), 1, 2)[mask] for run in (ours, theirs)]
        found.largest = max(found.largest, float(np.abs(rows[0] - rows[1]).max()))
        found.spreads += float((rows[1].max(axis=1) - rows[1].min(axis=1)).sum())
        found.same += int((rows[0].argmax(axis=1) == rows[1].argmax(axis=1)).sum())
        found.tokens += len(rows[0])
        if labels is not None and shipped is not None:
            wanted = torch.from_numpy(labels[mask])
            found.ours += GENERATION.evaluation(torch.from_numpy(rows[0]), wanted)
            whole = rows[1] if shipped is theirs else np.moveaxis(shipped(batch), 1, 2)[mask]
            found.theirs += GENERATION.evaluation(torch.from_numpy(whole), wanted)
    return found


def _first(part: Judged, most: int) -> Judged:
    inputs = {name: values[:most] for name, values in part.inputs.items()}
    return Judged(inputs, None if part.labels is None else part.labels[:most])


def _batches(part: Judged) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Few texts at a time, cut to the longest of them."""
    for start in range(0, len(part), _BATCH):
        rows = slice(start, start + _BATCH)
        width = max(2, int(part.inputs["attention_mask"][rows].sum(axis=1).max()))
        batch = {name: values[rows, :width] for name, values in part.inputs.items()}
        yield batch, None if part.labels is None else part.labels[rows, :width]


def _one_by_one(run: Logits) -> Logits:
    """Texts of a batch alone, each without padding."""

    def alone(inputs: Inputs) -> np.ndarray:
        width = inputs["attention_mask"].shape[1]
        rows = []
        for number, length in enumerate((inputs["attention_mask"] != 0).sum(axis=1)):
            one = {n: v[number : number + 1, : max(2, int(length))] for n, v in inputs.items()}
            logits = run(one)
            rows.append(np.pad(logits, ((0, 0), (0, 0), (0, width - logits.shape[2]))))
        return np.concatenate(rows)

    return alone


def speed(
    go_on: Callable[[Sequence[int]], Iterator[int]],
    model: CustomizedModel,
    part: Judged,
    threads: int,
    room: int,
) -> Speed:
    """Time to the first token and tokens a second, of an artifact and of PyTorch by turns.

    Args:
        go_on: of the artifact, on ``threads`` threads.
        model: of the device.
        part: the first text is the prompt.
        threads: goes into the record.
        room: tokens that the model takes.
    """
    length = int((part.inputs["attention_mask"][0] != 0).sum())
    ids = part.inputs["input_ids"][0, : min(length, _LONGEST_PROMPT, max(1, room - _TOKENS))]
    step, prompt = _step(model), ids.tolist()

    def in_pytorch(prompt: Sequence[int]) -> Iterator[int]:
        cache, new = None, torch.tensor([list(prompt)])
        while True:
            with torch.no_grad():
                logits, cache = step(new, cache)
            new = _best(logits)
            yield int(new)

    timed = [
        [_timed(run, prompt, room - len(prompt)) for run in (go_on, in_pytorch)]
        for _ in range(_RUNS)
    ]
    medians = np.median(np.array(timed), axis=0)
    ours, theirs = medians.tolist()
    return Speed(ours[0], ours[1], theirs[0], theirs[1], len(prompt), threads, machine())


def _step(model: CustomizedModel) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """From new tokens and what is remembered to the last one's logits, and what is then."""
    header, backbone = model.header, model.backbone
    if isinstance(header, Header):
        whole = AcmeForCausalLM.of(backbone, header)

        def with_header(new: Tensor, cache: Any) -> tuple[Tensor, Any]:
            found = whole(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return found.logits, found.past_key_values

        return with_header

    def alone(new: Tensor, cache: Any) -> tuple[Tensor, Any]:
        found = backbone(new, past_key_values=cache, use_cache=True)
        last = found.last_hidden_state[:, -1:].transpose(1, 2)
        return language_logits(backbone, last).transpose(1, 2), found.past_key_values

    return alone


def _best(logits: Tensor) -> Tensor:
    return logits[:, -1].argmax(dim=-1, keepdim=True)


def _timed(
    go_on: Callable[[Sequence[int]], Iterator[int]], prompt: Sequence[int], room: int
) -> tuple[float, float]:
    """Milliseconds to the first token, and tokens a second behind it."""
    start = time.perf_counter()
    tokens = go_on(prompt)
    next(tokens)
    first = time.perf_counter()
    more = sum(1 for _ in itertools.islice(tokens, max(1, min(_TOKENS, room) - 1)))
    seconds = time.perf_counter() - first
    return round(1e3 * (first - start), 4), round(max(more, 1) / max(seconds, 1e-9), 2)
