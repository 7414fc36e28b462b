"""Rule ``classifier: holders``: rows of the classifier are mixed among devices with that class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.edge_device import ByClassUpload
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.personalization.base import Own
from acme_fleet.personalization.weights import HeadersRule


class ByClassRule(HeadersRule[ByClassUpload]):
    """A device's own classes' rows of the classifier come from those who train on them."""

    upload_type = ByClassUpload

    def disclosed(self) -> str:
        """The classes too."""
        return f"{super().disclosed()}, and the classes in its train set"

    def also(self, own: Own) -> dict[str, Any]:
        """The classes in the train set."""
        return {"held": own.classes()}

    def check(
        self, name: str, upload: ByClassUpload, plan: HeaderPlan, asked: Collection[str]
    ) -> None:
        """Refuse an importance set, a header or classes of another form."""
        super().check(name, upload, plan, asked)
        if max(upload.held) >= plan.classes:
            raise ProtocolError(
                f"the classes that {name} holds: {upload.held[:5]}, expected numbers below "
                f"{plan.classes}"
            )

    def holders(self, uploads: Mapping[str, ByClassUpload]) -> dict[str, Sequence[int]]:
        """Classes by device."""
        return {name: upload.held for name, upload in uploads.items()}
