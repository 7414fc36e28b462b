"""``summary.json``: everything that a run measured, typed."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from acme_fleet.cost.privacy import PrivacyLoss
from acme_fleet.errors import RunError
from acme_fleet.files import replacing
from acme_fleet.fleet import Personalization, Selection
from acme_fleet.report.leaving import Leaving, what_leaves


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReferenceSummary(_Record):
    """The reference model θ0 on the cloud's public test data. ``patches`` is p of Eq. 2."""

    params: int
    patches: int
    size_bytes: int
    accuracy: float


class Candidate(_Record):
    """One backbone δ(θ0, w, d) with its objectives (Eq. 10) for one cluster.

    ``loss`` and ``accuracy`` on the cloud's public validation data, ``energy_j`` of the cluster's
    worst device, ``size_bytes`` of the whole model as shipped with the smallest header.
    """

    width: float
    depth: int
    loss: float
    accuracy: float
    energy_j: float
    size_bytes: int
    feasible: bool
    on_front: bool
    chosen: bool


class Contender(_Record):
    """A header that an edge server tried, fine-tuned, on its own samples for the final choice.

    ``evaluated`` counts the architectures that were tried on the way.
    """

    name: str
    params: int
    accuracy: float
    loss: float
    evaluated: int


class ClusterSummary(_Record):
    """Devices of an edge server that share a backbone: what there was to choose from, what they
    got, what the search of their header found.

    ``name`` is the edge server's, followed by a colon and a number where it has several groups.
    """

    name: str
    width: float
    depth: int
    storage_limit_bytes: int
    candidates: list[Candidate]
    feasible: int
    front: int
    header: str
    """The header's architecture as one line of text."""
    genotype: dict[str, object]
    contenders: list[Contender] = []
    """The searched header, then the other strategies' and hand-made ones."""
    device_names: list[str]
    similarity: list[list[float]]
    """Ŵ_s of Eq. 20: row = receiver, column = contributor, in the order of ``device_names``."""
    lost: dict[str, str] = {}
    """Devices that did not finish, and why."""
    missed: dict[str, int] = {}
    """Rounds that devices missed, or in which what they sent was refused."""
    shortened: dict[str, float] = {}
    """Devices whose header's update was scaled down, and the least scale."""

    @property
    def edge(self) -> str:
        """The name of the edge server."""
        return self.name.partition(":")[0]


class DeviceSummary(_Record):
    """One device: what it got and how well it works on its own full test set."""

    name: str
    cluster: str
    capacity_bytes: int
    size_bytes: int
    params: int
    accuracy_coarse: float
    accuracy: float
    accuracy_linear: float
    test_samples: int
    latency_s: float
    neurons_coarse: int
    neurons: int
    raw_data_bytes: int


class Traffic(_Record):
    """Bytes as encoded on the links, against what a centralised system would have uploaded."""

    cloud_edge_bytes: int
    edge_device_bytes: int
    up_bytes: int
    down_bytes: int
    device_up_bytes: int
    raw_data_bytes: int
    upload_ratio: float


class Summary(_Record):
    """The whole run."""

    name: str
    seed: int
    seconds: dict[str, float]
    reference: ReferenceSummary
    selection: Selection
    """How the clusters' backbones were chosen; ``performance_window`` is γ_p."""
    clusters: list[ClusterSummary]
    devices: list[DeviceSummary]
    lost: dict[str, str] = {}
    """Edge servers that did not finish, and why."""
    traffic: Traffic
    many_hosts: bool = False
    """Whether every role had a host of its own, reached over a network."""
    personalization: Personalization = Personalization()
    sent: dict[str, dict[str, list[int]]] = {}
    """For each device, by kind, the bytes of every message that it sent, oldest first."""
    privacy_loss: dict[str, PrivacyLoss] = {}
    """For each device that put noise into its messages."""
    warnings: list[str] = []
    """Signs of useless devices or models, see :mod:`acme_fleet.report.warnings`."""

    @property
    def leaving(self) -> list[Leaving]:
        """What left the devices, in words."""
        return what_leaves(self.personalization)

    def write(self, path: Path) -> None:
        """Write as indented JSON, whole or not at all."""
        with replacing(path) as file:
            file.write_text(self.model_dump_json(indent=2))

    @staticmethod
    def read(path: Path) -> Summary:
        """Read what :meth:`write` wrote.

        Raises:
            RunError: if it is missing or damaged.
        """
        try:
            return Summary.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}") from error
