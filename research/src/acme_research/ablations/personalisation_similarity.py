"""Mixing weights of ``personalisation.py``: the product's, those of rivals, and a bound."""

import numpy as np
from scipy.spatial.distance import cdist

from acme_fleet.edge.similarity import (
    debias,
    distance_matrix,
    mixing_weights,
    who_listens_to_whom,
)
from acme_research.ablations.personalisation_fleets import World
from acme_research.rivals import aggregation as rivals


def listening(kind: str, world: World, feature_samples: int, temperature: float) -> np.ndarray:
    """Ŵ of one kind, row = receiver."""
    samples = [own[:feature_samples] for own in world.samples]
    devices = len(samples)
    match kind:
        case "alone":
            return rivals.alone(devices)
        case "average":
            return rivals.average(devices)
        case "federated":
            return rivals.federated_average([len(s.train) for s in world.private])
        case "js":
            distances = rivals.jensen_shannon_distances(samples)
            others = distances[~np.eye(devices, dtype=bool)]
            return mixing_weights(distances / np.median(others), temperature)
        case "oracle":
            return _rows(overlap(world.classes))
        case "labels":
            return mixing_weights(label_distances(world), temperature)
        case "matched":
            own = world.shared.inputs["pooled"].double().numpy()
            return _rows(matches(samples, own, world.shared.labels.numpy(), world.classes.shape[1]))
        case "debiased" | "literal":
            found = who_listens_to_whom(samples, kind, temperature)
            assert isinstance(found, np.ndarray)  # these are few devices
            return found
    raise ValueError(kind)


def _rows(similarity: np.ndarray) -> np.ndarray:
    return similarity / similarity.sum(axis=1, keepdims=True)


def overlap(classes: np.ndarray) -> np.ndarray:
    """The overlap of two devices' true class shares: the best that a similarity could know."""
    return np.minimum(classes[:, None], classes[None, :]).sum(axis=2)


def label_distances(world: World) -> np.ndarray:
    """Transport of all private samples that pays the median cost for a change of the class.

    Debiased as the product's. Labels would have to leave the devices.
    """
    features = [own.train.inputs["pooled"].double().numpy() for own in world.private]
    scale = float(np.median(cdist(features[0], features[1], metric="cityblock")))
    classes = world.classes.shape[1]
    # Under the L1 cost a class is a coordinate: two different ones are `scale` apart.
    labelled = [
        np.hstack([x, np.eye(classes)[own.train.labels.numpy()] * scale / 2])
        for x, own in zip(features, world.private, strict=True)
    ]
    return debias(distance_matrix(labelled), labelled)


def matches(
    samples: list[np.ndarray],
    known: np.ndarray,
    labels: np.ndarray,
    classes: int,
    width: float = 0.2,
) -> np.ndarray:
    """Likelihood that two devices' samples are of one class, relative to two samples of one device.

    A Gaussian kernel's mean over pairs of samples lies between its means over the edge's own pairs
    of different classes and of one class; where it lies is the share of pairs of one class.
    Pairs of a sample with itself are left out, so the size of a sample does not bias it.

    Args:
        samples: each device's features.
        known, labels: the edge's own, of so many ``classes``.
        width: of the kernel, in median distances of the edge's samples.
    """
    apart = cdist(known, known)
    width *= float(np.median(apart))

    def kernel(distances: np.ndarray) -> np.ndarray:
        return np.exp(-(distances**2) / (2 * width**2))

    same, pairs = labels[:, None] == labels[None, :], ~np.eye(len(labels), dtype=bool)
    least, most = kernel(apart[~same]).mean(), kernel(apart[same & pairs]).mean()
    found = np.zeros((len(samples), len(samples)))
    for i, j in zip(*np.tril_indices(len(samples)), strict=True):
        values = kernel(cdist(samples[i], samples[j]))
        own = values[~np.eye(len(values), dtype=bool)] if i == j else values
        found[i, j] = found[j, i] = (own.mean() - least) / (most - least)
    within = np.sqrt(np.clip(np.diag(found), 1 / classes, 1))
    shares = np.clip(found / within[:, None] / within[None, :], 0, 1)
    np.fill_diagonal(shares, 1)
    return shares
