"""Rule ``importance``, the paper's: devices share the importance of their neurons (Eq. 21)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from acme_fleet.config.personalization import Personalization
from acme_fleet.messages.edge_device import ImportanceUpdate, ImportanceUpload, RoundStart
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.messages.peer_weights import PeerWeights
from acme_fleet.personalization.base import Mixture, OpenRule, Own, sets_of
from acme_fleet.personalization.robust import made_robust


def aggregate(
    sets: Mapping[str, ImportanceSet],
    weights: PeerWeights,
    settings: Personalization | None = None,
) -> dict[str, ImportanceSet]:
    """Q'_n = Σ_i ŵ_{n,i} Q_i for every device, each Q_i scaled to sum 1 (Eq. 21).

    Args:
        sets: an importance set for each device, all of one form.
        weights: Ŵ, rows and columns in the order of ``sets``.
        settings: may ask for a robust aggregation; none is as printed.
    """
    normalized = [own.normalized() for own in sets.values()]
    if settings is not None and settings.robust != "none":
        rows = torch.stack([own.flat() for own in normalized])
        rows, weights = made_robust(settings, rows, weights)
        normalized = [own.unflatten(row) for own, row in zip(normalized, rows, strict=True)]
    return dict(zip(sets, ImportanceSet.mixtures(normalized, weights), strict=True))


class ImportanceRule(OpenRule[ImportanceUpload, ImportanceUpdate, ImportanceSet]):
    """Algorithm 2 as in the paper: importance sets alone are sent and mixed."""

    upload_type = ImportanceUpload
    update_type = ImportanceUpdate

    def upload(self, start: RoundStart, own: Own) -> ImportanceUpload:
        """The device's importance set."""
        return ImportanceUpload(round=start.round, importance=own.importance.by_layer())

    def mix(
        self,
        uploads: Mapping[str, ImportanceUpload],
        plan: HeaderPlan,
        coarse: Mapping[str, Tensor],
        weights: PeerWeights,
    ) -> Mixture[ImportanceSet]:
        """Q'_n for each device (Eq. 21)."""
        return Mixture(aggregate(sets_of(uploads, plan), weights, self.settings))

    def update(self, start: RoundStart, mixed: ImportanceSet) -> ImportanceUpdate:
        """Q'_n."""
        return ImportanceUpdate(round=start.round, importance=mixed.by_layer())
