"""A run's plan before any training: candidates, exact sizes, limits, the bytes to expect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from acme_fleet.cloud.objectives import Grid, candidate_grid, candidate_sizes
from acme_fleet.config.base import chosen
from acme_fleet.config.devices import Precision, common
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.header import Header
from acme_fleet.cost.size import file_size, parameter_count, shapes_of
from acme_fleet.data.learned import learned_before
from acme_fleet.data.partition import World, load_world
from acme_fleet.data.samples import Splits
from acme_fleet.distillation.importance import check_objective
from acme_fleet.distillation.reference import check_reference, untrained_reference
from acme_fleet.edge.similarity import SIMILARITIES
from acme_fleet.errors import FleetError
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.backbone.elastic import kept_units
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier, feature_sizes
from acme_fleet.personalization.rules import rule_of
from acme_fleet.privacy.accounting import PrivacyLoss
from acme_fleet.privacy.masking import public_key
from acme_fleet.runs.traffic import expected_loss, row_bytes
from acme_fleet.selection.choice import executed_sizes
from acme_fleet.tasks.registry import task_of


@dataclass(frozen=True)
class Holding:
    """Sample counts and classes of one device.

    Attributes:
        train, validation, test: numbers of samples.
        classes: names of the classes with a train sample, in the order of the labels; none where
            tokens have labels.
        untested: those of them without a test sample.
        owner: value of the column that says whose the samples are; none without one.
    """

    train: int
    validation: int
    test: int
    classes: tuple[str, ...]
    untested: tuple[str, ...]
    owner: str | None = None

    @classmethod
    def of(cls, splits: Splits, names: Sequence[str], owner: str | None = None) -> Holding:
        """Count a device's samples; ``names`` are the classes' in the order of the labels."""
        trained, tested = (
            # Labels of tokens are no classes.
            {names[label] for label in part.labels.unique().tolist() if part.labels.ndim == 1}
            for part in (splits.train, splits.test)
        )
        classes = tuple(name for name in names if name in trained)
        return cls(
            train=len(splits.train),
            validation=len(splits.validation),
            test=len(splits.test),
            classes=classes,
            untested=tuple(name for name in classes if name not in tested),
            owner=owner,
        )


@dataclass(frozen=True)
class Plan:
    """The candidates and limits of a run.

    Attributes:
        grid: the candidates (w, d).
        sizes: exact bytes of each with the smallest header, shape ``(candidates,)``. For a global
            allocation, which is known only after training, those of the uniform one: its bound.
        public_parts: numbers of the cloud's samples: train, validation, test.
        public_labelled: whether they have labels.
        reference_bytes: of the reference as it would be shipped.
        limits: min C_n for each cluster by name.
        feature_bytes: what each device uploads once (Eq. 19), before the message's frame.
        round_bytes: the most that a device uploads in one round, likewise: its importance set
            (Eq. 18) or masked shares of it and, where headers are mixed, its header.
        loss: (ε, δ) of what a device sends with noise; none where it adds none.
        holdings: samples and classes of each device by name, of those whose data were read.
        header_weights: of the largest header.
        learned_before: settings whose data the reference was pre-trained on, with their paths.
    """

    grid: Grid
    sizes: np.ndarray
    public_parts: tuple[int, int, int]
    public_labelled: bool
    reference_bytes: int
    limits: dict[str, int]
    feature_bytes: int
    round_bytes: int
    loss: PrivacyLoss | None
    holdings: dict[str, Holding]
    header_weights: int
    learned_before: list[str]

    @property
    def public_samples(self) -> int:
        """All samples of the cloud."""
        return sum(self.public_parts)

    def fitting(self, limit: int, executed: Collection[Precision]) -> np.ndarray:
        """Bytes of the candidates that devices can store and execute, ascending."""
        known = np.isin(self.grid.precisions, list(executed))
        return np.sort(self.sizes[known & (self.sizes <= limit)])


@dataclass(frozen=True)
class Examined:
    """A fleet's data, its reference before any training, and its plan.

    Attributes:
        world: everybody's samples.
        reference: of a ViT that the run trains the shape alone.
        plan: see :func:`make_plan`.
    """

    world: World
    reference: Classifier
    plan: Plan


def examine(fleet: Fleet) -> Plan:
    """Load the data and make the plan, see :func:`make_plan`."""
    return examine_whole(fleet).plan


def examine_whole(fleet: Fleet) -> Examined:
    """Load the data and the reference, and make the plan."""
    task_of(fleet.task).check(fleet)
    check_reference(fleet)
    world = load_world(fleet)
    of = fleet, world.public, world.classes, world.vocabulary
    reference = untrained_reference(*of, shape_alone=True)
    return Examined(world, reference, make_plan(fleet, world, reference))


def make_plan(fleet: Fleet, world: World, reference: Classifier) -> Plan:
    """Candidates with exact sizes, limits, and the bytes to expect; trains nothing.

    Args:
        fleet, world: the settings, and everybody's samples.
        reference: θ0 before any training; only its shape is looked at.

    Raises:
        FleetError: if a depth exceeds the reference's layers, or a setting names what is not there.
    """
    chosen(SIMILARITIES, fleet.personalization.similarity, "personalization.similarity")
    check_objective(fleet.backbone.importance)
    public = world.public
    grid = candidate_grid(fleet.backbone, reference)
    header = largest_header(fleet.header, reference)
    # A block of other operations may also have one layer that aligns its inputs.
    aligned = fleet.header.cells * fleet.header.blocks * fleet.header.channels
    personalization = fleet.personalization
    numbers = rule_of(personalization).most_numbers(
        header.neurons + aligned,
        parameter_count(header.shapes()),
        max(len(cluster.devices) for cluster in fleet.clusters),
    )
    config = reference.backbone.config
    least = kept_units(min(fleet.backbone.hidden), config.hidden_size)
    sizes = feature_sizes(config, least)
    row_bytes(personalization, sizes.pooled or sizes.hidden)  # a sketch is smaller
    if personalization.privacy.masking:
        public_key(b"")  # its library must be there before any work is done
    return Plan(
        grid=grid,
        sizes=candidate_sizes(ElasticClassifier(reference), grid, fleet.header),
        public_parts=(len(public.train), len(public.validation), len(public.test)),
        public_labelled=public.labelled,
        reference_bytes=file_size(shapes_of(reference)),
        limits={c.name: min(d.storage for d in c.devices) for c in fleet.clusters},
        feature_bytes=personalization.rows_sent * row_bytes(personalization, header.pooled_size),
        round_bytes=4 * numbers,
        loss=expected_loss(personalization),
        holdings={
            name: Holding.of(splits, world.classes, world.owners.get(name))
            for name, splits in world.private.items()
        },
        header_weights=parameter_count(header.shapes()),
        learned_before=learned_before(fleet),
    )


def largest_header(settings: Header, reference: Classifier) -> HeaderPlan:
    """The header with the most weights: the largest convolution everywhere."""
    block = Block(inputs=(0, 1), operations=("conv5", "conv5"))
    genotype = Genotype(
        blocks=(block,) * settings.blocks, cells=settings.cells, channels=settings.channels
    )
    return reference.header_plan(genotype)


def check_feasible(fleet: Fleet, plan: Plan) -> None:
    """Every cluster, or device where each gets its own, must be able to get something.

    Raises:
        FleetError: naming the cluster, its smallest device and the smallest candidate.
    """
    per_device = fleet.selection.matching == "device"
    for cluster in fleet.clusters:
        groups = [[own] for own in cluster.devices] if per_device else [cluster.devices]
        for devices in groups:
            device = min(devices, key=lambda d: d.storage)
            executed = common(d.precisions for d in devices)
            sizes = executed_sizes(plan.sizes, plan.grid.precisions, executed, cluster.name)
            least = int(sizes.argmin())
            if device.storage < sizes[least]:
                raise FleetError(
                    f"cluster {cluster.name}: the smallest candidate is "
                    f"{plan.grid.variants[least]} with {plan.sizes[least]:,} bytes, device "
                    f"{device.name} stores {device.storage:,}; raise its storage, or offer smaller "
                    f"candidates in backbone.widths, backbone.depths, backbone.hidden and "
                    f"backbone.precisions"
                )
