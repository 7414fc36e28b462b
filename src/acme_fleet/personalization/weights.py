"""Rules ``weights`` and ``both``: similar devices mix their headers' weights (a deviation)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from acme_fleet.config.personalization import Personalization
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import check_shapes
from acme_fleet.messages.edge_device import (
    HeaderUpload,
    RoundStart,
    WeightsUpdate,
    WeightsUpload,
)
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.messages.peer_weights import PeerWeights, weighted_sums
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.models.header.unpruned import expand, places, presence
from acme_fleet.models.storage import clone_state
from acme_fleet.outside import reason
from acme_fleet.personalization.base import NOT_PROTECTED, Mixture, OpenRule, Own, sets_of
from acme_fleet.personalization.importance import aggregate
from acme_fleet.personalization.robust import made_robust

_LONGEST = 2.0


@dataclass(frozen=True)
class MixedHeaders:
    """Mixed headers of each device, and the scale of its own part.

    Attributes:
        headers: tensors by device, in the shapes of its own plan.
        scales: by what each device's update was scaled, see :func:`update_scales`.
    """

    headers: dict[str, dict[str, Tensor]]
    scales: dict[str, float]


def update_scales(
    headers: Mapping[str, Mapping[str, Tensor]], start: Mapping[str, Tensor], most: float = _LONGEST
) -> dict[str, float]:
    """By what each device's update, header less start, is scaled: below 1 if it is too long.

    Args:
        headers: each device's tensors in the unpruned shapes; absent entries equal ``start``.
        start: what all devices received, in the same shapes.
        most: an update is scaled to at most this many (lower) median lengths.
    """
    lengths = {
        name: float(sum((own[k].double() - start[k]).square().sum() for k in start)) ** 0.5
        for name, own in headers.items()
    }
    # The lower median: of two devices the shorter update sets the limit.
    limit = most * sorted(lengths.values())[(len(lengths) - 1) // 2]
    return {name: 1.0 if length <= limit else limit / length for name, length in lengths.items()}


def contain(
    headers: Mapping[str, Mapping[str, Tensor]],
    start: Mapping[str, Tensor],
    scales: Mapping[str, float],
) -> dict[str, dict[str, Tensor]]:
    """Shorten updates that are much longer than the others', so that no device outvotes the rest.

    Args:
        headers, start: as for :func:`update_scales`.
        scales: what that gave.
    """
    return {
        name: {k: start[k] + (own[k] - start[k]) * scales[name] for k in start}
        for name, own in headers.items()
    }


def completed(
    headers: Mapping[str, Mapping[str, Tensor]],
    plans: Mapping[str, HeaderPlan],
    start: Mapping[str, Tensor],
) -> dict[str, dict[str, Tensor]]:
    """Headers in the unpruned shapes; what pruning took is as in ``start``."""
    whole = {}
    for name, header in headers.items():
        own, there = expand(plans[name], header), presence(plans[name])
        whole[name] = {k: torch.where(there[k], own[k], start[k]) for k in start}
    return whole


def mix_headers(
    headers: Mapping[str, Mapping[str, Tensor]],
    plans: Mapping[str, HeaderPlan],
    weights: PeerWeights,
    start: Mapping[str, Tensor],
    most: float,
    held: Mapping[str, Sequence[int]] | None = None,
    settings: Personalization | None = None,
) -> MixedHeaders:
    """v'_n = Σ_i ŵ_{n,i} v_i, entry by entry over the peers that still have the entry.

    A named deviation: the paper mixes importance alone (METHOD 8). Where pruning left different
    neurons, the weights of those who have one are renormalised. So they are with ``held`` for the
    classifier's rows of a device's own classes, over those who train on the class: to the others
    it is only ever the wrong answer.

    Args:
        headers: tensors by device, in the shapes of its own plan.
        plans: by device, of one genotype.
        weights: Ŵ, rows and columns in the order of ``headers``.
        start: the coarse header that all received.
        most: see :func:`update_scales`.
        held: the classes that each device trains on; none is to mix every row over all.
        settings: may ask for a robust aggregation of the updates, header less start.
    """
    names = list(headers)
    present = {name: presence(plans[name]) for name in names}
    whole = completed(headers, plans, start)
    scales = update_scales(whole, start, most)
    whole = contain(whole, start, scales)
    if settings is not None and settings.robust != "none":
        sizes = [tensor.numel() for tensor in start.values()]
        begun = torch.cat([tensor.flatten() for tensor in start.values()])
        sent = [torch.cat([whole[name][k].flatten() for k in start]) - begun for name in names]
        rows, weights = made_robust(settings, torch.stack(sent), weights)
        for name, row in zip(names, rows + begun, strict=True):
            pieces = zip(start.items(), row.split(sizes), strict=True)
            whole[name] = {key: piece.view(known.shape) for (key, known), piece in pieces}
    rows = _rows(names, held, len(start["classifier.pooled.bias"])) if held else None
    mixed: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key in start:
        values = torch.stack([whole[name][key] for name in names]).flatten(1).double()
        there = torch.stack([present[name][key] for name in names]).flatten(1).double()
        combined = _mean(weights, values, there)
        if rows is not None and key.startswith("classifier."):
            own = rows.repeat_interleave(values.shape[1] // rows.shape[1], dim=1)
            combined = torch.where(own > 0, _mean(weights, values, there * own), combined)
        for row, name in zip(combined, names, strict=True):
            mixed[name][key] = row.view(start[key].shape).to(start[key].dtype)
    own = {name: _own(plans[name], tensors) for name, tensors in mixed.items()}
    return MixedHeaders(own, scales)


def _mean(
    weights: PeerWeights,
    values: Float[Tensor, "devices entries"],
    there: Float[Tensor, "devices entries"],
) -> Float[Tensor, "devices entries"]:
    """Each device's weighted mean over those who have an entry; its own where nobody has."""
    share = weighted_sums(weights, there)
    return torch.where(share > 0, weighted_sums(weights, values * there) / share, values)


