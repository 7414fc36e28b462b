"""Privacy loss of a device's noisy messages: (ε, δ) of composed Gaussian mechanisms."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from acme_fleet.config.personalization import Privacy
from acme_fleet.errors import FleetError


def epsilon(multipliers: Sequence[float], delta: float) -> float:
    """ε at ``delta`` of Gaussian mechanisms one after the other, by Google's dp-accounting.

    Together they are one Gaussian mechanism, exactly: 1/z² is the sum of their 1/z².

    Args:
        multipliers: each one's z, standard deviation divided by sensitivity.
        delta: of all together.

    Raises:
        FleetError: if dp-accounting is not installed.
    """
    try:
        accounting: Any = importlib.import_module("dp_accounting")
    except ImportError as error:
        raise FleetError("noise needs `pip install 'acme-fleet[privacy]'`") from error
    together = 1 / math.sqrt(sum(1 / z**2 for z in multipliers))
    return float(accounting.get_epsilon_gaussian(together, delta))


@dataclass(frozen=True)
class PrivacyLoss:
    """ε of a device's feature sample and importance sets at one δ; none: nothing is guaranteed.

    ``sample``: against another device whose data differ in one training sample. ``device``:
    against a device with any other data. ``features`` is of the feature sample alone, by one
    training sample; ``importance`` of the importance sets alone, by all of the data.
    """

    delta: float
    features: float | None
    importance: float | None
    sample: float | None
    device: float | None


def privacy_loss(
    privacy: Privacy, rows: int, rounds: int, *, samples: int = 1, weights: bool = False
) -> PrivacyLoss:
    """The most that ``samples`` of ``rows`` features and ``rounds`` importance sets give away.

    A run sends one sample; a device that an update lets train again sends another one. All rows
    change with the device's data, which is √rows times as far as one row. Where ``weights`` of
    headers are sent, they have no noise: nothing is guaranteed for all together.
    """
    features, importance = privacy.feature_noise, privacy.importance_noise
    once = [features] * samples if features else []
    all_rows = [features / math.sqrt(rows)] * samples if features else []
    sets = [importance] * rounds if importance else []
    both = bool(features and sets) and not weights

    def found(multipliers: Sequence[float]) -> float | None:
        return epsilon(multipliers, privacy.delta) if multipliers else None

    return PrivacyLoss(
        delta=privacy.delta,
        features=found(once),
        importance=found(sets),
        sample=found(once + sets) if both else None,
        device=found(all_rows + sets) if both else None,
    )
