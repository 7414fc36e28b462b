"""The library for programs: customise a fleet, look at what came of it, use a device's model."""

from __future__ import annotations

import html
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import PrivateAttr

from acme_fleet.config.fleet import Fleet
from acme_fleet.errors import FleetError, RunError
from acme_fleet.outside import listed, optional
from acme_fleet.report.words import accuracy_text, brief_duration_text, bytes_text
from acme_fleet.runs.callbacks import Callback, run_watched
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.summary import ClusterSummary, DeviceSummary, Summary
from acme_fleet_runtime.images import pillow

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from acme_fleet.inspection.complete import Writer
    from acme_fleet.inspection.predict import DeviceModel
    from acme_fleet.pipeline import Connect
    from acme_fleet.runs.journal import Observer

_SHOWN = 40  # rows of a table in a notebook
_COLUMNS = ("device", "cluster", "size", "limit", "coarse", "linear", "final", "tests")


def customize(
    fleet: Fleet | str | Path,
    out: str | Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    resume: bool = False,
    observer: Observer | None = None,
    connect: Connect | None = None,
) -> Run:
    """Give every device of a fleet its own small model.

    Args:
        fleet: a fleet, or the path of a fleet file.
        out: the run directory; ``runs/NAME`` without one.
        callbacks: are told what the run does, see :class:`Callback`.
        progress: show bars, or lines where there is no terminal or notebook.
        resume: go on in a run directory of the same fleet that was interrupted.
        observer: is told the stages, in place of what ``progress`` shows.
        connect: see :func:`acme_fleet.pipeline.customize`.

    Raises:
        FleetError: if fleet, data and machine do not fit together; before any training.
        RunError: if the run directory cannot be used, or another process works in it.
        QuorumError: if too few devices or edge servers answer; ``resume`` goes on from there.
    """
    from acme_fleet.pipeline import customize as run_pipeline
    from acme_fleet.report.terminal.progress import LiveStages

    if not isinstance(fleet, Fleet):
        if not _is_path(fleet):
            raise FleetError(
                f"a fleet is a Fleet or the path of a fleet file, and this is a "
                f"{type(fleet).__name__}; Fleet.parse makes one of a dict"
            )
        fleet = Fleet.from_yaml(fleet)
    path = Path(out) if out is not None else Path("runs") / fleet.name
    shown = progress and observer is None
    with LiveStages() if shown else nullcontext() as stages:
        summary = run_watched(
            *(callbacks, observer or stages, fleet, path),
            lambda watching: run_pipeline(
                fleet, path, resume=resume, observer=watching, connect=connect
            ),
        )
    return Run.of(path, summary)


def open_run(path: str | Path) -> Run:
    """A finished run, from its directory.

    Raises:
        RunError: if it holds no finished run, or a damaged one.
    """
    run = RunDirectory.open(path)
    return Run.of(run.path, Summary.read(run.finished()))