def _rows(
    names: Sequence[str], held: Mapping[str, Sequence[int]], classes: int
) -> Float[Tensor, "devices classes"]:
    """1 for the classes that a device trains on."""
    rows = torch.zeros(len(names), classes, dtype=torch.float64)
    for row, name in zip(rows, names, strict=True):
        row[list(held[name])] = 1.0
    return rows


def _own(plan: HeaderPlan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Out of tensors in the unpruned shapes those entries that a plan still has."""
    return {name: tensors[name][place or ...].clone() for name, place in places(plan)}


def left(plan: HeaderPlan, kept: Mapping[str, Sequence[int]]) -> HeaderPlan:
    """The plan of which pruning has left the channels ``kept``.

    Raises:
        ValueError: if they do not exist.
    """
    return HeaderPlan.model_validate({**plan.model_dump(), "kept": kept})


@dataclass(frozen=True)
class MixedPart:
    """A device's mixed importance set and mixed header."""

    importance: ImportanceSet
    header: Mapping[str, Tensor]


HeaderUploadT = TypeVar("HeaderUploadT", bound=HeaderUpload)


class HeadersRule(OpenRule[HeaderUploadT, WeightsUpdate, MixedPart]):
    """Headers' weights are mixed by Ŵ; with ``mix: both`` the importance sets too.

    Attributes:
        longest: in median lengths, the longest update that is mixed as it is.
    """

    update_type = WeightsUpdate
    longest: float = _LONGEST

    def disclosed(self) -> str:
        """The header too."""
        return f"{super().disclosed()}, and the header's weights"

    def protections(self) -> list[str]:
        """Weights have none."""
        return [*super().protections(), f"weights {NOT_PROTECTED}"]

    def most_numbers(self, neurons: int, weights: int, devices: int) -> int:
        """One for each neuron and each weight."""
        return neurons + weights

    def upload(self, start: RoundStart, own: Own) -> HeaderUploadT:
        """The importance set, the header as it is now, and the channels that it has."""
        return self.upload_type(
            round=start.round,
            importance=own.importance.by_layer(),
            header=clone_state(own.header),
            kept={name: list(channels) for name, channels in own.header.plan.kept.items()},
            **self.also(own),
        )

    def also(self, own: Own) -> Mapping[str, Any]:
        """Further fields of an upload."""
        return {}

    def received_header(self, update: WeightsUpdate, plan: HeaderPlan) -> Header:
        """The mixed header, of the device's own plan."""
        check_shapes(update.header, plan.shapes(), "the mixed header")
        return build_header(plan, update.header)

    def check(
        self, name: str, upload: HeaderUploadT, plan: HeaderPlan, asked: Collection[str]
    ) -> None:
        """Refuse an importance set or a header of another form."""
        super().check(name, upload, plan, asked)
        shapes = header_shapes(name, upload.kept, plan)
        check_shapes(upload.header, shapes, f"the header of {name}", torch.float32)

    def mix(
        self,
        uploads: Mapping[str, HeaderUploadT],
        plan: HeaderPlan,
        coarse: Mapping[str, Tensor],
        weights: PeerWeights,
    ) -> Mixture[MixedPart]:
        """Mixed headers; a set that is not mixed comes back as the device's own."""
        sets = sets_of(uploads, plan)
        if self.settings.mix == "weights":
            sets = {name: own.normalized() for name, own in sets.items()}
        else:
            sets = aggregate(sets, weights, self.settings)
        mixed = mix_headers(
            {name: upload.header for name, upload in uploads.items()},
            {name: left(plan, upload.kept) for name, upload in uploads.items()},
            weights,
            coarse,
            self.longest,
            self.holders(uploads),
            self.settings,
        )
        shortened = {name: scale for name, scale in mixed.scales.items() if scale < 1}
        parts = {name: MixedPart(own, mixed.headers[name]) for name, own in sets.items()}
        return Mixture(parts, shortened)

    def update(self, start: RoundStart, mixed: MixedPart) -> WeightsUpdate:
        """The set and the header."""
        return WeightsUpdate(
            round=start.round, importance=mixed.importance.by_layer(), header=dict(mixed.header)
        )

    def holders(self, uploads: Mapping[str, HeaderUploadT]) -> dict[str, Sequence[int]] | None:
        """Classes by device, where the classifier's rows are mixed among those who hold them."""
        return None


class WeightsRule(HeadersRule[WeightsUpload]):
    """Everybody's weights are mixed."""

    upload_type = WeightsUpload


def header_shapes(
    name: str, kept: Mapping[str, Sequence[int]], plan: HeaderPlan
) -> dict[str, tuple[int, ...]]:
    """Shapes of a device's header of which pruning has left the channels ``kept``.

    Raises:
        ProtocolError: if the device kept what does not exist.
    """
    try:
        return left(plan, kept).shapes()
    except ValueError as error:
        raise ProtocolError(f"the channels that {name} kept: {reason(error)}") from error
