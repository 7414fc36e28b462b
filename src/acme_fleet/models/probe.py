"""A task's probe on the features of a backbone, and the heads that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.models.features import Classifier, activations, moved, pooled_by
from acme_fleet.models.padding import by_length
from acme_fleet.tasks.base import Fit
from acme_fleet.tasks.probe import Features, Probe

_MARGIN = 1.0  # logits by which a class without samples stays behind


def refit(
    fit: Fit, classifier: Mapping[str, Tensor], train: Samples, validation: Samples
) -> dict[str, Tensor]:
    """A linear classifier with a probe in place of its rows.

    Rows of classes without a training sample stay, and are lowered as far as is needed for none of
    them to win on a training sample.

    Args:
        fit: the task's probe.
        classifier: ``weight`` and ``bias``, on the pooled vector.
        train, validation: features of a frozen backbone, see ``feature_samples``.
    """
    weight, bias = classifier["weight"], classifier["bias"]
    data = [(s.inputs["pooled"].numpy(), s.labels.numpy()) for s in (train, validation)]
    probe = fit(data[0], data[1], len(bias))
    fitted, seen = probe.tensors(), torch.zeros(len(bias), dtype=torch.bool)
    seen[torch.from_numpy(probe.seen)] = True
    rows = torch.where(seen[:, None], fitted["weight"], weight)
    offsets = torch.where(seen, fitted["bias"], bias)
    if not bool(seen.all()):
        scores = train.inputs["pooled"] @ rows.T + offsets
        lead = scores[:, seen].amax(dim=1) - scores[:, ~seen].amax(dim=1)
        offsets = torch.where(seen, offsets, offsets + lead.min().clamp(max=0) - _MARGIN)
    return {"weight": rows, "bias": offsets}


@torch.no_grad()
def pooled_features(
    backbone: PreTrainedModel, samples: Samples, poolings: Sequence[Pooling], batch_size: int = 64
) -> Mapping[Pooling, Features]:
    """Features of all samples in one pass, pooled in each of these ways."""
    found: dict[Pooling, list[Tensor]] = {pooling: [] for pooling in poolings}
    batches, back = by_length(samples, batch_size)
    for batch in batches:
        run = activations(backbone, moved(batch.inputs, backbone.device))
        for pooling, rows in found.items():
            pooled = pooled_by(pooling, run.final, run.mask, backbone.config, run.attended)
            rows.append(pooled.cpu())
    features: dict[Pooling, Features] = {}
    for pooling, rows in found.items():
        together = torch.cat(rows)
        features[pooling] = (together if back is None else together[back]).numpy()
    return features


def probe_of(fit: Fit, model: Classifier, public: Splits) -> tuple[dict[str, Tensor], float]:
    """A head fitted to a model's pooled vectors, and its accuracy on public validation data."""
    backbone, classes = model.backbone, model.head.out_features
    way = backbone.config.pooling
    read = [
        (pooled_features(backbone, part, [way])[way], part.labels.numpy())
        for part in (public.train, public.validation)
    ]
    probe = fit(read[0], read[1], classes)
    return probe.tensors(), probe.accuracy(*read[1])


def choose_pooling(
    fit: Fit, backbone: PreTrainedModel, public: Splits, classes: int, ways: Sequence[Pooling]
) -> tuple[Pooling, Probe]:
    """The way to pool whose probe is best on public validation data, and that probe.

    Of equally good ones the first is taken.
    """
    train = pooled_features(backbone, public.train, ways)
    validation = pooled_features(backbone, public.validation, ways)
    known, told = public.train.labels.numpy(), public.validation.labels.numpy()
    probes = {way: fit((train[way], known), (validation[way], told), classes) for way in ways}
    best = max(ways, key=lambda way: probes[way].accuracy(validation[way], told))
    return best, probes[best]
