"""The options of `acme init`, and what can be told of them before any library is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acme_fleet.data.checkpoint_files import config_content, located
from acme_fleet.data.paths import check_paths
from acme_fleet.errors import FleetError
from acme_fleet.starting.devices import wanted_devices

Template = Literal["vision", "text", "assistant"]


@dataclass(frozen=True)
class Have:
    """Data, checkpoint and devices by the options of `acme init`; one kind of data at most."""

    images: Path | None = None
    text: Path | None = None
    dataset: str | None = None
    checkpoint: str | Path | None = None
    devices: str | None = None
    template: Template | None = None

    def check(self) -> None:
        """Refuse options that do not go together, and paths and names of what is not there.

        Raises:
            FleetError: naming the option that is wrong, and what would be right.
        """
        given = {"--images": self.images, "--text": self.text, "--dataset": self.dataset}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise FleetError(f"give one of {' and '.join(named)}, not both")
        if not named and self.template is None:
            raise FleetError(
                "say what you have: --images FOLDER, --text FILE.jsonl or --dataset NAME; or begin "
                "with --template vision, text or assistant"
            )
        if self.text is not None and self.template == "vision":
            raise FleetError("--template: vision is for --images or --dataset, not for --text")
        if self.images is not None:
            check_paths([self.images], "--images")
        if self.text is not None:
            check_paths([self.text], "--text", folders=False)
        if self.devices is not None:
            wanted_devices(self.devices)
        if self.checkpoint is not None and (
            Path(self.checkpoint).exists() or str(self.checkpoint).startswith((".", "/"))
        ):
            config_content(self.checkpoint, located(self.checkpoint))
