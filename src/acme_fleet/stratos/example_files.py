"""An example task file, with the files that it names."""

from __future__ import annotations

from pathlib import Path

from acme_fleet.errors import FleetError
from acme_fleet.runs.atomic import replacing

EXAMPLE = Path(__file__).with_name("example")
_BESIDE = ("machines.yaml", "pairs.yaml", "servers.csv", "sums.py", "test.jsonl", "train.jsonl")


def write_example(path: Path) -> list[Path]:
    """Write the task file and what it names beside it; returns all paths.

    Raises:
        FleetError: if one of the files exists already; none is changed.
        WriteError: if one cannot be written.
    """
    targets = {path: "task.yaml", **{path.parent / name: name for name in _BESIDE}}
    if path.name in _BESIDE:
        raise FleetError(f"{path}: the example has a file of this name beside the task file")
    if there := [str(target) for target in targets if target.exists()]:
        raise FleetError(f"{', '.join(there)}: there already; nothing was written")
    for target, name in targets.items():
        with replacing(target) as file:
            file.write_text((EXAMPLE / name).read_text(encoding="utf-8"), encoding="utf-8")
    return list(targets)
