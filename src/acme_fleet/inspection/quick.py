"""Checks of a fleet that need no torch: names of what a run offers, and paths.

A run makes them all again, with everything that they leave out; here a mistake is told before
libraries are loaded, which takes seconds.
"""

from __future__ import annotations

import sys
from functools import reduce
from pathlib import Path

from acme_fleet.config.base import chosen
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.checkpoint_files import config_content, located
from acme_fleet.data.paths import check_paths

NAMES: dict[str, tuple[str, ...]] = {
    "task": ("classification", "generation"),
    "data.source": (
        *("digits", "moved_digits", "huggingface", "arrays", "text", "language", "parquet"),
        "images",
    ),
    "backbone.importance": ("auto", "labels", "features"),
    "personalization.mix": ("importance", "weights", "both"),
    "personalization.similarity": ("debiased", "literal", "none"),
}
"""Names of the entries that come with the package, by the setting that takes one."""


def check_names(fleet: Fleet) -> None:
    """Refuse a name that is not there, unless others may have been added to the registries.

    Raises:
        FleetError: naming the setting and the names that there are.
    """
    if "torch" in sys.modules:  # so that registries may be, too; a run looks into these
        return
    for setting, names in NAMES.items():
        name = reduce(getattr, setting.split("."), fleet)
        chosen(dict.fromkeys(names), str(name), setting)


def check_places(fleet: Fleet) -> None:
    """Refuse paths of data or of a checkpoint where nothing fitting lies; no file of data is read.

    Raises:
        FleetError: naming the setting and the path.
    """
    data, checkpoint = fleet.data, fleet.reference.checkpoint
    for name in ("train", "test"):
        value = getattr(data, name)
        listed = value if isinstance(value, list) else [value]
        paths = [path for path in listed if isinstance(path, Path)]
        if paths and data.source in NAMES["data.source"] and data.source != "huggingface":
            check_paths(paths, f"data.{name}", folders=data.source == "images")
    if isinstance(data.public, Path):
        check_paths([data.public], "data.public")
    for kind, holders in (("cluster", fleet.clusters), ("device", fleet.devices)):
        for holder in holders:
            if holder.data is not None:
                check_paths([holder.data], f"{kind} {holder.name}: data")
    if isinstance(checkpoint, Path):
        config_content(checkpoint, located(checkpoint))
