"""The fleet file: which model, which data, which clusters and devices. YAML in, checked.

Every class is frozen and refuses unknown keys, so a fleet that exists is a fleet that can run.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from acme_fleet.config.backbone import Backbone, Reference, Selection
from acme_fleet.config.base import Settings, mistakes, read_settings
from acme_fleet.config.data import Data
from acme_fleet.config.devices import Cluster, Device, Name
from acme_fleet.config.header import Header, Search
from acme_fleet.config.personalization import Personalization
from acme_fleet.config.shorthand import written_out
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, reading, resolved


class Fleet(Settings):
    """Everything that decides a run. See ``acme init`` for a commented example.

    A run that was interrupted goes on with the accelerator that it began with.
    """

    name: Name = "fleet"
    """Name of the fleet."""
    task: str = "classification"
    """Task that all models learn: ``classification``, or ``generation`` of texts."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all random numbers of a run."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of each operation; like the seed they decide a run's numbers, by rounding."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    """Processor of the cloud server; all others compute on the CPU."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of matrix products when the cloud server trains. ``auto``: bfloat16 where its
    processor has it and a measured step is faster; with the seed they decide the run."""
    devices_at_once: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Devices of a cluster that one machine trains together: faster, equal up to rounding."""
    edge_quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the clusters that must finish for a report; ``--resume`` finishes the others."""
    data: Data = Data()
    """Samples, and their partition."""
    reference: Reference = Reference()
    """Reference model θ0."""
    backbone: Backbone = Backbone()
    """Candidates, and their training."""
    selection: Selection = Selection()
    """Choice of a candidate for each cluster or device."""
    header: Header = Header()
    """Space of headers."""
    search: Search = Search()
    """Search for a header, and its fine-tuning."""
    personalization: Personalization = Personalization()
    """Rounds between an edge server and its devices."""
    clusters: Annotated[list[Cluster], Field(min_length=1)]
    """Edge servers with their devices."""

    @model_validator(mode="after")
    def _consistent(self) -> Fleet:
        names = [c.name for c in self.clusters] + [d.name for d in self.devices]
        repeated = sorted(name for name, times in Counter(names).items() if times > 1)
        if repeated or "cloud" in names:
            raise ValueError(
                f"cluster and device names must differ from each other and from 'cloud'; "
                f"used more than once: {', '.join(repeated or ['cloud'])}"
            )
        if self.search.backbone_learning_rate and self.backbone.precisions != ("float32",):
            raise ValueError(
                f"search.backbone_learning_rate trains backbones, which is done in float32 alone: "
                f"set it to 0, or backbone.precisions to [float32] "
                f"(it is {', '.join(self.backbone.precisions)})"
            )
        if (self.task == "generation") != (self.data.source == "language"):
            raise ValueError(
                f"task: generation and data.source: language go together "
                f"(they are {self.task} and {self.data.source})"
            )
        if self.personalization.lora_rank is not None and self.task != "generation":
            raise ValueError("personalization.lora_rank is for task: generation; leave it out")
        if self.data.holds_texts and self.reference.checkpoint is None:
            raise ValueError(
                f"data.source {self.data.source} needs a text model and its tokenizer in "
                f"reference.checkpoint"
            )
        if not self.data.holds_texts and self.backbone.vocabulary is not None:
            raise ValueError("backbone.vocabulary is for texts, not images")
        if self.data.holds_texts and (self.reference.crop_padding or self.reference.flip):
            raise ValueError("reference.crop_padding and reference.flip are for images, not texts")
        return self

    def __repr__(self) -> str:
        """Short, as a fleet may have thousands of devices; :meth:`to_yaml` has everything."""
        devices, clusters = len(self.devices), len(self.clusters)
        counted = f"{devices:,} device{'s' * (devices != 1)} in {clusters:,} cluster"
        return f"Fleet({self.name}, {self.task}: {counted}{'s' * (clusters != 1)})"

    __str__ = __repr__

    @property
    def devices(self) -> list[Device]:
        """All devices, cluster by cluster."""
        return [device for cluster in self.clusters for device in cluster.devices]

    @property
    def trial_epochs(self) -> int:
        """Epochs of recovery that each finalist gets; 0 where there is nothing to try."""
        recovery, finalists = self.backbone.distillation.recovery, self.selection.finalists
        return max(1, recovery.epochs // finalists) if recovery and finalists > 1 else 0

    @staticmethod
    def from_yaml(path: str | Path) -> Fleet:
        """Read and check a fleet file. Relative paths in it are relative to the file.

        Raises:
            FleetError: naming the key, its value and what would be right.
        """
        path = Path(path)
        content = read_settings(path, "fleet file", f"`acme init {path}` writes an example")
        return Fleet.parse(content, str(path), path.parent).with_paths_from(path.parent)

    @staticmethod
    def parse(content: dict[str, Any], where: str = "fleet", folder: Path = Path()) -> Fleet:
        """Check settings that are already in memory.

        ``device_types``, and ``devices`` with or without ``grouping`` in place of ``clusters``,
        are written out: the fleet has neither. Profiles of device types are taken from ``folder``.

        Raises:
            FleetError: naming the key, its value and what would be right.
        """
        try:
            return Fleet.model_validate(written_out(content, where, folder))
        except ValidationError as error:
            raise FleetError(mistakes(error, where, Fleet)) from error

    def with_paths_from(self, folder: Path) -> Fleet:
        """The same fleet with relative paths made absolute, taken from ``folder``."""

        def resolve(value: Any) -> Any:
            if isinstance(value, Path):
                with reading(f"cannot use the path {one_line(str(value))}"):
                    return resolved(folder / value)
            return [resolve(item) for item in value] if isinstance(value, list) else value

        def in_place(settings: Any, *names: str) -> Any:
            changes = {name: resolve(getattr(settings, name)) for name in names}
            return settings.model_copy(update=changes)

        clusters = [
            in_place(cluster, "data").model_copy(
                update={"devices": [in_place(device, "data") for device in cluster.devices]}
            )
            for cluster in self.clusters
        ]
        data = in_place(self.data, "train", "test", "public")
        named = self.reference.checkpoint
        if isinstance(named, str) and os.path.lexists(folder / named):
            # Path and all, so that it is said, and means the same from everywhere.
            named = Path(named)
            if self.reference.revision is not None:
                raise FleetError(
                    f"reference.revision: is for a checkpoint on the hub, and {named} is a folder "
                    f"in {folder}; leave revision out"
                )
        reference = self.reference.model_copy(update={"checkpoint": resolve(named)})
        return self.model_copy(update={"clusters": clusters, "data": data, "reference": reference})

    def to_yaml(self) -> str:
        """The fleet with every default written out; reading it back gives an equal fleet."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
