"""Rule ``classifier: holders``: rows of the classifier are mixed among devices with that class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.personalization.base import Own, Upload
from acme_fleet.personalization.weights import WeightsRule


class ByClassRule(WeightsRule):
    """A device's own classes' rows of the classifier come from those who train on them."""

    def disclosed(self) -> str:
        """The classes too."""
        return f"{super().disclosed()}, and the classes in its train set"

    def held(self, own: Own) -> list[int]:
        """Numbers of the classes in the train set."""
        return own.classes()

    def check_held(self, name: str, held: Sequence[int], plan: HeaderPlan) -> None:
        """Refuse classes that do not exist, and none at all.

        Raises:
            ProtocolError: naming them.
        """
        if not held or list(held) != sorted(set(held)) or max(held) >= plan.classes:
            raise ProtocolError(
                f"the classes that {name} holds: {list(held)[:5]}, expected ascending numbers "
                f"below {plan.classes}"
            )

    def holders(self, uploads: Mapping[str, Upload]) -> dict[str, Sequence[int]]:
        """Classes by device."""
        return {name: upload.held for name, upload in uploads.items()}
