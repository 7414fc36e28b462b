"""Aggregation on which devices that lie within every bound have little influence, by name.

What every device sent is a row; the rule mixes rows by Ŵ. Here outlying rows or numbers are taken
out before. ``share`` is the share of the devices that may lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acme_fleet.config.personalization import Personalization
from acme_fleet.messages.peer_weights import PeerWeights, among


@dataclass(frozen=True)
class Robust:
    """One way: the rows to mix in place of those that came, and whose rows count for others.

    Attributes:
        rows: of all devices and the share to the rows that are mixed.
        counted: of all devices and the share to those that others listen to.
    """

    rows: Callable[[Float[Tensor, "devices numbers"], float], Float[Tensor, "devices numbers"]]
    counted: Callable[[Float[Tensor, "devices numbers"], float], Bool[Tensor, " devices"]]

    def applied(
        self, sent: Float[Tensor, "devices numbers"], weights: PeerWeights, share: float
    ) -> tuple[Float[Tensor, "devices numbers"], PeerWeights]:
        """The rows and the weights to mix them by.

        Args:
            sent: a row for each device.
            weights: Ŵ, in the same order.
            share: of the devices that may lie.
        """
        counted = self.counted(sent, share)
        if not counted.all():
            weights = among(weights, range(len(sent)), counted.double().tolist())
        return self.rows(sent, share), weights


def trimmed(
    sent: Float[Tensor, "devices numbers"], share: float
) -> Float[Tensor, "devices numbers"]:
    """Each number moved into the range of the others without the share at either end.

    The trimmed mean of Yin et al. (2018) leaves those numbers out; here they count as the nearest
    that is left, since every receiver has weights of its own.
    """
    low, high = _ends(len(sent), share)
    ordered = sent.sort(dim=0).values
    return sent.clamp(ordered[low], ordered[high])


def median(
    sent: Float[Tensor, "devices numbers"], share: float
) -> Float[Tensor, "devices numbers"]:
    """The median of each number over the devices, for every device (Yin et al., 2018)."""
    return sent.median(dim=0).values.expand_as(sent).clone()


def krum(sent: Float[Tensor, "devices numbers"], share: float) -> Bool[Tensor, " devices"]:
    """The devices with the least sum of squared distances to their nearest peers.

    Multi-Krum of Blanchard et al. (2017): of n devices of which f may lie, a score sums over the
    n − f − 2 nearest, and the f with the largest scores do not count.
    """
    count = len(sent)
    liars = int(share * count)
    if count - liars - 2 < 1 or not liars:
        return torch.ones(count, dtype=torch.bool)
    apart = torch.cdist(sent.double(), sent.double()).square()
    nearest = apart.sort(dim=1).values[:, 1 : count - liars - 1]
    kept = torch.ones(count, dtype=torch.bool)
    kept[nearest.sum(dim=1).topk(liars).indices] = False
    return kept


def _ends(count: int, share: float) -> tuple[int, int]:
    low = min(int(share * count), (count - 1) // 2)
    return low, count - 1 - low


def _as_sent(
    sent: Float[Tensor, "devices numbers"], share: float
) -> Float[Tensor, "devices numbers"]:
    return sent


def _everybody(sent: Float[Tensor, "devices numbers"], share: float) -> Bool[Tensor, " devices"]:
    return torch.ones(len(sent), dtype=torch.bool)


ROBUST = {
    "trimmed_mean": Robust(trimmed, _everybody),
    "median": Robust(median, _everybody),
    "krum": Robust(_as_sent, krum),
}
"""By ``personalization.robust``."""


def made_robust(
    settings: Personalization, sent: Float[Tensor, "devices numbers"], weights: PeerWeights
) -> tuple[Float[Tensor, "devices numbers"], PeerWeights]:
    """See :meth:`Robust.applied`; as they are with ``robust: none``."""
    if settings.robust == "none":
        return sent, weights
    return ROBUST[settings.robust].applied(sent, weights, settings.robust_share)
