"""Experiment trackers as callbacks: MLflow, TensorBoard and Weights & Biases.

A tracker that fails, as networks do, warns once and is silent from then on: it never ends a run.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from math import exp
from pathlib import Path
from typing import Any

from acme_fleet.config.base import chosen
from acme_fleet.config.fleet import Fleet
from acme_fleet.outside import optional, reason
from acme_fleet.runs.callbacks import Callback
from acme_fleet.runs.directory import FLEET, REPORT, SUMMARY
from acme_fleet.runs.summary import Summary

_log = logging.getLogger(__name__)
_FILES = (FLEET, SUMMARY, REPORT)
_MOST_DEVICES = 200  # whose figures are sent one by one


class Tracker(Callback):
    """A tracker: parameters of the fleet, metrics as they come, figures and files at the end.

    Metrics are ``STAGE/train_loss``, ``STAGE/eval_accuracy`` by epoch; at the end
    ``device/NAME/test_accuracy``, ``size_bytes`` and ``latency_s``, of a language model also
    ``test_perplexity``, and the means of all devices.
    """

    def __init__(self) -> None:
        self._failed = False
        self._lock = threading.Lock()

    # --- what a tracker does ---

    @abstractmethod
    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """Open a run of this name, with the settings of its fleet."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep values at a step."""

    @abstractmethod
    def end(self, files: list[Path], *, failed: bool) -> None:
        """Keep files, and close the run."""

    # --- when it does it ---

    def on_run_begin(self, fleet: Fleet, out: Path) -> None:
        """See :class:`Callback`; a library that is missing is an error, before any work."""
        params = dict(flattened(fleet.model_dump(mode="json", exclude={"clusters"})))
        params["devices"] = str(len(fleet.devices))
        # Runs of one fleet are told apart by their folders: TensorBoard would join their curves.
        name = fleet.name if out.name in ("", fleet.name) else f"{fleet.name}-{out.name}"
        self._tried(lambda: self.begin(name, params))

    def on_log(
        self, actor: str, stage: str, done: int, total: int, logs: Mapping[str, float]
    ) -> None:
        """See :class:`Callback`."""
        if logs:
            place = stage if actor == "cloud" else f"{actor}/{stage}"
            named = {f"{place}/{name}".replace(" ", "_"): value for name, value in logs.items()}
            self._tried(lambda: self.metrics(named, done))

    def on_run_end(self, summary: Summary, out: Path) -> None:
        """See :class:`Callback`."""
        self._tried(lambda: self.metrics(dict(figures(summary)), 0))
        files = [out / name for name in _FILES if (out / name).exists()]
        self._tried(lambda: self.end(files, failed=bool(summary.lost)))

    def on_run_error(self, error: BaseException) -> None:
        """See :class:`Callback`."""
        self._tried(lambda: self.end([], failed=True))

    def _tried(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._failed:
                return
            try:
                work()
            except Exception as error:  # noqa: BLE001
                self._failed = True
                _log.warning("%s keeps no more: %s", type(self).__name__, reason(error))


class MLflow(Tracker):
    """MLflow, at a server's URI such as ``http://127.0.0.1:5000``."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._mlflow: Any = _library("mlflow", "mlflow")
        self._mlflow.set_tracking_uri(uri)
        self._run = ""
        """The run's identity: an active run is its thread's alone, and devices have threads."""

    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        self._mlflow.set_experiment("acme-fleet")
        self._run = self._mlflow.start_run(run_name=name).info.run_id
        # MLflow refuses longer values.
        short = {key: value[:500] for key, value in params.items()}
        self._mlflow.log_params(short, run_id=self._run)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self._mlflow.log_metrics(dict(values), step=step, run_id=self._run)

    def end(self, files: list[Path], *, failed: bool) -> None:
        """See :class:`Tracker`."""
        for file in files:
            self._mlflow.log_artifact(str(file), run_id=self._run)
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class TensorBoard(Tracker):
    """TensorBoard's event files, in a folder that ``tensorboard --logdir`` reads."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        _library("tensorboard", "tensorboard")
        self._folder, self._writer = folder, None

    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(self._folder) / name))
        rows = "\n".join(f"| {key} | {value} |" for key, value in params.items())
        self._writer.add_text("fleet", f"| setting | value |\n|---|---|\n{rows}")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, files: list[Path], *, failed: bool) -> None:
        """See :class:`Tracker`."""
        assert self._writer is not None
        self._writer.close()


class WandB(Tracker):
    """Weights & Biases, in a project: ``PROJECT``, ``ENTITY/PROJECT`` or its address."""

    def __init__(self, project: str) -> None:
        super().__init__()
        self._wandb: Any = _library("wandb", "wandb")
        parts = project.removeprefix("https://wandb.ai/").strip("/").split("/")
        self._entity = parts[0] if len(parts) > 1 else None
        self._project, self._run = parts[-1], None

    def begin(self, name: str, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        at = {"project": self._project, "entity": self._entity}
        self._run = self._wandb.init(name=name, config=dict(params), **at)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`; stages have steps of their own, which are a value like others."""
        assert self._run is not None
        self._run.log({**values, "epoch": step})

    def end(self, files: list[Path], *, failed: bool) -> None:
        """See :class:`Tracker`."""
        assert self._run is not None
        for file in files:
            self._run.save(str(file), base_path=str(file.parent))
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[str, Callable[[str], Tracker]] = {
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
"""By their name in ``--track``, with the place where they keep a run."""


def tracker(name: str, place: str) -> Tracker:
    """The tracker of this name.

    Raises:
        FleetError: if there is none, or its library is not installed.
    """
    return chosen(TRACKERS, name, "--track")(place)


def figures(summary: Summary) -> Iterator[tuple[str, float]]:
    """Results of a run: of each device, and the mean of all."""
    devices = summary.devices
    for device in devices[:_MOST_DEVICES]:
        yield f"device/{device.name}/test_accuracy", device.accuracy
        yield f"device/{device.name}/size_bytes", float(device.size_bytes)
        yield f"device/{device.name}/latency_s", device.latency_s
        if device.language is not None:
            yield f"device/{device.name}/test_perplexity", exp(device.language.loss)
    if devices:
        yield "test_accuracy", sum(device.accuracy for device in devices) / len(devices)
        yield "size_bytes", sum(device.size_bytes for device in devices) / len(devices)
    yield "device_up_bytes", float(summary.traffic.device_up_bytes)


def flattened(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their dotted names, such as ``reference.training.epochs``."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{place}{key}.")
        elif value is not None:
            yield f"{place}{key}", str(value)


def _library(module: str, extra: str) -> Any:
    return optional(module, f"--track {extra} needs {module}: pip install 'acme-fleet[{extra}]'")
