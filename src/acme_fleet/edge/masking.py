"""The edge server's part in masked rounds: it says what weighs how much, and adds up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from acme_fleet.edge.peers import Peers


class Upload(Protocol):
    """A device's upload in a masked round."""

    @property
    def masked(self) -> Mapping[str, Int[Tensor, " neurons"]]:
        """A masked share for every receiver."""
        ...


def outgoing_weights(
    weights: Float[np.ndarray, "devices devices"], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """For each device, what its set weighs in each receiver's mixture: the columns of Ŵ."""
    return {
        name: dict(zip(names, weights[:, column].tolist(), strict=True))
        for column, name in enumerate(names)
    }


@dataclass(frozen=True)
class Order:
    """The weights and keys that a device needs to send its masked shares.

    Attributes:
        public_keys: of all who take part.
        weights: what its set weighs in each one's mixture.
        nonce: never used before, so that no mask is used twice.
    """

    public_keys: dict[str, str]
    weights: dict[str, float]
    nonce: str


def masked_sums(
    peers: Peers, ask: Callable[[Mapping[str, Order]], Mapping[str, Upload]]
) -> tuple[str, dict[str, Int[Tensor, " neurons"]]]:
    """The nonce, and for each device the masked sum of all shares for it.

    The masks of a device that fails stay in all sums: the others are asked again without it.

    Args:
        peers: who could take part.
        ask: sends each device its order, and returns the shares of those who answered.
    """
    asked = peers.devices
    while True:
        keys, nonce = {name: peers.keys[name] for name in asked}, token_hex(16)
        columns = outgoing_weights(peers.among(asked), asked)
        uploads = ask({name: Order(keys, weights, nonce) for name, weights in columns.items()})
        if len(uploads) == len(asked):
            return nonce, add_up(uploads)
        asked = list(uploads)


def add_up(uploads: Mapping[str, Upload]) -> dict[str, Int[Tensor, " neurons"]]:
    """For each device the sum of all shares for it, modulo 2³²; the senders' masks cancel."""
    return {
        name: _wrapped(torch.stack([upload.masked[name].long() for upload in uploads.values()]))
        for name in uploads
    }


def _wrapped(shares: Int[Tensor, "senders neurons"]) -> Int[Tensor, " neurons"]:
    total = shares.sum(dim=0) % 2**32
    return torch.where(total < 2**31, total, total - 2**32).int()
