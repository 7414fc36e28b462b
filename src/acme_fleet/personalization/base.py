"""The interface of a personalisation rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from acme_fleet.config.personalization import Personalization
from acme_fleet.messages.edge_device import ImportanceUpdate, ImportanceUpload, RoundStart
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import Header
from acme_fleet.privacy.protection import Protection

NOT_PROTECTED = "not protected"
Weights = Callable[[Collection[str]], Float[np.ndarray, "devices devices"]]
"""Ŵ among the devices that are named."""


@dataclass(frozen=True)
class Own:
    """A device's own part of a round, after its training.

    Attributes:
        header: as it is now.
        importance: Q_n (Eq. 17-18), with the noise that the settings ask for.
        classes: numbers of the classes in the train set.
        protection: the device's keys and noise.
    """

    header: Header
    importance: ImportanceSet
    classes: Callable[[], list[int]]
    protection: Protection


@runtime_checkable
class Upload(Protocol):
    """The parts of an upload; of open rules an edge server keeps them on its disk."""

    @property
    def importance(self) -> Mapping[str, Tensor]:
        """Q_n by layer."""
        ...

    @property
    def header(self) -> Mapping[str, Tensor]:
        """The header's tensors, where weights are mixed."""
        ...

    @property
    def kept(self) -> Mapping[str, list[int]]:
        """Channels that pruning has left, by layer; a layer that is not listed has all."""
        ...

    @property
    def held(self) -> list[int]:
        """Classes that the device trains on, where it was asked for them."""
        ...

    @property
    def masked(self) -> Mapping[str, Tensor]:
        """A masked share for every receiver, int32 of shape ``(neurons,)``, in hidden rules."""
        ...


@dataclass(frozen=True)
class Mixture:
    """The mixed sets and headers that devices get back in a round.

    Attributes:
        importance: the mixed set by device.
        headers: the mixed header by device; empty where none is mixed.
        shortened: by how much the updates of devices were scaled down, of those that were.
        masked: the sum of the masked shares for each device, in place of a set.
    """

    importance: Mapping[str, ImportanceSet] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    shortened: Mapping[str, float] = field(default_factory=dict)
    masked: Mapping[str, Tensor] = field(default_factory=dict)

    def update(self, name: str, start: RoundStart) -> ImportanceUpdate:
        """The message to a device, in answer to its upload for ``start``."""
        return ImportanceUpdate(
            round=start.round,
            importance=self.importance[name].by_layer() if name in self.importance else {},
            header=dict(self.headers.get(name, {})),
            masked={"sum": self.masked[name]} if name in self.masked else {},
            nonce=start.nonce,
        )


class Rule(ABC):
    """A way in which devices of a group learn from each other.

    Attributes:
        hidden: True if the edge server reads no device's upload. Devices then need each other's
            public keys, an upload counts in its own round alone, and all must answer.
    """

    hidden: ClassVar[bool] = False

    def __init__(self, settings: Personalization) -> None:
        self.settings = settings

    # --- what it discloses ---

    def disclosed(self) -> str:
        """An upload's content in words, for the people whose data it is about."""
        return "one number for each neuron of the header"

    def protections(self) -> list[str]:
        """Protections of an upload in words."""
        noise = self.settings.privacy.importance_noise
        return [] if noise is None else [f"noise {noise:g} times the sensitivity"]

    def most_numbers(self, neurons: int, weights: int, devices: int) -> int:
        """The most numbers of 4 bytes in an upload.

        Args:
            neurons, weights: of the largest header.
            devices: of the largest group.
        """
        return neurons

    # --- on a device ---

    @abstractmethod
    def upload(self, start: RoundStart, own: Own) -> ImportanceUpload:
        """The message to the edge server."""

    def received(
        self, update: ImportanceUpdate, channels: Mapping[str, int], protection: Protection
    ) -> ImportanceSet | None:
        """The mixed set of an update; none if it cannot be used and the device's own must do.

        Args:
            update: as it came.
            channels: of each layer, in the plan's order.
            protection: the device's.

        Raises:
            ProtocolError: if it does not have the right form.
        """
        return ImportanceSet.checked(update.importance, channels, "the mixed importance")

    # --- at the edge server ---

    def starts(
        self,
        number: int,
        names: Collection[str],
        keys: Mapping[str, str],
        weights: Weights,
    ) -> dict[str, RoundStart]:
        """The request to each device.

        Args:
            number: of the round.
            names: the devices that are asked.
            keys: public keys of all, where there are keys.
            weights: gives Ŵ among devices, in their order, row = receiver.
        """
        return dict.fromkeys(names, RoundStart(round=number))

    @abstractmethod
    def check(
        self, name: str, upload: ImportanceUpload, plan: HeaderPlan, asked: Collection[str]
    ) -> None:
        """Refuse an upload of another form.

        Raises:
            ProtocolError: naming the field and what it may be.
        """

    @abstractmethod
    def mix(
        self,
        uploads: Mapping[str, Upload],
        plan: HeaderPlan,
        coarse: Mapping[str, Tensor],
        weights: Float[np.ndarray, "devices devices"],
    ) -> Mixture:
        """The set and header that each device gets back.

        Args:
            uploads: by device, checked.
            plan, coarse: the header that all received.
            weights: Ŵ, rows and columns in the order of ``uploads``.
        """
