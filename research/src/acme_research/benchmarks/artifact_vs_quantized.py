"""The artefact that is chosen − the float32 pick at equal bytes, on a real reference.

``python -m acme_research.benchmarks.artifact_vs_quantized --data DATA --references REFERENCES``

DINOv2-small on 20 classes of CIFAR-100: one elastic backbone, a cluster for each limit. Ours
chooses among widths, hidden sizes, depths and precisions, the rival among the same in float32
alone. Both try three finalists and recover the choice. A regression on the public training data is
fitted to what each would ship, at its precision, and tested on the public test data. Beside them
stands the whole reference at the largest precision that fits.
"""

import argparse
import shutil
from statistics import fmean
from typing import Any

from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.data.partition import load_world
from acme_fleet.pipeline import assemble
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Journal
from acme_fleet.seeding import threads
from acme_research.frame.intervals import mean_interval, student_interval, text
from acme_research.frame.record import write_benchmark
from acme_research.frame.references import data_of, parser_on_references, probed
from acme_research.frame.settings import benchmark_config, changed

REFERENCE = "dinov2-small"
LIMITS = (12_000_000, 6_000_000, 3_000_000, 1_500_000)
ARMS = {"ours": ["int4", "int8", "float32"], "float32": ["float32"]}
CONFIG = benchmark_config("artifact_vs_quantized")
GRID = {axis: CONFIG["backbone"][axis] for axis in ("widths", "hidden", "depths")}


def fleet_of(seed: int, precisions: list[str], given: argparse.Namespace) -> Fleet:
    """A cluster of one device for each limit."""
    devices = [
        {"name": f"d-{limit}", "storage": limit, "precisions": ARMS["ours"]} for limit in LIMITS
    ]
    epochs = {"training": {"epochs": given.epochs}, "recovery": {"epochs": given.recovery}}
    own = {
        "seed": seed,
        "accelerator": given.accelerator,
        "threads": given.threads,
        "data": data_of(REFERENCE, given.data),
        "reference": {"checkpoint": given.references / REFERENCE},
        "backbone": {"precisions": precisions, "distillation": epochs},
        "clusters": [
            {"name": f"limit-{device['storage']}", "devices": [device]} for device in devices
        ],
    }
    return Fleet.parse(changed(CONFIG, own))


def chosen(seed: int, arm: str, given: argparse.Namespace) -> dict[str, Any]:
    """The choice of an arm at each limit: its bytes, and a regression on what it would ship."""
    fleet = fleet_of(seed, ARMS[arm], given)
    world, path = load_world(fleet), given.runs / f"{seed}-{arm}"
    begun = (path / "fleet.yaml").exists()
    run = RunDirectory.create(path, fleet, resume=begun)
    shared = given.runs / f"{seed}-ours" / "cloud"
    if arm != "ours" and not begun:  # the same reference and elastic backbone
        wanted = shutil.ignore_patterns("candidates.json", "tried-*", "recovered-*")
        shutil.copytree(shared, run.cloud, ignore=wanted)
    public = world.public
    parts = public.train, public.validation, public.test

    def accuracy(backbone: Any) -> float:
        place = backbone.eval().to(given.accelerator)
        return probed(place, backbone.config.pooling, parts, len(world.classes))

    found: dict[str, Any] = {}
    with threads(fleet.threads), LiveStages() as stages:
        cloud = assemble(fleet, world, run, Journal(run.events, stages))
        result, elastic = cloud.prepare()
        choices = cloud.match(elastic)

        def judged(variant: Variant) -> dict[str, Any]:
            row = cloud.grid.variants.index(variant)
            alone = cloud.backbones.recovered(elastic, variant)
            told = {"variant": str(variant), "bytes": int(choices[0].objectives[row, 2])}
            return told | {"accuracy": accuracy(alone.extract(alone.shape(variant)))}

        for choice in choices:
            found[str(choice.storage_bytes)] = judged(cloud.grid.variants[choice.selection.chosen])
        whole = Variant.whole(elastic.sizes.layers)
        found["whole"] = [judged(whole.at(each)) for each in fleet.backbone.precisions]
        found["origin"] = result.origin
    return found


def compared(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Both arms of a seed, limit by limit, in points of accuracy."""
    arms = {arm: chosen(seed, arm, given) for arm in ARMS}
    whole = arms["ours"]["whole"]
    rows = {}
    for limit in map(str, LIMITS):
        ours, theirs = (arms[arm][limit] for arm in ARMS)
        fits = [each["accuracy"] for each in whole if each["bytes"] <= int(limit)]
        rows[limit] = {
            "ours": ours,
            "float32": theirs,
            "difference": ours["accuracy"] - theirs["accuracy"],
            "- whole quantised": ours["accuracy"] - max(fits) if fits else None,
        }
        print(f"seed {seed}, {limit} bytes: {rows[limit]}", flush=True)
    mean = fmean(row["difference"] for row in rows.values())
    origin = arms["ours"]["origin"]
    return {"seed": seed, "origin": origin, "whole": whole, "limits": rows, "difference": mean}


def main() -> None:
    parser = parser_on_references(__doc__, "artifact_vs_quantized")
    parser.add_argument("--epochs", type=int, default=6, help="of each step of distillation")
    parser.add_argument("--recovery", type=int, default=15, help="epochs")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    rows = [compared(seed, given) for seed in given.seeds]
    by_limit = {
        limit: mean_interval([row["limits"][limit]["difference"] for row in rows])
        for limit in map(str, LIMITS)
    }
    for limit, told in by_limit.items():
        print(f"{limit} bytes: {text(told, 1, 1)} points")
    differences = [row["difference"] for row in rows]
    write_benchmark(
        "artifact_vs_quantized",
        fmean(differences),
        student_interval(differences),
        {"limits": by_limit, "grid": GRID, "runs": rows},
        seeds=given.seeds,
    )


if __name__ == "__main__":
    main()
