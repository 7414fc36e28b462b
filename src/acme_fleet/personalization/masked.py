"""Rule ``privacy.masking``: each receiver learns its mixture (Eq. 21), the edge server nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from secrets import token_hex
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import check_shapes
from acme_fleet.messages.edge_device import MaskedRoundStart, MaskedUpdate, MaskedUpload
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.messages.peer_weights import PeerWeights, column
from acme_fleet.personalization.base import Mixture, Own, Rule, Weights, channels_of
from acme_fleet.privacy.protection import Protection


def outgoing_weights(weights: PeerWeights, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each device, what its set weighs in each receiver's mixture: the columns of Ŵ."""
    return {
        name: dict(zip(names, column(weights, place), strict=True))
        for place, name in enumerate(names)
    }


def add_up(uploads: Mapping[str, MaskedUpload]) -> dict[str, Int[Tensor, " neurons"]]:
    """For each device the sum of all shares for it, modulo 2³²; the senders' masks cancel."""
    return {
        name: _wrapped(torch.stack([upload.shares[name].long() for upload in uploads.values()]))
        for name in uploads
    }


def _wrapped(shares: Int[Tensor, "senders neurons"]) -> Int[Tensor, " neurons"]:
    total = shares.sum(dim=0) % 2**32
    return torch.where(total < 2**31, total, total - 2**32).int()


class MaskedRule(Rule[MaskedRoundStart, MaskedUpload, MaskedUpdate, Int[Tensor, " neurons"]]):
    """Importance sets as masked shares, which the edge server adds up and cannot read."""

    start_type = MaskedRoundStart
    upload_type = MaskedUpload
    update_type = MaskedUpdate
    hidden: ClassVar[bool] = True

    def protections(self) -> list[str]:
        """Masks too."""
        return [*super().protections(), "masked"]

    def most_numbers(self, neurons: int, weights: int, devices: int) -> int:
        """One for each neuron and each receiver."""
        return devices * neurons

    def upload(self, start: MaskedRoundStart, own: Own) -> MaskedUpload:
        """A masked share for each receiver."""
        occasion = f"{start.round}/{start.nonce}"
        shares = own.protection.shares(own.importance, start.public_keys, start.weights, occasion)
        return MaskedUpload(round=start.round, shares=shares)

    def received(
        self, update: MaskedUpdate, plan: HeaderPlan, protection: Protection
    ) -> ImportanceSet | None:
        """The mixture; none if a sender's shares spoilt the sum.

        Nobody can tell whose shares: the edge server reads none of them, and to ask again without
        a sender would give its set away.
        """
        channels = channels_of(plan)
        if len(update.total) != sum(channels.values()):
            raise ProtocolError(
                f"the masked sum has {len(update.total)} numbers, expected {sum(channels.values())}"
            )
        try:
            occasion = f"{update.round}/{update.nonce}"
            return protection.mixture(update.total, occasion, channels)
        except ProtocolError:
            return None

    def starts(
        self,
        number: int,
        names: Collection[str],
        keys: Mapping[str, str],
        weights: Weights,
    ) -> Mapping[str, MaskedRoundStart]:
        """Each device's weight in every mixture, everybody's key, and a nonce never used before."""
        wanted, nonce = {name: keys[name] for name in names}, token_hex(16)
        return {
            name: MaskedRoundStart(round=number, public_keys=wanted, weights=own, nonce=nonce)
            for name, own in outgoing_weights(weights(names), list(names)).items()
        }

    def check(
        self, name: str, upload: MaskedUpload, plan: HeaderPlan, asked: Collection[str]
    ) -> None:
        """Refuse shares that are not one for each receiver."""
        shapes = dict.fromkeys(asked, (sum(channels_of(plan).values()),))
        check_shapes(upload.shares, shapes, f"the masked shares of {name}", torch.int32)

    def mix(
        self,
        uploads: Mapping[str, MaskedUpload],
        plan: HeaderPlan,
        coarse: Mapping[str, Tensor],
        weights: PeerWeights,
    ) -> Mixture[Int[Tensor, " neurons"]]:
        """For each device the sum of the shares for it; the devices have weighed them already."""
        return Mixture(add_up(uploads))

    def update(self, start: MaskedRoundStart, mixed: Int[Tensor, " neurons"]) -> MaskedUpdate:
        """The sum, and the nonce that its mask depends on."""
        return MaskedUpdate(round=start.round, total=mixed, nonce=start.nonce)
