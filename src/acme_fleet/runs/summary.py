"""``summary.json``: everything that a run measured, typed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from acme_fleet.config.backbone import Pooling, Selection
from acme_fleet.config.devices import Precision
from acme_fleet.config.personalization import Personalization
from acme_fleet.cost.variant import Variant
from acme_fleet.errors import DamagedError
from acme_fleet.messages.results import Amount, DeviceResult, HeaderContender, Share
from acme_fleet.outside import one_line
from acme_fleet.privacy.accounting import PrivacyLoss
from acme_fleet.runs.sealed import STRICT, read_marked_json, typed, write_marked_json

Count = Annotated[int, Field(ge=0, le=2**63)]
Size = Annotated[int, Field(ge=1, le=2**63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ReferenceSummary(_Record):
    """The reference model θ0 on the cloud's public test data. ``patches`` is p of Eq. 2.

    ``origin`` is ``trained``, ``fine-tuned`` or ``untouched``; ``pooling`` makes its pooled vector.
    ``accuracy`` is none where the public data have no labels, and ``latency_s``, of one input in
    PyTorch as the devices' latencies are, where it was not measured.
    """

    params: Count
    patches: Count
    size_bytes: Size
    accuracy: Share | None
    origin: Literal["trained", "fine-tuned", "untouched"] = "trained"
    pooling: Pooling = "first"
    latency_s: Amount | None = None


class _OfVariant(_Record):
    """A record of a candidate; ``hidden`` is the share of the hidden size."""

    width: Share
    depth: Size
    hidden: Share = 1.0
    precision: Precision = "float32"

    @property
    def variant(self) -> Variant:
        """The candidate's identity."""
        return Variant(self.width, self.depth, self.hidden, self.precision)


class Candidate(_OfVariant):
    """One backbone δ(θ0, w, d) with its objectives (Eq. 10) for one cluster.

    ``loss`` and ``accuracy`` on the cloud's public validation data, ``energy_j`` of the cluster's
    worst device, ``size_bytes`` of the whole model as shipped with the smallest header. Where these
    data have no labels, ``accuracy`` is none, and ``loss`` is the squared error of the pooled
    features over the reference's variance. ``estimated`` are both where the grid is large and the
    candidate was judged on a few samples alone. ``recovered_loss`` and ``recovered_accuracy`` are
    those after a share of the recovery, by which one of several finalists was chosen; none of the
    other candidates, and where nothing was tried.
    """

    loss: float
    accuracy: Share | None
    estimated: bool = False
    recovered_loss: float | None = None
    recovered_accuracy: Share | None = None
    energy_j: Amount
    size_bytes: Size
    feasible: bool
    on_front: bool
    chosen: bool


class ClusterSummary(_OfVariant):
    """Devices of an edge server that share a backbone: what there was to choose from, what they
    got, what the search of their header found.

    ``name`` is the edge server's, followed by a colon and a number where it has several groups.
    """

    name: str
    storage_limit_bytes: Size
    candidates: list[Candidate]
    feasible: Count
    front: Count
    header: str
    """The header's architecture as one line of text."""
    genotype: dict[str, object]
    contenders: list[HeaderContender] = []
    """The searched header, then the other strategies' and hand-made ones."""
    device_names: list[str]
    similarity: list[list[Amount]]
    """Ŵ_s of Eq. 20: row = receiver, column = contributor, in the order of ``device_names``. No row
    where a large cluster's devices listen to all alike."""
    columns: list[list[Count]] = []
    """Places in ``device_names`` of the weights in each row, where those are not all."""
    lost: dict[str, str] = {}
    """Devices that did not finish, and why."""
    missed: dict[str, Count] = {}
    """Rounds that devices missed, or in which what they sent was refused."""
    shortened: dict[str, Amount] = {}
    """Devices whose header's update was scaled down, and the least scale."""

    @property
    def edge(self) -> str:
        """The name of the edge server."""
        return self.name.partition(":")[0]

    @property
    def labelled(self) -> bool:
        """True where the candidates were measured on data with labels."""
        return all(candidate.accuracy is not None for candidate in self.candidates)


class ClassSummary(_Record):
    """A class on a device: training samples, and how often its test samples got which answer."""

    train: Count = 0
    answers: dict[str, Count] = {}

    @property
    def test(self) -> int:
        """Test samples."""
        return sum(self.answers.values())


@dataclass(frozen=True)
class Rival:
    """A rival of a device's model, on the same full test set.

    Attributes:
        accuracy: share of right answers, or of right tokens of a language model.
        size_bytes: of the model as it would be stored.
        loss, exact: of a language model, its loss per token, and the share of the answers that are
            exactly right where texts have prompts.
    """

    __pydantic_config__ = STRICT

    accuracy: float
    size_bytes: int
    loss: float | None = None
    exact: float | None = None


class DeviceSummary(DeviceResult):
    """One device: the result that it reported, and what is known of it beside.

    ``accuracy_reference`` is that of the whole reference on the same test data, told which classes
    the device has. ``accuracy_probe`` and ``accuracy_probe_averaged`` are the practitioner's rival,
    see :class:`ProbeSummary`: the device's own regression, and the mean of all devices'
    regressions. ``rivals`` are by name: of a language model, the ``whole`` reference, without a
    header, at three precisions; with ``personalization.rivals``, the header that came, trained by
    the device ``alone`` or by ``FedAvg``. What is known of a device's samples is empty where its
    data are elsewhere.
    """

    cluster: str
    capacity_bytes: Size
    accuracy_probe: Share | None = None
    accuracy_probe_averaged: Share | None = None
    accuracy_reference: Share | None = None
    rivals: dict[str, Rival] = Field(default_factory=dict)
    train_samples: Count = 0
    validation_samples: Count = 0
    classes: dict[str, ClassSummary] = Field(default_factory=dict)
    """By name; of a device whose model answers with classes."""


