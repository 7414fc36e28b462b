"""The replies that the cloud server accepts of its edge servers; everything else loses the edge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from acme_fleet.config.devices import Cluster, Device, Part, group_name
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.header import StrategyName
from acme_fleet.cost.size import parameter_count
from acme_fleet.errors import ProtocolError
from acme_fleet.links.device_reports import check_report
from acme_fleet.messages.cloud_edge import ClusterProfile, ClusterReport
from acme_fleet.messages.header_plan import (
    BY_HAND,
    Genotype,
    HeaderPlan,
    genotypes_by_hand,
)
from acme_fleet.messages.peer_weights import MOST_DENSE
from acme_fleet.messages.results import HeaderContender
from acme_fleet.models.features import Classifier
from acme_fleet.models.header.by_hand import HAND_MADE
from acme_fleet.outside import reading
from acme_fleet.tasks.base import Task
from acme_fleet.tasks.registry import task_of

_STRATEGIES: tuple[str, ...] = get_args(StrategyName)
_LARGEST_LOSS = 1e9
_ROUNDED = 1e-6


def check_profile(settings: Fleet, edge: str, profile: ClusterProfile) -> None:
    """Refuse parts that cannot be made of the cluster's devices.

    Raises:
        ProtocolError: naming the part and what the fleet file says.
    """
    cluster, what = _cluster(settings, edge), f"the profile of {edge}"
    if profile.name != edge:
        raise ProtocolError(f"{what} bears the name {profile.name}")
    per_device, parts = settings.selection.matching == "device", profile.parts
    if not per_device and len(parts) != 1:
        raise ProtocolError(f"{what} has {len(parts)} parts, selection.matching: cluster is one")
    kinds = {(part.storage_bytes, tuple(part.energies), part.precisions) for part in parts}
    if len(kinds) < len(parts):
        raise ProtocolError(f"{what} has the same part twice")
    for number, part in enumerate(parts, 1):
        _check_part(part, cluster, per_device, f"{what}, part {number}")


def _check_part(part: Part, cluster: Cluster, per_device: bool, what: str) -> None:
    """All of one kind, or of any kinds with the smallest storage among them."""
    fits = _of_part(part, cluster.devices)
    if not per_device:
        fits += [
            device
            for device in cluster.devices
            if device.storage > part.storage_bytes and _is_of_kind(device, part)
        ]
    storages = [device.storage for device in fits]
    if part.storage_bytes not in storages:
        stored = ", ".join(sorted({str(device.storage) for device in cluster.devices})[:5])
        raise ProtocolError(
            f"{what} stores {part.storage_bytes} bytes, and no device of {cluster.name} with such "
            f"energy constants does; the fleet file says {stored}"
        )
    known = dict.fromkeys(device.energy for device in fits)
    distinct = list(dict.fromkeys(part.energies))
    if distinct != part.energies or any(energy not in known for energy in distinct):
        raise ProtocolError(f"{what} has energy constants that are not {cluster.name}'s devices'")
    if per_device and len(part.energies) != 1:
        raise ProtocolError(f"{what} has {len(part.energies)} kinds of devices, expected one")
    if not len(part.energies) <= part.devices <= len(fits):
        raise ProtocolError(
            f"{what} has {part.devices} devices, the fleet file {len(fits)} that fit it"
        )


def _of_part(part: Part, devices: Iterable[Device]) -> list[Device]:
    """Devices with the part's storage, some of its constants and all of its precisions."""
    return [d for d in devices if d.storage == part.storage_bytes and _is_of_kind(d, part)]


def _is_of_kind(device: Device, part: Part) -> bool:
    return device.energy in part.energies and {*part.precisions} <= {*device.precisions}


@dataclass(frozen=True)
class Assigned:
    """An edge server's parts that a backbone was sent for.

    Attributes:
        edge: its name.
        parts: of its profile.
        chosen: the numbers of those that the backbone is for.
        limit: the smallest storage among them, in bytes.
        hidden: the backbone's hidden size; none is the reference's.
    """

    edge: str
    parts: Sequence[Part]
    chosen: Sequence[int]
    limit: int
    hidden: int | None = None

    @property
    def name(self) -> str:
        """The name of the group."""
        return group_name(self.edge, len(self.parts), self.chosen)

    def members(self, cluster: Cluster, per_device: bool) -> list[Device]:
        """Devices that may be in the group."""
        if not per_device:
            return cluster.devices
        own = [device for n in self.chosen for device in _of_part(self.parts[n], cluster.devices)]
        return list({device.name: device for device in own}.values())


def check_finished(
    settings: Fleet, reference: Classifier, assigned: Assigned, report: ClusterReport
) -> None:
    """Check every field of an edge server's report against the fleet and what it was sent.

    Raises:
        ProtocolError: naming the field, its value and what would be right.
    """
    what = f"the report of {assigned.edge}"
    if report.name != assigned.name:
        raise ProtocolError(f"{what} bears the name {report.name}, expected {assigned.name}")
    cluster = _cluster(settings, assigned.edge)
    own = assigned.members(cluster, settings.selection.matching == "device")
    plan = _plan(settings, reference, assigned.hidden, report, what)
    limits = {device.name: device for device in own}
    _check_devices(task_of(settings.task), report, cluster, limits, plan, what)
    expected = sum(assigned.parts[number].devices for number in assigned.chosen)
    accounted = {told.name for told in report.reports} | report.lost.keys()
    if len(accounted & {device.name for device in own}) < expected:
        raise ProtocolError(f"{what} tells of {len(accounted)} devices, its profile of {expected}")
    _check_similarity(settings.personalization.similarity, report, what)
    _check_contenders(settings, report.contenders, plan, assigned.limit, what)
    heard, personalization = set(report.device_names), settings.personalization
    _known(report.missed, heard, f"{what}: missed rounds")
    _known(report.shortened, heard, f"{what}: shortened updates")
    if (most := max(report.missed.values(), default=0)) > personalization.rounds:
        raise ProtocolError(f"{what}: {most} rounds missed, of {personalization.rounds}")
    if report.shortened and not personalization.mixes_weights:
        raise ProtocolError(f"{what} shortened headers, and mix: importance mixes none")


