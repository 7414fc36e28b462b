"""Devices without clusters, partitioned by what they can store and do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acme_fleet.config.devices import Cluster, Device

_MOST_GROUPS = 8
_NO_STRUCTURE = 0.25  # silhouettes up to here show no structure (Kaufman and Rousseeuw, 1990)
_SILHOUETTE_SAMPLE = 2000
_SMALLEST = 1e-12  # a constant of Eq. 2 may be zero, its logarithm may not


def group_devices(devices: Sequence[Device], clusters: int | None, seed: int) -> list[Cluster]:
    """Clusters ``group-1``, ``group-2``, … by descending storage limit; devices keep their order.

    Args:
        devices: at least one.
        clusters: how many, or None to let the silhouette choose.
        seed: decides where k-means starts.

    Raises:
        ValueError: if more groups are wanted than there are devices that differ.
    """
    labels = partition(capabilities(devices), clusters, seed)
    groups = [
        [device for device, label in zip(devices, labels, strict=True) if label == wanted]
        for wanted in dict.fromkeys(labels.tolist())
    ]
    groups.sort(key=lambda group: -min(device.storage for device in group))
    return [Cluster(name=f"group-{n}", devices=group) for n, group in enumerate(groups, 1)]


def capabilities(devices: Sequence[Device]) -> np.ndarray:
    """Logarithms of storage, power and latency, standardised, shape ``(devices, 3)``.

    Power and latency are those of Eq. 2 for one layer of full width and one patch. What all
    devices have in common is zero.
    """
    logarithms = np.log(
        [
            [
                device.storage,
                max(e.power_w + e.power_per_layer_w + e.batch_power_w, _SMALLEST),
                max(e.latency_s + e.latency_per_layer_s + e.latency_per_depth_s, _SMALLEST),
            ]
            for device in devices
            for e in [device.energy]
        ]
    )
    spread = logarithms.std(axis=0)
    differs = np.ptp(logarithms, axis=0) > 0
    return np.where(differs, logarithms - logarithms.mean(axis=0), 0) / np.where(differs, spread, 1)


def partition(features: np.ndarray, clusters: int | None, seed: int) -> np.ndarray:
    """A group's number for each device, by k-means.

    Without a number given it is that with the best silhouette, or one group where no number
    shows a structure: for one or two devices, for devices that are all alike or all different.

    Args:
        features: shape ``(devices, features)``.
        clusters: how many groups, or None.
        seed: decides where k-means starts.

    Returns:
        Integers, shape ``(devices,)``.

    Raises:
        ValueError: if more groups are wanted than there are devices that differ.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    different = len(np.unique(features, axis=0))

    def split(count: int) -> np.ndarray:
        means = KMeans(count, random_state=seed % 2**32).set_params(n_init=10)
        return means.fit_predict(features)

    if clusters is not None:
        if clusters > different:
            raise ValueError(f"{clusters} groups of devices, of which only {different} differ")
        return split(clusters)
    best, score = np.zeros(len(features), dtype=int), _NO_STRUCTURE
    sample = _SILHOUETTE_SAMPLE if len(features) > _SILHOUETTE_SAMPLE else None
    for count in range(2, min(_MOST_GROUPS, different, len(features) - 1) + 1):
        labels = split(count)
        found = silhouette_score(features, labels, sample_size=sample, random_state=seed % 2**32)
        if found > score:
            best, score = labels, float(found)
    return best