class ProbeSummary(_Record):
    """The practitioner's rival: the whole reference, untouched, and a regression on each device.

    Its weights are rounded to int8; the devices' accuracies are of that. Without a checkpoint the
    features are the raw inputs, and ``pooling`` is none. Measured by
    :mod:`acme_fleet.simulation.probe_rival`.
    """

    pooling: Pooling | None
    size_bytes: Size
    size_bytes_int8: Size


class Traffic(_Record):
    """Bytes as encoded on the links, against what a centralised system would have uploaded.

    Each message of the method counts once, so that an interrupted run has the same numbers.
    ``resent_bytes`` is beside them: what was sent again after interruptions and failures.
    """

    cloud_edge_bytes: Count
    edge_device_bytes: Count
    up_bytes: Count
    down_bytes: Count
    device_up_bytes: Count
    raw_data_bytes: Count
    upload_ratio: Amount
    resent_bytes: Count = 0


class UpdateSummary(_Record):
    """The parts that an update took over from another run, and those that it computed.

    ``previous`` is that run's directory. ``kept`` are devices whose folders are that run's, bit for
    bit; ``computed`` the others, and why; ``left`` those that are not in the fleet any more.
    ``searched`` are groups whose header was searched anew, and why. ``sent_before`` is the ``sent``
    of that run.
    """

    previous: str
    kept: list[str]
    computed: dict[str, str]
    left: list[str]
    searched: dict[str, str]
    sent_before: dict[str, dict[str, list[Count]]] = {}


class Summary(_Record):
    """The whole run."""

    name: str
    seed: int
    seconds: dict[str, Amount]
    """Of the stages by name; those of hosts and devices that work at once are added up."""
    took_s: Amount | None = None
    """By the clock, without pauses between an interruption and a resumption; none in a summary
    of an older version."""
    reference: ReferenceSummary
    selection: Selection
    """The rule by which the clusters' backbones were chosen; ``performance_window`` is γ_p."""
    clusters: list[ClusterSummary]
    devices: list[DeviceSummary]
    lost: dict[str, str] = {}
    """Edge servers that did not finish, and why."""
    left_out: list[str] = []
    """Candidates of which nothing could be said, and why."""
    traffic: Traffic
    many_hosts: bool = False
    """True if every role had a host of its own, reached over a network."""
    personalization: Personalization = Personalization()
    sent: dict[str, dict[str, list[Count]]] = {}
    """For each device, by kind, the bytes of every message that it sent, oldest first; with those
    of the runs that an update took over from."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Numbers of the matrix products with which the cloud server trained."""
    privacy_loss: dict[str, PrivacyLoss] = {}
    """For each device that put noise into its messages."""
    probe: ProbeSummary | None = None
    """None where no machine has all data."""
    damaged_events: Count = 0
    """Lines of ``events.jsonl`` that were damaged: their bytes and seconds are in no sum."""
    update: UpdateSummary | None = None
    """None where the run was begun from nothing."""
    warnings: list[str] = []
    """Signs of useless devices or models, see :mod:`acme_fleet.report.warnings`."""

    @property
    def duration_s(self) -> float:
        """Seconds that it took; of an older version, all stages one after the other."""
        return sum(self.seconds.values()) if self.took_s is None else self.took_s

    @property
    def brief(self) -> str:
        """A line on what it came to."""
        told = f"{self.name}, seed {self.seed}: {len(self.devices):,} devices"
        if self.devices:
            mean = sum(device.accuracy for device in self.devices) / len(self.devices)
            tokens = any(device.language for device in self.devices)
            told += f", {'token ' * tokens}accuracy {mean:.3f} in the mean"
        return told + (f", {len(self.lost)} clusters lost" if self.lost else "")

    def __repr__(self) -> str:
        return f"Summary({self.brief})"

    __str__ = __repr__

    def write(self, path: Path) -> None:
        """Write as indented JSON with a checksum, atomically.

        Raises:
            WriteError: if it cannot be written.
        """
        write_marked_json(path, self.model_dump(mode="json"))

    @staticmethod
    def read(path: Path) -> Summary:
        """Read what :meth:`write` wrote; an older version's summary has no checksum.

        Raises:
            DamagedError: if it is missing, damaged or contradicts itself.
        """
        summary = typed(path, Summary, read_marked_json(path))
        if contradiction := next(_contradictions(summary), None):
            raise DamagedError(f"{path} is damaged: {contradiction}")
        return summary


def _contradictions(summary: Summary) -> Iterator[str]:
    clusters = {cluster.name for cluster in summary.clusters}
    if len(clusters) < len(summary.clusters):
        yield "two clusters have one name"
    for device in summary.devices:
        if device.cluster not in clusters:
            yield f"device {one_line(device.name)} is in no cluster that it lists"
    for cluster in summary.clusters:
        name, members = one_line(cluster.name), len(cluster.device_names)
        if sum(candidate.chosen for candidate in cluster.candidates) != 1:
            yield f"cluster {name} has not chosen one candidate"
        shape = [len(row) for row in cluster.similarity]
        expected = [len(row) for row in cluster.columns] or [members] * members
        if shape and (shape != expected or len(shape) != members):
            yield f"cluster {name} has {members} devices and a similarity of another shape"
