"""Bytes for exact answers within 3 points of the whole fine-tuned model ÷ its float32 bytes.

``python -m acme_research.benchmarks.lm_bytes --data clinc150``: that of ``lm_personalise``, but
each cluster has the limit of one share of the whole model's bytes. A device's artifact is compared
with the fine-tuned reference, whole and in float32, on the device's own test prompts. Details have
the whole model rounded to int8 and int4, without a header: who cannot beat that should see it.
"""

from argparse import Namespace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from acme_fleet.config.devices import Precision
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.data.partition import World, load_world
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.messages.header_plan import smallest_genotype
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.backbone.precision import pack
from acme_fleet.models.features import Classifier
from acme_fleet.models.header.module import answering_as, build_header, initial_tensors
from acme_fleet.models.storage import backbone_from, config_document
from acme_fleet.seeding import generator
from acme_fleet.training.answers import exact_share, prompted
from acme_research.benchmarks.lm_fleet import about, read_options, run_of, settings_of
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import reference_of

SHARES = (0.28, 0.2, 0.15, 0.1, 0.07)
"""Limits, relative to the whole model in float32."""
_WITHIN = 0.03
_ROUNDED: tuple[Precision, ...] = ("int8", "int4")


def clusters_of(whole: int) -> list[dict[str, Any]]:
    """A cluster of two devices for each limit."""
    return [
        {
            "name": f"share-{number}",
            "devices": [
                {"name": f"device-{number}-{place}", "storage": round(share * whole)}
                | {"precisions": ["int4", "int8"]}
                for place in (1, 2)
            ],
        }
        for number, share in enumerate(SHARES)
    ]


def plainly(reference: Classifier, backbone: PreTrainedModel) -> AcmeForCausalLM:
    """A backbone with a header that adds nothing."""
    plan = reference.header_plan(smallest_genotype(1, 1, 1))
    tensors = answering_as(initial_tensors(plan.shapes(), generator(0, "none")), {})
    return AcmeForCausalLM.of(backbone, build_header(plan, tensors))


def whole_models(reference: Classifier, world: World, names: list[str]) -> dict[str, np.ndarray]:
    """Exact answers of the whole model on each device's test prompts, by precision."""
    backbone, found = reference.backbone, {}
    for precision in ("float32", *_ROUNDED):
        config = {**config_document(backbone), "precision": precision}
        own = backbone_from(config, pack(backbone.state_dict(), precision))
        model = plainly(reference, own)
        pairs = [prompted(world.private[name].test) for name in names]
        found[precision] = np.array([exact_share(model, each) or 0.0 for each in pairs])
    return found


def measured(options: Namespace, seed: int) -> dict[str, Any]:
    """One seed: exact answers of the whole model and, by limit, of the devices; and bytes."""
    settings = settings_of(options, seed)
    fleet = Fleet.parse(settings)
    world = load_world(fleet, [])
    bare = untrained_reference(
        fleet, world.public, world.classes, world.vocabulary, shape_alone=True
    )
    shapes = shapes_of(bare.backbone)
    whole = file_size(shapes)
    path, summary = run_of(options, seed, "limits", {"clusters": clusters_of(whole)})
    world = load_world(Fleet.from_yaml(path / "fleet.yaml"))
    names = [device.name for device in summary.devices]
    exact = whole_models(reference_of(path, world), world, names)
    rows = []
    for number, share in enumerate(SHARES):
        at = [i for i, name in enumerate(names) if name.startswith(f"device-{number}-")]
        devices = [summary.devices[i] for i in at]
        ours = np.mean([d.language.exact or 0.0 for d in devices if d.language])
        size = float(np.mean([d.size_bytes for d in devices]) / whole)
        row = {"limit": share, "bytes": size, "exact": float(ours)}
        rows.append(row | {"whole": float(exact["float32"][at].mean())})
    rounded = {
        kind: {"bytes": file_size(shapes, kind) / whole, "exact": float(exact[kind].mean())}
        for kind in _ROUNDED
    }
    return {"limits": rows, "whole": float(exact["float32"].mean()), "rounded": rounded}


def main() -> None:
    options = read_options(__doc__)
    found = [measured(options, seed) for seed in range(options.seeds)]
    smallest = []
    for seed, one in enumerate(found):
        near = [r["bytes"] for r in one["limits"] if r["exact"] >= r["whole"] - _WITHIN]
        smallest.append(min(near, default=1.0))
        print(f"seed {seed}  whole {one['whole']:.3f}  rounded {one['rounded']}")
        for row in one["limits"]:
            print(f"    {row}")
    write_benchmark(
        "lm_bytes",
        float(np.median(smallest)),
        (min(smallest), max(smallest)),
        {"seeds": found, **about(options)},
        seeds=list(range(options.seeds)),
    )


if __name__ == "__main__":
    main()
