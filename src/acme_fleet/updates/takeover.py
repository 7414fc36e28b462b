"""The part of a run that an update takes over: models and headers that stay, and for whom."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from acme_fleet.cloud.choices import ClusterChoice
from acme_fleet.cloud.stored import Kept
from acme_fleet.config.devices import Part, group_name
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.size import stored_model, stored_size
from acme_fleet.cost.variant import Variant
from acme_fleet.errors import FleetError
from acme_fleet.messages.cloud_edge import TakenGroup
from acme_fleet.messages.header_plan import Genotype
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.outside import listed
from acme_fleet.personalization.rules import rule_of
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import ClusterSummary
from acme_fleet.updates.changes import Changes

Parts = Mapping[str, Sequence[Part]]
"""By cluster, what its edge server has told of its devices."""


def members_of(fleet: Fleet, edge: str, part: Part) -> list[str]:
    """The devices of a part: all of the cluster, or all of that kind."""
    cluster = next(cluster for cluster in fleet.clusters if cluster.name == edge)
    if fleet.selection.matching == "cluster":
        return [device.name for device in cluster.devices]
    kind = part.storage_bytes, part.energies, {*part.precisions}
    return [
        device.name
        for device in cluster.devices
        if (device.storage, [device.energy], {*device.precisions}) == kind
    ]


def kept_candidates(changes: Changes, parts: Parts) -> list[Kept]:
    """The candidates that parts keep: those of their devices that are not computed.

    A part of devices with other limits than before keeps theirs too, as long as it fits.
    """
    kept = []
    for edge, own_parts in parts.items():
        for number, part in enumerate(own_parts):
            members = members_of(changes.fleet, edge, part)
            own = [name for name in members if name not in changes.forced]
            same = [name for name in own if not changes.has_other_limits(name)]
            if first := (same or own)[:1]:
                kept.append(Kept(edge, number, changes.had[first[0]].variant))
    return kept


@dataclass
class Takeover:
    """One group of the new run, and its part of the earlier one.

    Attributes:
        changes: of the whole fleet.
        elastic: the backbones that groups get are parts of it.
        name: the group's.
        parts: those of its cluster that it is made of, by number.
        members: its devices.
        variant: their backbone.
        settled: devices that keep their models.
        computed: the others, and why.
        searched: why the header is searched anew; none if it is kept.
    """

    changes: Changes
    elastic: ElasticClassifier
    name: str
    parts: list[int]
    members: list[str]
    variant: Variant
    settled: list[str] = field(default_factory=list)
    computed: dict[str, str] = field(default_factory=dict)
    searched: str | None = None

    @staticmethod
    def plan(
        changes: Changes,
        elastic: ElasticClassifier,
        parts: Parts,
        choice: ClusterChoice,
        got: Variant,
    ) -> Takeover:
        """Decide for each device of a group.

        Args:
            changes: of the whole fleet.
            elastic: the backbones that groups get are parts of it.
            parts: of all clusters.
            choice: of a backbone for some of them.
            got: that backbone.

        Raises:
            FleetError: if devices would train again that did not change and were not asked to.
        """
        own = [parts[choice.edge][number] for number in choice.parts]
        names = [name for part in own for name in members_of(changes.fleet, choice.edge, part)]
        found = Takeover(
            changes,
            elastic,
            group_name(choice.edge, len(parts[choice.edge]), choice.parts),
            choice.parts,
            names,
            got,
        )
        if moved := [name for name in names if found._would_move(name)]:
            raise found._unasked(moved, f"get the backbone {got} in place of theirs")
        for name in names:
            why = changes.forced.get(name) or found._outgrown(name)
            if why is None:
                found.settled.append(name)
            else:
                found.computed[name] = why
        found._decide_header()
        return found

    @property
    def edge(self) -> str:
        """The edge server of the group."""
        return self.name.partition(":")[0]

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
        if self._before is None:
            known = any(had.edge == self.edge for had in self.changes.had.values())
            self.searched = "its backbone is new to it" if known else "it is new"
            return
        size = self._sent_bytes(self._before)
        tight = [name for name in self.computed if self.changes.device(name).storage < size]
        if tight and self.settled:
            told = f"search a header anew: theirs takes {size:,} bytes with its backbone"
            raise self._unasked(self.settled, f"{told}, too many for {listed(tight)}")
        if tight:
            self.searched = f"its header was too large for {listed(tight)}"

    def _unasked(self, names: Sequence[str], what: str) -> FleetError:
        options = " ".join(f"--refresh {name}" for name in names)
        return FleetError(
            f"cluster {self.edge}: {listed(names)} did not change and would {what}; ask for it "
            f"with {options}, or with --refresh all, or put devices of other limits into a cluster "
            f"of their own"
        )

    @cached_property
    def _before(self) -> ClusterSummary | None:
        """The group of the earlier run that had this backbone, or none."""
        had = self.changes.had.values()
        same = (one.group for one in had if (one.edge, one.variant) == (self.edge, self.variant))
        return next(same, None)

    def _sent_bytes(self, group: ClusterSummary) -> int:
        """Bytes of the backbone and the header that a device of a group receives."""
        arch = self.elastic.shape(group.variant)
        genotype = Genotype.model_validate(group.genotype)
        header = self.elastic.classifier.header_plan(genotype, arch.hidden)
        backbone = self.elastic.tensor_shapes(arch)
        precision = group.variant.precision
        return stored_size(stored_model(backbone, header.shapes(), precision))

    def taken(self) -> TakenGroup | None:
        """The edge server's part of it; none where the group begins with nothing.

        Raises:
            FleetError: if devices that are computed would need what nobody can read.
        """
        if self._before is None or self.searched is not None:
            return None
        if self.settled and self.computed and rule_of(self.changes.fleet.personalization).hidden:
            raise FleetError(
                f"{listed(list(self.computed))} would learn from {listed(self.settled)}, whose "
                f"uploads nobody can read (personalization.privacy.masking): all must take part "
                f"again: --refresh all"
            )
        return TakenGroup(parts=self.parts, before=self._before.name, settled=self.settled)


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
