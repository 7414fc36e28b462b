"""The rule that a fleet file asks for."""

from __future__ import annotations

from typing import Any

from acme_fleet.config.base import chosen
from acme_fleet.config.personalization import Personalization
from acme_fleet.personalization.base import Rule
from acme_fleet.personalization.by_class import ByClassRule
from acme_fleet.personalization.importance import ImportanceRule
from acme_fleet.personalization.masked import MaskedRule
from acme_fleet.personalization.weights import WeightsRule

AnyRule = Rule[Any, Any, Any, Any]
RULES: dict[str, type[AnyRule]] = {
    "importance": ImportanceRule,
    "weights": WeightsRule,
    "both": WeightsRule,
}
"""By ``personalization.mix``. A new rule is a file and an entry here."""


def rule_of(settings: Personalization) -> AnyRule:
    """The rule of ``settings``, which have been checked to be consistent.

    Raises:
        FleetError: if there is none of this name.
    """
    if settings.privacy.masking:
        return MaskedRule(settings)
    if settings.classifier == "holders":
        return ByClassRule(settings)
    return chosen(RULES, settings.mix, "personalization.mix")(settings)
