"""A device's protections together, as its role uses them: settings, secret, and what they do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from acme_fleet.config.personalization import Privacy
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.privacy.masking import Masker, public_key, unmask
from acme_fleet.privacy.noise import (
    Quantized,
    device_secret,
    protect_features,
    protect_importance,
    quantize,
)


class Protection:
    """The protections of device ``name``.

    Args:
        name: the device's.
        privacy: which protections are on.
        seed: the fleet's; it decides the projection and nothing that must stay secret.
        secret_file: where the device keeps its secret.
    """

    def __init__(self, name: str, privacy: Privacy, seed: int, secret_file: Path) -> None:
        self._name = name
        self._privacy = privacy
        self._seed = seed
        self._secret_file = secret_file

    @cached_property
    def _secret(self) -> bytes:
        return device_secret(self._secret_file)

    def public_key(self) -> str:
        """The key that others need for masks in common; empty without masking."""
        return public_key(self._secret) if self._privacy.masking else ""

    def features(self, features: Float[Tensor, "samples hidden"]) -> Quantized:
        """A feature sample as it is sent."""
        rows = features.double().numpy()
        protected = protect_features(rows, self._privacy, self._seed, self._secret)
        return quantize(protected, self._privacy.sketch_bits)

    def importance(self, importance: ImportanceSet) -> ImportanceSet:
        """An importance set that may be sent: with noise, where it is asked for."""
        noise = self._privacy.importance_noise
        return importance if noise is None else protect_importance(importance, noise, self._secret)

    def shares(
        self,
        importance: ImportanceSet,
        keys: Mapping[str, str],
        weights: Mapping[str, float],
        occasion: str,
    ) -> dict[str, Int[Tensor, " neurons"]]:
        """A set as masked shares, see :meth:`acme_fleet.privacy.masking.Masker.shares`."""
        whole = importance.flat().double()
        masker = Masker(self._name, self._secret, keys, occasion)
        return masker.shares(whole / whole.sum(), weights)

    def mixture(
        self, total: Int[Tensor, " neurons"], occasion: str, channels: Mapping[str, int]
    ) -> ImportanceSet:
        """The mixture, from the sum of all shares for this device.

        Args:
            total: the sum. occasion: of the round.
            channels: of each layer, in the order in which the senders have laid them.
        """
        whole = unmask(total, self._secret, occasion)
        return ImportanceSet.zeros(channels).unflatten(whole)
