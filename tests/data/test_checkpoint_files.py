"""A checkpoint that is not on this machine."""

from __future__ import annotations

import huggingface_hub
import pytest

from acme_fleet.data.checkpoint_files import located
from acme_fleet.errors import FleetError


def test_without_a_network_a_folder_is_advised(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(FleetError, match="give a folder to --checkpoint or ref"):
        located("owner/model")
