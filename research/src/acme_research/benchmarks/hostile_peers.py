"""Three of ten devices lie within every bound that is checked: what the honest ones lose.

Runs of one fleet with real devices. Beside each lie stands the run in which the same three devices
are silent; the loss is the honest devices' mean accuracy there less that with the lie, in points.

    python -m acme_research.benchmarks.hostile_peers --seeds 2
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acme_fleet.config.fleet import Fleet
from acme_fleet.device import client
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import ByClassUpload, HeaderUpload, OpenUpload, Upload
from acme_fleet.pipeline import customize
from acme_research.frame.intervals import student_interval
from acme_research.frame.many_devices import many_devices
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import finished_run, parser_of, same_search

DEVICES, LIARS, EACH = 10, 3, 150

RULES: dict[str, dict[str, Any]] = {
    "importance": {"mix": "importance"},
    "masked": {"mix": "importance", "privacy": {"masking": True}},
    "weights": {"mix": "weights"},
    "weights, trimmed mean": {"mix": "weights", "robust": "trimmed_mean"},
    "weights, median": {"mix": "weights", "robust": "median"},
    "weights, krum": {"mix": "weights", "robust": "krum"},
    "rows by class": {"mix": "weights", "classifier": "holders"},
}
Tensors = Mapping[str, Tensor]


def _changed(upload: Upload, device: Any, change: Callable[[Tensors, Tensors], Tensors]) -> Upload:
    """The header's update turned into another; of importance alone the order of the neurons."""
    if isinstance(upload, HeaderUpload):
        start = device._received(device._folder.assignment()).state_dict()
        same = {k: v for k, v in upload.header.items() if v.shape == start[k].shape}
        return upload.model_copy(update={"header": {**upload.header, **change(same, start)}})
    if isinstance(upload, OpenUpload):
        turned = {k: v.max() + v.min() - v for k, v in upload.importance.items()}
        return upload.model_copy(update={"importance": turned})
    return upload


def turned(upload: Upload, device: Any) -> Upload:
    """The opposite of what was learned, twice as long: the longest that is not shortened."""

    def change(own: Tensors, start: Tensors) -> Tensors:
        return {k: start[k] - 2 * (own[k] - start[k]) for k in own}

    return _changed(upload, device, change)


def noise(upload: Upload, device: Any) -> Upload:
    """Noise as long as what was learned."""
    draw = torch.Generator().manual_seed(upload.round)

    def change(own: Tensors, start: Tensors) -> Tensors:
        return {
            k: start[k] + (own[k] - start[k]).std() * torch.randn(own[k].shape, generator=draw)
            for k in own
            if own[k].numel() > 1
        }

    return _changed(upload, device, change)


def classes(upload: Upload, device: Any) -> Upload:
    """All classes are its own, and each row of the classifier is another's."""
    if not isinstance(upload, ByClassUpload):
        return turned(upload, device)
    header = {
        k: v.roll(1, 0) if k.startswith("classifier.") else v for k, v in upload.header.items()
    }
    held = list(range(len(header["classifier.pooled.bias"])))
    return upload.model_copy(update={"header": header, "held": held})


Lie = Callable[[Upload, Any], Upload]
LIES: dict[str, Lie] = {"turned round": turned, "noise": noise, "classes": classes}


TRIED = {"importance": ("turned round",), "masked": ("turned round",), "rows by class": tuple(LIES)}


def lying(names: list[str], lie: Lie | None) -> type[Any]:
    """Devices of which those named lie; none are silent after they have got the model."""

    class Device(client.DeviceClient):
        def handle(self, message: Message) -> Message:
            answer = super().handle(message)
            if self._settings.name not in names or not isinstance(answer, Upload):
                return answer
            if lie is None:
                raise ProtocolError("silent")
            return lie(answer, self)

    return Device


def run(fleet: Fleet, prepared: Path, place: Path, device: type[Any]) -> float:
    """The honest devices' mean accuracy in a run that goes on after the search."""
    known, client.DeviceClient = client.DeviceClient, device
    try:
        devices = finished_run(fleet, place, same_search(prepared)).devices
    finally:
        client.DeviceClient = known
    honest = [d.accuracy for d in devices if int(d.name.removeprefix("d")) < DEVICES - LIARS]
    shutil.rmtree(place)
    return float(np.mean(honest))


def measured(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """By rule: accuracy of the honest with silent peers, and the loss in points by lie."""
    liars = [f"d{n}" for n in range(DEVICES - LIARS, DEVICES)]
    base = {"rounds": 3, "local": {"epochs": 5, "batch_size": 16, "learning_rate": 0.02}}
    many = many_devices(DEVICES, folder, seed, each=EACH, **base)
    first = many.model_copy(update={"devices_at_once": 1})
    prepared = folder / f"prepared-{seed}"
    customize(first, prepared)
    found: dict[str, dict[str, float]] = {}
    for rule, changes in RULES.items():
        personalization = type(first.personalization).model_validate(
            {**first.personalization.model_dump(), **changes}
        )
        fleet = first.model_copy(update={"personalization": personalization})
        silent = run(fleet, prepared, folder / "run", lying(liars, None))
        found[rule] = {"silent": silent}
        for name in TRIED.get(rule, ("turned round", "noise")):
            accuracy = run(fleet, prepared, folder / "run", lying(liars, LIES[name]))
            found[rule][name] = 100 * (silent - accuracy)
        print(seed, rule, {k: round(v, 3) for k, v in found[rule].items()}, flush=True)
    return found


def main() -> None:
    seeds = list(range(parser_of(__doc__, seeds=2).parse_args().seeds))
    with tempfile.TemporaryDirectory() as folder:
        results = [measured(seed, Path(folder)) for seed in seeds]
    losses = {
        rule: {lie: [r[rule][lie] for r in results] for lie in results[0][rule] if lie != "silent"}
        for rule in RULES
    }
    silent = {rule: [result[rule]["silent"] for result in results] for rule in RULES}
    worst = max((each for lies in losses.values() for each in lies.values()), key=np.mean)
    low, high = student_interval(worst)
    write_benchmark(
        "hostile_peers",
        round(float(np.mean(worst)), 2),
        (round(low, 2), round(high, 2)),
        {"points lost": losses, "accuracy with silent peers": silent},
        seeds=seeds,
    )


if __name__ == "__main__":
    main()
