"""The package lies beside acme-fleet's, in ``../src``: one tree, two wheels."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):
    """Copies the package into a wheel; an editable install finds it by ``dev-mode-dirs``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is built."""
        if version == "standard":
            build_data["force_include"]["../src/acme_fleet_runtime"] = "acme_fleet_runtime"