class Run(Summary):
    """A finished run: its summary, and its directory."""

    _path: Path = PrivateAttr()

    @classmethod
    def of(cls, path: Path, summary: Summary) -> Run:
        """The run of a summary, in this directory."""
        run = cls.model_construct(summary.model_fields_set, **dict(summary))
        run._path = path
        return run

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._path

    def __eq__(self, other: object) -> bool:
        """Equal to a run, or a summary, of the same numbers."""
        return isinstance(other, Summary) and dict(self) == dict(other)

    @property
    def report(self) -> Path:
        """The page of pictures."""
        return RunDirectory(self.path).report

    def device(self, name: str) -> DeviceRun:
        """One device and its model.

        Raises:
            RunError: if there is none of this name.
        """
        for own in self.devices:
            if own.name == name:
                return DeviceRun(self, own)
        names = [own.name for own in self.devices]
        raise RunError(f"the run has no device {name!r}; it has {listed(names, 10)}")

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each device, with all that is known of it.

        Raises:
            FleetError: if pandas is not installed.
        """
        frame: Any = optional("pandas", "to_pandas needs pandas: pip install pandas").DataFrame
        rows = []
        for device in self.devices:
            cluster = self._cluster(device.cluster)
            shape = {"width": cluster.width, "depth": cluster.depth, "precision": cluster.precision}
            rows.append({**device.model_dump(exclude={"language"}), **shape})
        return frame(rows).set_index("name") if rows else frame()

    def plot_front(self, cluster: str | None = None) -> Figure:
        """The candidates of a cluster by size and loss, its front and what was chosen.

        Args:
            cluster: its name; the first without one.

        Returns:
            A matplotlib figure, which a notebook shows.
        """
        from acme_fleet.report.page.canvas import CLUSTER_COLORS
        from acme_fleet.report.page.plots import front

        if not self.clusters:
            raise RunError("no cluster of this run was finished, so that there is no front")
        own = self._cluster(cluster or self.clusters[0].name)
        number = self.clusters.index(own)
        color = CLUSTER_COLORS[number % len(CLUSTER_COLORS)]
        return front(own, color, self.selection.performance_window)

    def _cluster(self, name: str) -> ClusterSummary:
        for own in self.clusters:
            if own.name == name:
                return own
        names = [own.name for own in self.clusters]
        raise RunError(f"the run has no cluster {name!r}; it has {listed(names, 10)}")

    def __repr__(self) -> str:
        seconds = brief_duration_text(self.duration_s)
        return f"Run({str(self.path)!r}: {self.brief}; {seconds})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """A table, which a notebook shows."""
        more = len(self.devices) - _SHOWN
        rest = f"<p>… and {more:,} more devices: to_pandas() has all</p>" if more > 0 else ""
        return _table(f"{self.brief}; report: {self.report}", self.devices[:_SHOWN]) + rest


@dataclass(frozen=True, repr=False)
class DeviceRun:
    """One device of a finished run.

    Attributes:
        run: the run.
        summary: all that was measured of the device.
    """

    run: Run
    summary: DeviceSummary

    @property
    def folder(self) -> Path:
        """The folder that is all a device needs."""
        return RunDirectory(self.run.path).device(self.summary.name)

    def model(self) -> Any:
        """The model, a plain ``torch.nn.Module`` in eval mode.

        Raises:
            RunError: if its folder is missing or damaged.
        """
        return import_module("acme_fleet.models.shipped").load_device_model(self.folder)

    def predict(self, *inputs: Any) -> list[dict[str, float]]:
        """Probabilities of the classes for each input, the most probable first.

        Args:
            inputs: paths of images or text files, PIL images, arrays of shape ``(height, width)``
                or ``(height, width, channels)``; for a model of texts the texts themselves. A list
                stands for what is in it.

        Raises:
            FleetError: if an input is not what the model takes, or it is a language model.
        """
        from acme_fleet.inspection.predict import DeviceModel

        values: list[Any] = []
        for each in inputs:
            values += each if isinstance(each, list | tuple) else [each]
        if not values:
            return []
        self._refuse_writer()
        own = DeviceModel.open(self.folder)
        samples = [self._prepared(own, each) for each in values]
        rows = own.probabilities(samples)
        order = [
            sorted(zip(own.class_names, row, strict=True), key=lambda p: -p[1]) for row in rows
        ]
        return [dict(pairs) for pairs in order]

    def complete(self, *prompts: str, tokens: int = 40, chat: bool = False) -> list[str]:
        """Continuations of prompts by a language model.

        Args:
            prompts: texts; with ``chat`` what a user says, by the chat template.
            tokens: new ones at most.
            chat: see there.

        Raises:
            FleetError: if the device has another model, or no chat template.
        """
        writer = self._writer()
        if writer is None:
            raise FleetError(f"{self.summary.name} classifies; use predict")
        return [answer.text for answer in writer.complete(prompts, tokens, chat=chat)]

    def _writer(self) -> Writer | None:
        from acme_fleet.inspection.complete import Writer

        return Writer.open(self.folder, None)

    def _refuse_writer(self) -> None:
        if self.summary.language is not None:
            raise FleetError(f"{self.summary.name} has a language model; use complete")

    @staticmethod
    def _prepared(own: DeviceModel, value: Any) -> Any:
        """The model's inputs for one value."""
        if own.takes_images:
            image = own.preprocessing.read([Path(value)])[0] if _is_path(value) else value
            if not isinstance(image, np.ndarray | pillow().Image):
                raise FleetError(
                    f"the model takes images: paths, PIL images and NumPy arrays, not a "
                    f"{type(value).__name__}"
                )
            return own.preprocessing.inputs([image])
        if isinstance(value, Path):
            value = own.preprocessing.read([value])[0]
        if not isinstance(value, str):
            raise FleetError(f"the model takes texts, not a {type(value).__name__}")
        return own.preprocessing.inputs([value])

    def __repr__(self) -> str:
        own = self.summary
        return (
            f"DeviceRun({own.name}: {bytes_text(own.size_bytes)} of "
            f"{bytes_text(own.capacity_bytes)}, {'token ' * (own.language is not None)}accuracy "
            f"{accuracy_text(own.accuracy)} on "
            f"{own.test_samples:,} tests)"
        )

    def _repr_html_(self) -> str:
        """Its row of the run's table, which a notebook shows."""
        return _table(str(self.folder), [self.summary])


def _table(caption: str, devices: Sequence[DeviceSummary]) -> str:
    """A row for each device, in HTML."""
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(device)) + "</tr>"
        for device in devices
    )
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path)


def _cells(device: DeviceSummary) -> tuple[str, ...]:
    return (
        *(device.name, device.cluster),
        *(bytes_text(device.size_bytes), bytes_text(device.capacity_bytes)),
        *map(accuracy_text, (device.accuracy_coarse, device.accuracy_linear, device.accuracy)),
        f"{device.test_samples:,}",
    )
