"""Masked shares of importance sets: each receiver learns its mixture (Eq. 21), the edge nothing.

Pairwise masks as in secure aggregation (Bonawitz et al., 2017), for one sum per receiver: device m
sends receiver n the share ŵ_nm·Q_m, plus masks that it has in common with each other sender and
that cancel in the sum over all senders. The weights differ from sum to sum, so each has masks of
its own. And the edge knows Ŵ: from N sums of N sets it could solve for every set, so each sum also
has a mask that its receiver alone can take off.

All arithmetic is on whole numbers modulo 2³², so that masks cancel exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.outside import optional
from acme_fleet.privacy.noise import stream

_ONE = 2**30
"""The whole number that stands for 1; a mixture of sets of sum 1 stays far below 2³²."""
_MODULUS = 2**32
_ROUNDED = 1e-3
"""More than rounding every share can change a sum by, in any fleet that fits a machine."""


def _x25519() -> Any:
    module = "cryptography.hazmat.primitives.asymmetric.x25519"
    return optional(module, "masking needs `pip install 'acme-fleet[privacy]'`")


def public_key(secret: bytes) -> str:
    """The device's X25519 public key, as hexadecimal digits.

    Raises:
        FleetError: if the library ``cryptography`` is not installed.
    """
    return _private_key(secret).public_key().public_bytes_raw().hex()


def _private_key(secret: bytes) -> Any:
    return _x25519().X25519PrivateKey.from_private_bytes(stream(secret, "x25519", 32))


@dataclass(frozen=True)
class Masker:
    """One device's part in one masked sum for each receiver.

    Attributes:
        name: the device's.
        secret: the device's.
        keys: public keys of all who take part, this device too.
        occasion: what was never used before, so that no mask is used twice.
    """

    name: str
    secret: bytes
    keys: Mapping[str, str]
    occasion: str

    def __post_init__(self) -> None:
        if self.keys.get(self.name) != public_key(self.secret):
            raise ProtocolError(f"the keys of a masked round lack that of {self.name}")

    def shares(
        self, values: Float[Tensor, " neurons"], weights: Mapping[str, float]
    ) -> dict[str, Int32[Tensor, " neurons"]]:
        """A masked share for every receiver.

        Args:
            values: Q_m, of sum 1.
            weights: ŵ_nm by receiver n.

        Raises:
            ProtocolError: if receivers and keys differ, or a key is none.
        """
        if weights.keys() != self.keys.keys():
            raise ProtocolError("a masked round names other receivers than keys")
        common = self._common_secrets()
        whole = values.double().numpy() * _ONE
        masked = {}
        for receiver, weight in weights.items():
            total = np.rint(weight * whole).astype(np.int64)
            for peer, key in common.items():
                sign = 1 if self.name < peer else -1
                total += sign * _mask(key, f"{self.occasion}/{receiver}", len(whole))
            if receiver == self.name:
                total += pad(self.secret, self.occasion, len(whole))
            masked[receiver] = _as_int32(total)
        return masked

    def _common_secrets(self) -> dict[str, bytes]:
        """The secret that this device has in common with each other one (Diffie-Hellman)."""
        own, library = _private_key(self.secret), _x25519()
        try:
            return {
                peer: own.exchange(library.X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
                for peer, key in self.keys.items()
                if peer != self.name
            }
        except ValueError as error:
            raise ProtocolError(f"a public key is none: {error}") from error


def unmask(
    total: Int[Tensor, " neurons"], secret: bytes, occasion: str
) -> Float[Tensor, " neurons"]:
    """A device's mixture, from the sum of all shares for it, its secret and the round's occasion.

    Raises:
        ProtocolError: if it does not sum to 1: a sender did not keep to the protocol.
    """
    numbers = total.long().numpy() - pad(secret, occasion, len(total))
    mixture = torch.from_numpy((numbers % _MODULUS) / _ONE)
    if abs(float(mixture.sum()) - 1) > _ROUNDED:
        raise ProtocolError(f"masked importance sets sum to {float(mixture.sum()):g} and not to 1")
    return mixture.float()


def pad(secret: bytes, occasion: str, count: int) -> Int64[np.ndarray, " neurons"]:
    """The mask of a device's own sum, which nobody else can draw."""
    return _mask(secret, f"{occasion}/pad", count)


def _mask(key: bytes, purpose: str, count: int) -> Int64[np.ndarray, " neurons"]:
    drawn = stream(key, f"mask/{purpose}", 4 * count)
    return np.frombuffer(drawn, dtype="<u4").astype(np.int64)


def _as_int32(numbers: Int64[np.ndarray, " neurons"]) -> Int32[Tensor, " neurons"]:
    """Modulo 2³², with the upper half as negative numbers."""
    wrapped = (numbers % _MODULUS).astype(np.uint32).view(np.int32)
    return torch.from_numpy(wrapped.copy())
