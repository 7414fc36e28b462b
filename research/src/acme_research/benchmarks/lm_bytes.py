"""Bytes for exact answers within 3 points of the whole fine-tuned model ÷ its float32 bytes.

``python -m acme_research.benchmarks.lm_bytes --data clinc150``: ten devices, a domain of CLINC150
each, in a run for each limit, a share of the whole model's bytes; reference and elastic backbone
are those of the first. The rival is the reference, whole and in float32, fine-tuned on the public
texts; all answer the devices' own test prompts. Devices have private texts too, which the rival has
not. Details therefore have a bound that no device with a limit could run: the whole model, all of
whose weights are tuned on the device's own texts after that. They have the rounded rival as well.
"""

from argparse import Namespace
from typing import Any

import numpy as np

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Splits
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.features import Classifier
from acme_fleet.models.storage import clone_state
from acme_fleet.runs.summary import Summary
from acme_fleet.seeding import generator
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.answers import answered
from acme_fleet.training.loop import fit
from acme_research.benchmarks.lm_fleet import about, read_options, run_of, settings_of
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import reference_of, same_cloud
from acme_research.frame.settings import benchmark_config

_WITHIN = 0.03
_RATES = (1e-3, 3e-4)
_EPOCHS = 8
_Row = dict[str, Any]


def with_limit(settings: _Row, share: float, whole: int) -> _Row:
    """Changes of the fleet's settings: all devices in one cluster, with one limit."""
    names = [device["name"] for cluster in settings["clusters"] for device in cluster["devices"]]
    limit = {"storage": round(share * whole), "precisions": ["int4"]}
    return {"clusters": [{"name": "all", "devices": [{"name": n, **limit} for n in names]}]}


def tuned(reference: Classifier, own: Splits, name: str, seed: int) -> float:
    """Exact answers of the whole model, all of whose weights are tuned on a device's own texts.

    The learning rate and the epoch are those of the least loss on its validation texts.
    """
    before, found = clone_state(reference), []
    for rate in _RATES:
        training = Training(epochs=_EPOCHS, batch_size=32, learning_rate=rate)
        reference.requires_grad_(True)
        draw = generator(seed, name, "whole")
        fit(GENERATION, reference, own.train, training, draw, validation=own.validation)
        loss = answered(GENERATION, reference.eval(), own.validation).found.loss
        found.append((loss, answered(GENERATION, reference, own.test).exact or 0.0))
        reference.load_state_dict(before)
    return min(found)[1]


def exact(summary: Summary) -> np.ndarray:
    """The devices' shares of exact answers."""
    return np.array([device.language.exact or 0.0 for device in summary.devices if device.language])


def measured(options: Namespace, seed: int) -> _Row:
    """One seed: exact answers and bytes by limit, and of whole models."""
    changes = benchmark_config("lm_bytes")
    shares = changes.pop("limits")
    settings = settings_of(options, seed)
    summary = None
    bare = load_language_model(settings["reference"]["checkpoint"])
    whole, rows, first = file_size(shapes_of(bare)), list[_Row](), None
    for share in shares:
        asked = changes | with_limit(settings, share, whole)
        path, summary = run_of(
            options, seed, f"limit-{share:g}", asked, first and same_cloud(first)
        )
        first = first or path
        size = float(np.mean([device.size_bytes for device in summary.devices]) / whole)
        rows.append({"limit": share, "bytes": size, "exact": float(exact(summary).mean())})
        rows[-1] |= {"shape": summary.clusters[0].variant.brief}
        print(f"seed {seed}  {rows[-1]}", flush=True)
    assert first is not None
    assert summary is not None
    world = load_world(Fleet.from_yaml(first / "fleet.yaml"))
    names = [device.name for device in summary.devices]
    reference = reference_of(first, world)
    device_tuned = [tuned(reference, world.private[name], name, seed) for name in names]
    public = {
        kind: {
            "bytes": float(np.mean([d.rivals[kind].size_bytes for d in summary.devices]) / whole),
            "exact": float(np.mean([d.rivals[kind].exact or 0.0 for d in summary.devices])),
        }
        for kind in summary.devices[0].rivals
        if kind.startswith("whole")
    }
    return {"limits": rows, "tuned": float(np.mean(device_tuned)), "public": public}


def smallest(one: _Row, exact_answers: float) -> float:
    """The least bytes of a limit's devices that are near these answers; 1 if none are."""
    near = [row["bytes"] for row in one["limits"] if row["exact"] >= exact_answers - _WITHIN]
    return min(near, default=1.0)


def main() -> None:
    options = read_options(__doc__)
    found = [measured(options, seed) for seed in range(options.seeds)]
    sizes = [smallest(one, one["public"]["whole, float32"]["exact"]) for one in found]
    bounds = [smallest(one, one["tuned"]) for one in found]
    for seed, one in enumerate(found):
        print(f"seed {seed}  whole {one['public']}, tuned on the device {one['tuned']:.3f}")
    print(f"bytes near the whole model that is tuned on the device's own texts too: {bounds}")
    write_benchmark(
        "lm_bytes",
        float(np.median(sizes)),
        (min(sizes), max(sizes)),
        {"seeds": found, "bytes near the one tuned on the device": bounds, **about(options)},
        seeds=list(range(options.seeds)),
    )


if __name__ == "__main__":
    main()
