"""The part of a run that an update takes over: devices that keep their models, and their files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from acme_fleet.cloud.choices import ClusterChoice
from acme_fleet.cloud.stored import Kept
from acme_fleet.cost.variant import Variant
from acme_fleet.device.state import changed_files
from acme_fleet.edge.memory import SAMPLES, UPLOADS, Rounds
from acme_fleet.edge.parts import Group, folder_of
from acme_fleet.edge.peers import Peers
from acme_fleet.edge.stored import StoredContender, StoredPart, read_coarse
from acme_fleet.errors import DamagedError, FleetError
from acme_fleet.messages.peer_weights import to_lists
from acme_fleet.models.storage import sent_size, without_prefix
from acme_fleet.outside import listed
from acme_fleet.personalization.rules import rule_of
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.sealed import read_sealed_json, write_sealed_json
from acme_fleet.updates.changes import Changes

COARSE, CONTENDERS, PARTS = "coarse.safetensors", "contenders.json", "parts.json"
ARTIFACTS = "artifacts"


def parts_of(run: RunDirectory, edge: str) -> list[StoredPart]:
    """The parts of a cluster that backbones are chosen for, and their devices."""
    return read_sealed_json(run.edge(edge) / PARTS, list[StoredPart])


def kept_candidates(changes: Changes, run: RunDirectory) -> list[Kept]:
    """The candidates that parts keep: those of their devices that are not computed.

    A part of devices with other limits than before keeps theirs too, as long as it fits.
    """
    kept = []
    for cluster in changes.fleet.clusters:
        for number, part in enumerate(parts_of(run, cluster.name)):
            own = [name for name in part.members if name not in changes.forced]
            same = [name for name in own if not changes.has_other_limits(name)]
            if first := (same or own)[:1]:
                kept.append(Kept(cluster.name, number, changes.had[first[0]].variant))
    return kept


@dataclass
class Takeover:
    """One group of the new run, and its part of the earlier one.

    Attributes:
        changes: of the whole fleet.
        old, run: the directories before and after.
        group: the devices, and their folder in the new run.
        variant: their backbone.
        settled: devices that keep their models.
        computed: the others, and why.
        searched: why the header is searched anew; none if it is kept.
    """

    changes: Changes
    old: RunDirectory
    run: RunDirectory
    group: Group
    variant: Variant
    settled: list[str] = field(default_factory=list)
    computed: dict[str, str] = field(default_factory=dict)
    searched: str | None = None

    @staticmethod
    def plan(
        changes: Changes, old: RunDirectory, run: RunDirectory, choice: ClusterChoice, got: Variant
    ) -> Takeover:
        """Decide for each device of a group.

        Raises:
            FleetError: if devices would train again that did not change and were not asked to.
        """
        parts = [(each.part, each.members) for each in parts_of(run, choice.edge)]
        folder = run.edge(choice.edge)
        everyone = [name for _, names in parts for name in names]
        group = Group.choose(choice.edge, parts, choice.parts, everyone, folder)
        found = Takeover(changes, old, run, group, got)
        if moved := [name for name in group.members if found._would_move(name)]:
            raise found._unasked(moved, f"get the backbone {got} in place of theirs")
        for name in group.members:
            why = changes.forced.get(name) or found._outgrown(name)
            if why is None:
                found.settled.append(name)
            else:
                found.computed[name] = why
        found._decide_header()
        return found

    def _would_move(self, name: str) -> bool:
        """True if an unchanged device would lose its backbone for another one."""
        changes = self.changes
        return name not in changes.forced and not (
            changes.had[name].variant == self.variant or changes.has_other_limits(name)
        )

    def _outgrown(self, name: str) -> str | None:
        """Say why a device that need not be computed cannot keep its model, or none."""
        had = self.changes.had[name]
        if had.variant != self.variant:
            return "its limits lead to another backbone"
        if had.size_bytes > self.changes.device(name).storage:
            return "its model does not fit its storage any more"
        return None

    def _decide_header(self) -> None:
        """Keep the header search of the group that had this backbone, if all can store it."""
        edge = self.group.name.partition(":")[0]
        if self._before is None:
            known = any(had.edge == edge for had in self.changes.had.values())
            self.searched = "its backbone is new to it" if known else "it is new"
            return
        tight = [n for n in self.computed if self.changes.device(n).storage < self._header_bytes]
        if tight and self.settled:
            told = f"search a header anew: theirs takes {self._header_bytes:,} bytes with its "
            raise self._unasked(self.settled, f"{told}backbone, too many for {listed(tight)}")
        if tight:
            self.searched = f"its header was too large for {listed(tight)}"

    def _unasked(self, names: Sequence[str], what: str) -> FleetError:
        options = " ".join(f"--refresh {name}" for name in names)
        return FleetError(
            f"cluster {self.group.name.partition(':')[0]}: {listed(names)} did not change and "
            f"would {what}; ask for it with {options}, or with --refresh all, or put devices of "
            f"other limits into a cluster of their own"
        )

    @cached_property
    def _before(self) -> Path | None:
        """The earlier run's folder of the group with this backbone, or none."""
        edge = self.group.name.partition(":")[0]
        names = {
            had.group
            for had in self.changes.had.values()
            if (had.edge, had.variant) == (edge, self.variant)
        }
        return folder_of(names.pop(), self.old.edge(edge)) if names else None

    @cached_property
    def _header_bytes(self) -> int:
        """Bytes of the backbone and the header that a device of the group receives."""
        assert self._before is not None
        tensors, _ = read_coarse(self._before / COARSE)
        return sent_size(*(without_prefix(part, tensors) for part in ("backbone", "header")))

    def check_peers(self) -> None:
        """Refuse what the devices that are computed would need of their peers and cannot have.

        Raises:
            FleetError: naming the setting, or the devices without a sample.
        """
        if not (self.settled and self.computed):
            return
        assert self._before is not None
        which = f"{listed(list(self.computed))} would learn from {listed(self.settled)}"
        if rule_of(self.changes.fleet.personalization).hidden:
            raise FleetError(
                f"{which}, whose uploads nobody can read (personalization.privacy.masking): all "
                f"must take part again: --refresh all"
            )
        samples = [self._before / SAMPLES / f"{name}.safetensors" for name in self.settled]
        if absent := [path.stem for path in samples if not path.exists()]:
            raise FleetError(
                f"{which}, and {self.old.path} holds no feature sample of {listed(absent)}: an "
                f"older version began it; all must take part again: --refresh all"
            )

    # --- files ---

    def copy(self) -> None:
        """Write into the new run what the group takes over.

        Raises:
            DamagedError: if a file of the earlier run is not as it was written.
        """
        if self._before is None or self.searched is not None:
            return
        self.group.folder.mkdir(parents=True, exist_ok=True)
        _copy(self._before / COARSE, self.group.folder / COARSE)
        self._copy_contenders()
        for name in self.settled:
            self._copy_device(name)
        if self.settled:
            self._write_progress()

    def _copy_contenders(self) -> None:
        """Rivals that the new limit leaves no room for are left out; two are the group's own."""
        assert self._before is not None
        found = read_sealed_json(self._before / CONTENDERS, list[StoredContender])
        fit = found[:2] + [rival for rival in found[2:] if rival.params <= self.group.limit]
        documents = [each.model_dump(mode="json") for each in fit]
        write_sealed_json(self.group.folder / CONTENDERS, documents)

    def _copy_device(self, name: str) -> None:
        assert self._before is not None
        source = self.old.device(name)
        if changed := changed_files(source):
            raise DamagedError(
                f"{source / changed[0]} is not as the run left it; put back a copy, or let the "
                f"device train again: --refresh {name}"
            )
        _copy(source, self.run.device(name))
        for kind in (UPLOADS, SAMPLES):
            path = Path(kind) / f"{name}.safetensors"
            if (self._before / path).exists():
                _copy(self._before / path, self.group.folder / path)
        if (artifact := self.old.path / ARTIFACTS / name).exists():
            _copy(artifact, self.run.path / ARTIFACTS / name)

    def _write_progress(self) -> None:
        """Rounds are over for those who are settled, and begin for the others, if there are any."""
        assert self._before is not None
        told, peers = Rounds.read(self._before), Peers.read(self._before)
        missed = {n: count for n, count in told.missed.items() if n in self.settled}
        shortened = {n: scale for n, scale in told.shortened.items() if n in self.settled}
        if self.computed:
            Rounds(0, missed, shortened, self.settled).write(self.group.folder)
            return
        Rounds(told.done, missed, shortened).write(self.group.folder)
        if peers is not None:
            names = [name for name in peers.devices if name in self.settled]
            keys = {name: key for name, key in peers.keys.items() if name in names}
            rows, columns = to_lists(peers.among(names))
            Peers(names, rows, keys, columns).write(self.group.folder)


def copy_cloud(old: RunDirectory, run: RunDirectory) -> None:
    """Copy the cloud server's stages; nothing of them is computed again."""
    for source in sorted(old.cloud.iterdir()):
        if source.is_file() and source != old.identity:
            _copy(source, run.cloud / source.name)


def copy_rival(old: RunDirectory, run: RunDirectory) -> None:
    """Copy the practitioner's rival, which was measured on all devices' data."""
    if (source := old.path / "rivals").exists():
        _copy(source, run.path / "rivals")


def _copy(source: Path, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