def _cluster(settings: Fleet, edge: str) -> Cluster:
    return next(cluster for cluster in settings.clusters if cluster.name == edge)


def _known(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Refuse names that are unknown, or there twice."""
    told = list(names)
    if unknown := [name for name in told if name not in known]:
        raise ProtocolError(f"{what} of {unknown[0]}, which is not among its devices")
    if len(set(told)) < len(told):
        raise ProtocolError(f"{what}: a device is there twice")


def _plan(
    settings: Fleet, reference: Classifier, hidden: int | None, report: ClusterReport, what: str
) -> HeaderPlan:
    """The header that was searched: one of the search space, described as it is."""
    with reading(f"{what}: the header", ProtocolError):
        genotype = Genotype.model_validate(report.genotype)
    space = settings.header
    shape = len(genotype.blocks), genotype.cells, genotype.channels
    if shape != (space.blocks, space.cells, space.channels):
        raise ProtocolError(
            f"{what}: the header has {shape[0]} blocks, {shape[1]} cells and {shape[2]} channels, "
            f"expected {space.blocks}, {space.cells} and {space.channels}"
        )
    if report.genotype != genotype.model_dump(mode="json"):
        raise ProtocolError(f"{what}: the genotype is not written as a genotype is")
    if report.header != genotype.describe():
        raise ProtocolError(f"{what}: the header is described as another one")
    return reference.header_plan(genotype, hidden)


def _check_devices(
    task: Task,
    report: ClusterReport,
    cluster: Cluster,
    own: dict[str, Device],
    plan: HeaderPlan,
    what: str,
) -> None:
    """Devices are the group's, each is there once, and none is both lost and finished."""
    reported = [told.name for told in report.reports]
    _known(report.device_names, own, f"{what}: feature samples")
    _known(reported, own, f"{what}: a device's report")
    first = report.name in (cluster.name, f"{cluster.name}:1")  # tells of all without a group
    everyone = {device.name for device in cluster.devices} if first else own.keys()
    _known(report.lost, everyone, f"{what}: the loss")
    if both := report.lost.keys() & set(reported):
        raise ProtocolError(f"{what}: {min(both)} is lost and has finished")
    for told in report.reports:
        check_report(task, told, own[told.name], plan.neurons)


def _check_similarity(similarity: str, report: ClusterReport, what: str) -> None:
    """Rows that sum to 1, a weight for each device listed or, in a large cluster, for some."""
    count, rows, columns = len(report.device_names), report.similarity, report.columns
    large = count > MOST_DENSE
    if large and similarity == "none" and not rows and not columns:
        return
    sizes = [len(row) for row in rows]
    if sizes != ([len(row) for row in columns] if large and columns else [count] * count):
        told = f"{len(rows)} rows of {sorted(set(sizes))[:3]} weights"
        raise ProtocolError(f"{what}: the similarity has {told}, {count} devices are listed")
    if columns and not large:
        raise ProtocolError(f"{what}: the similarity of {count} devices is not of all pairs")
    for name, row in zip(report.device_names, rows, strict=True):
        if abs(sum(row) - 1) > _ROUNDED:
            raise ProtocolError(f"{what}: the weights of {name} sum to {sum(row):g} and not to 1")
    for name, own in zip(report.device_names, columns, strict=bool(columns)):
        if own != sorted(set(own)) or own[-1] >= count:
            raise ProtocolError(f"{what}: {name} listens to places that do not ascend to {count}")


def _check_contenders(
    settings: Fleet,
    contenders: Sequence[HeaderContender],
    plan: HeaderPlan,
    limit: int,
    what: str,
) -> None:
    """The searched header, the linear one, then rivals; all of plausible sizes."""
    search, names = settings.search, [told.name for told in contenders]
    rivals = {*_STRATEGIES, *HAND_MADE} - {search.strategy} if search.rivals else set[str]()
    probed = search.when == "useful" and not search.backbone_learning_rate
    ours = {search.strategy, *(BY_HAND if probed else ())}
    if names[1:2] != ["linear"] or names[0] not in ours:
        expected = f"{' or '.join(sorted(ours))}, linear"
        raise ProtocolError(f"{what}: headers compared are {names[:2]}, expected {expected}")
    kind = plan.genotype
    made = genotypes_by_hand(len(kind.blocks), kind.cells, kind.channels)
    if names[0] in made and kind != made[names[0]]:
        raise ProtocolError(f"{what}: the header is not the one named {names[0]}")
    _known(names[2:], rivals | ours - {names[0]}, f"{what}: a compared header")
    exact = parameter_count(plan.shapes()), plan.classes * (plan.pooled_size + 1)
    if tuple(told.params for told in contenders[:2]) != exact:
        raise ProtocolError(f"{what}: the headers' parameters are not {exact[0]} and {exact[1]}")
    most = search.steps * search.children_per_step + search.final_samples
    for told in contenders:
        if told.params > limit or told.evaluated > most or told.loss > _LARGEST_LOSS:
            raise ProtocolError(
                f"{what}: the {told.name} header has {told.params} parameters, loss "
                f"{told.loss:g} and {told.evaluated} tries; at most {limit}, {_LARGEST_LOSS:g} "
                f"and {most} are possible"
            )
