"""A group that begins with what an edge server finished for one in an earlier run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from acme_fleet.edge.memory import SAMPLES, UPLOADS, Rounds
from acme_fleet.edge.parts import Group
from acme_fleet.edge.peers import Peers
from acme_fleet.edge.stored import COARSE, CONTENDERS, StoredContender
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.peer_weights import to_lists
from acme_fleet.outside import listed
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.sealed import read_sealed_json, write_sealed_json


def take_over(before: Path, group: Group, settled: Sequence[str]) -> None:
    """Copy the header search, and what the settled devices have sent; rounds are for the others.

    Nothing is done where it is done already, however far the group is since.

    Args:
        before: the folder of the group in the earlier run; nothing in it is changed.
        group: as it is now.
        settled: those of its devices that keep their models.

    Raises:
        ProtocolError: if the earlier run has left too little.
        DamagedError: if a file of it is damaged.
    """
    if not (before / COARSE).exists():
        raise ProtocolError(
            f"{before} holds no header of that run; put back a copy of the folder, or give the "
            f"cluster another name, so that all of it is computed"
        )
    computed = [name for name in group.members if name not in settled]
    samples = [before / SAMPLES / f"{name}.safetensors" for name in settled if computed]
    if absent := [path.stem for path in samples if not path.exists()]:
        raise ProtocolError(
            f"{listed(computed)} would learn from {listed(settled)}, and {before} holds no feature "
            f"sample of {listed(absent)}: an older version began it; all must take part again: "
            f"--refresh all"
        )
    if Rounds.begun(group.folder):
        return
    group.folder.mkdir(parents=True, exist_ok=True)
    _copy(before / COARSE, group.folder / COARSE)
    _copy_contenders(before, group)
    for name in settled:
        for kind in (UPLOADS, SAMPLES):
            path = Path(kind) / f"{name}.safetensors"
            if (before / path).exists():
                _copy(before / path, group.folder / path)
    if settled:
        _write_progress(before, group, settled, computed)


def _copy_contenders(before: Path, group: Group) -> None:
    """Rivals that the new limit leaves no room for are left out; two are the group's own."""
    found = read_sealed_json(before / CONTENDERS, list[StoredContender])
    fit = found[:2] + [rival for rival in found[2:] if rival.params <= group.limit]
    write_sealed_json(group.folder / CONTENDERS, [each.model_dump(mode="json") for each in fit])


def _write_progress(
    before: Path, group: Group, settled: Sequence[str], computed: Sequence[str]
) -> None:
    """Rounds are over for those who are settled, and begin for the others, if there are any."""
    told, peers = Rounds.read(before), Peers.read(before)
    missed = {name: count for name, count in told.missed.items() if name in settled}
    shortened = {name: scale for name, scale in told.shortened.items() if name in settled}
    if computed:
        Rounds(0, missed, shortened, list(settled)).write(group.folder)
        return
    if peers is not None:
        names = [name for name in peers.devices if name in settled]
        keys = {name: key for name, key in peers.keys.items() if name in names}
        rows, columns = to_lists(peers.among(names))
        Peers(names, rows, keys, columns).write(group.folder)
    Rounds(told.done, missed, shortened).write(group.folder)


def _copy(source: Path, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
