"""The interface of a personalisation rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from acme_fleet.config.personalization import Personalization
from acme_fleet.messages.edge_device import (
    OpenUpdate,
    OpenUpload,
    RoundStart,
    Start,
    Update,
    Upload,
)
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.messages.peer_weights import PeerWeights
from acme_fleet.models.header.module import Header
from acme_fleet.privacy.protection import Protection

NOT_PROTECTED = "not protected"
Weights = Callable[[Collection[str]], PeerWeights]
"""Ŵ among the devices that are named."""

StartT = TypeVar("StartT", bound=Start)
UploadT = TypeVar("UploadT", bound=Upload)
UpdateT = TypeVar("UpdateT", bound=Update)
MixedT = TypeVar("MixedT")
OpenUploadT = TypeVar("OpenUploadT", bound=OpenUpload)
OpenUpdateT = TypeVar("OpenUpdateT", bound=OpenUpdate)


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


@dataclass(frozen=True)
class Mixture(Generic[MixedT]):
    """The result of mixing in a round.

    Attributes:
        parts: by device what it gets back, as the rule mixes it.
        shortened: by how much the updates of devices were scaled down, of those that were.
    """

    parts: Mapping[str, MixedT]
    shortened: Mapping[str, float] = field(default_factory=dict)


class Rule(ABC, Generic[StartT, UploadT, UpdateT, MixedT]):
    """A way in which devices of a group learn from each other.

    Attributes:
        start_type, upload_type, update_type: its messages in a round; either side refuses others.
        hidden: True if the edge server reads no device's upload. Devices then need each other's
            public keys, an upload counts in its own round alone, and all must answer.
    """

    start_type: type[StartT]
    upload_type: type[UploadT]
    update_type: type[UpdateT]
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
    def upload(self, start: StartT, own: Own) -> UploadT:
        """The message to the edge server."""

    @abstractmethod
    def received(
        self, update: UpdateT, plan: HeaderPlan, protection: Protection
    ) -> ImportanceSet | None:
        """The mixed set of an update; none if it cannot be used and the device's own must do.

        Args:
            update: as it came.
            plan: of the device's header.
            protection: the device's.

        Raises:
            ProtocolError: if it does not have the right form.
        """

    def received_header(self, update: UpdateT, plan: HeaderPlan) -> Header | None:
        """The mixed header of an update; none in rules that mix no headers.

        Raises:
            ProtocolError: if it does not have the right form.
        """
        return None

    # --- at the edge server ---

    @abstractmethod
    def starts(
        self,
        number: int,
        names: Collection[str],
        keys: Mapping[str, str],
        weights: Weights,
    ) -> Mapping[str, StartT]:
        """The request to each device.

        Args:
            number: of the round.
            names: the devices that are asked.
            keys: public keys of all, where there are keys.
            weights: gives Ŵ among devices, in their order, row = receiver.
        """

    @abstractmethod
    def check(self, name: str, upload: UploadT, plan: HeaderPlan, asked: Collection[str]) -> None:
        """Refuse an upload of another form.

        Raises:
            ProtocolError: naming the field and what it may be.
        """

    @abstractmethod
    def mix(
        self,
        uploads: Mapping[str, UploadT],
        plan: HeaderPlan,
        coarse: Mapping[str, Tensor],
        weights: PeerWeights,
    ) -> Mixture[MixedT]:
        """The part that each device gets back.

        Args:
            uploads: by device, checked.
            plan, coarse: the header that all received.
            weights: Ŵ, rows and columns in the order of ``uploads``.
        """

    @abstractmethod
    def update(self, start: StartT, mixed: MixedT) -> UpdateT:
        """The message that brings a device its part, in answer to its upload for ``start``."""


class OpenRule(Rule[RoundStart, OpenUploadT, OpenUpdateT, MixedT]):
    """A rule whose uploads hold an importance set that the edge server reads."""

    start_type = RoundStart

    def starts(
        self,
        number: int,
        names: Collection[str],
        keys: Mapping[str, str],
        weights: Weights,
    ) -> Mapping[str, RoundStart]:
        """The same request to each device."""
        return dict.fromkeys(names, RoundStart(round=number))

    def received(
        self, update: OpenUpdateT, plan: HeaderPlan, protection: Protection
    ) -> ImportanceSet | None:
        """The mixed set."""
        return ImportanceSet.checked(update.importance, channels_of(plan), "the mixed importance")

    def check(
        self, name: str, upload: OpenUploadT, plan: HeaderPlan, asked: Collection[str]
    ) -> None:
        """Refuse importance that is not one number for each neuron."""
        ImportanceSet.checked(upload.importance, channels_of(plan), f"the importance of {name}")


def channels_of(plan: HeaderPlan) -> dict[str, int]:
    """Channels of each layer of an importance set, in the plan's order, pruned ones included."""
    return dict.fromkeys(plan.layers, plan.genotype.channels)


def sets_of(uploads: Mapping[str, OpenUpload], plan: HeaderPlan) -> dict[str, ImportanceSet]:
    """The importance sets in uploads, by device, with the layers in the plan's order."""
    return {name: ImportanceSet.of(up.importance, plan.layers) for name, up in uploads.items()}
