"""Three of ten devices lie within every bound that is checked: what the honest ones lose.

Runs of one fleet with real devices. Beside each lie stands the run in which the same three devices
are silent; the loss is the honest devices' mean accuracy there less that with the lie, in points.

    python -m acme_research.benchmarks.hostile_peers --seeds 2
    python -m acme_research.benchmarks.hostile_peers --rule masked  # also one of five
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
from acme_fleet.messages.edge_device import (
    ByClassUpload,
    HeaderUpload,
    MaskedUpload,
    OpenUpload,
    Start,
    Upload,
)
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.personalization.base import Own
from acme_fleet.pipeline import customize
from acme_research.frame.intervals import student_interval
from acme_research.frame.many_devices import many_devices
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import finished_run, parser_of, same_search

EACH = 150
GROUPS = {"three of ten": (10, 3), "one of five": (5, 1)}

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
        return upload.model_copy(update={"importance": _backwards(upload.importance)})
    return _masked(upload, device)


def _backwards(importance: Tensors) -> dict[str, Tensor]:
    """The neurons of each layer in the opposite order of importance."""
    return {k: v.max() + v.min() - v for k, v in importance.items()}


def _masked(upload: Upload, device: Any) -> Upload:
    """The shares of a set in which the order of the neurons is turned round; masks that cancel."""
    state, own = device._trained(upload.round)
    told = ImportanceSet.of(_backwards(own.by_layer()), own.layers)
    return device._rule.upload(
        device.start, Own(state.current, told, device._train_classes, device._protection)
    )


def turned(upload: Upload, device: Any) -> Upload:
    """The opposite of what was learned, twice as long: the longest that is not shortened."""
    return _changed(
        upload, device, lambda own, start: {k: start[k] - 2 * (own[k] - start[k]) for k in own}
    )


def noise(upload: Upload, device: Any) -> Upload:
    """Noise as long as what was learned; in place of masked shares, any numbers."""
    draw = torch.Generator().manual_seed(upload.round)
    if isinstance(upload, MaskedUpload):
        limits = torch.iinfo(torch.int32)
        shares = {
            name: torch.randint(limits.min, limits.max, share.shape, generator=draw).int()
            for name, share in upload.shares.items()
        }
        return upload.model_copy(update={"shares": shares})

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


LIES: dict[str, Callable[[Upload, Any], Upload]] = {
    "turned round": turned,
    "noise": noise,
    "classes": classes,
}


def lying(names: list[str], lie: Callable[[Upload, Any], Upload] | None) -> type[Any]:
    """Devices of which those named lie; none are silent after they have got the model."""

    class Device(client.DeviceClient):
        def handle(self, message: Message) -> Message:
            if isinstance(message, Start):
                self.start = message
            answer = super().handle(message)
            if self._settings.name not in names or not isinstance(answer, Upload):
                return answer
            if lie is None:
                raise ProtocolError("silent")
            return lie(answer, self)

    return Device


def run(fleet: Fleet, prepared: Path, place: Path, device: type[Any], liars: list[str]) -> float:
    """The honest devices' mean accuracy in a run that goes on after the search."""
    known, client.DeviceClient = client.DeviceClient, device
    try:
        devices = finished_run(fleet, place, same_search(prepared)).devices
    finally:
        client.DeviceClient = known
    honest = [d.accuracy for d in devices if d.name not in liars]
    shutil.rmtree(place)
    return float(np.mean(honest))


def measured(
    seed: int, folder: Path, group: str, rules: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """By rule: accuracy of the honest with silent peers, and the loss in points by lie."""
    devices, lying_ones = GROUPS[group]
    liars = [f"d{n}" for n in range(devices - lying_ones, devices)]
    base = {"rounds": 3, "local": {"epochs": 5, "batch_size": 16, "learning_rate": 0.02}}
    first = many_devices(devices, folder, seed, each=EACH, **base).model_copy(
        update={"devices_at_once": 1}
    )
    prepared = folder / f"prepared-{devices}-{seed}"
    customize(first, prepared)
    found: dict[str, dict[str, float]] = {}
    for rule, changes in rules.items():
        personalization = type(first.personalization).model_validate(
            {**first.personalization.model_dump(), **changes}
        )
        fleet = first.model_copy(update={"personalization": personalization})
        silent = run(fleet, prepared, folder / "run", lying(liars, None), liars)
        found[rule] = {"silent": silent}
        for name, lie in LIES.items():
            if name == "classes" and rule != "rows by class":
                continue
            if rule == "importance" and name != "turned round":
                continue
            accuracy = run(fleet, prepared, folder / "run", lying(liars, lie), liars)
            found[rule][name] = 100 * (silent - accuracy)
        print(seed, group, rule, {k: round(v, 3) for k, v in found[rule].items()}, flush=True)
    return found


def main() -> None:
    parser = parser_of(__doc__, seeds=2)
    parser.add_argument("--rule", choices=RULES)
    asked = parser.parse_args()
    seeds, groups, rules, name = list(range(asked.seeds)), list(GROUPS)[:1], RULES, "hostile_peers"
    if asked.rule:
        groups, rules = list(GROUPS), {asked.rule: RULES[asked.rule]}
        name = f"{name}_{asked.rule.replace(' ', '_')}"
    with tempfile.TemporaryDirectory() as folder:
        results = {
            group: [measured(seed, Path(folder), group, rules) for seed in seeds]
            for group in groups
        }
    lost = {
        group: {
            rule: {lie: [r[rule][lie] for r in found] for lie in found[0][rule] if lie != "silent"}
            for rule in rules
        }
        for group, found in results.items()
    }
    losses = [of for rule in lost.values() for lies in rule.values() for of in lies.values()]
    worst = max(losses, key=np.mean)
    low, high = student_interval(worst)
    write_benchmark(
        name,
        round(float(np.mean(worst)), 2),
        (round(low, 2), round(high, 2)),
        {
            "points lost": lost,
            "accuracy with silent peers": {
                group: {rule: [result[rule]["silent"] for result in found] for rule in rules}
                for group, found in results.items()
            },
        },
        seeds=seeds,
    )


if __name__ == "__main__":
    main()
