"""The searched header − the best hand-made one of its size, on cuts of a real reference.

``python -m acme_research.benchmarks.header_reference --data CIFAR100 --reference DINOV2-SMALL``

The cloud's part of a run is done once: 20 classes of CIFAR-100 at 56 pixels, 1,332 public images,
DINOv2-small fine-tuned on them and cut at three depths, the two smaller ones distilled. Five edge
servers then have 300 images each, none in common, and search on frozen features. Middle: the state
halfway takes the penultimate's place. Pre-trained: all headers, the linear one too, first learn
the public images; the search trains its shared weights on these, rewards are the edge's. All
choices are made on the edge's data, accuracy is that on all 2,000 test images. An edge server is
one observation; all have the same backbones, so the intervals do not say how references differ.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acme_fleet.cloud.server import CloudServer
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.header import Search
from acme_fleet.config.training import Training
from acme_fleet.cost.size import parameter_count
from acme_fleet.cost.variant import Variant
from acme_fleet.data.partition import World, load_world
from acme_fleet.data.samples import Samples, join
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.edge.comparison import Contest
from acme_fleet.edge.search import SearchData, split_shared_data
from acme_fleet.edge.search_space import SearchSpace
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.models.features import activations
from acme_fleet.models.header.by_hand import HAND_MADE, hand_made
from acme_fleet.models.header.module import LinearHeader
from acme_fleet.models.storage import read_tensors, write_tensors
from acme_fleet.runs.journal import Journal
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit
from acme_research.frame.intervals import mean_interval, text
from acme_research.frame.record import write_benchmark

DEPTHS, EDGES, AT_EDGE, GRID = (3, 6, 12), 5, 300, (4, 4)
PRETRAINING = Training(epochs=12, batch_size=32, learning_rate=2e-3)
SETTINGS = Search(steps=20, rivals=False)
LONGER = SETTINGS.model_copy(update={"steps": 60})  # with pre-training, which gives more samples
KINDS = ("linear", *HAND_MADE)
WAYS = ("fresh", "pre-trained")


def fleet_of(data: Path, reference: Path) -> Fleet:
    test, train, *_ = sorted(data.resolve().glob("*.parquet"))
    columns = {"source": "parquet", "image_column": "img", "label_column": "fine_label"}
    share = {"classes": 20, "public": 0.4, "edge_share": 0.15, "image_size": 56}
    partition = {"scheme": "pathological", "classes_per_device": 5}
    few = {"batch_size": 32}
    devices = [{"name": f"device-{n}", "storage": 150_000_000} for n in range(4)]
    return Fleet.parse(
        {
            "threads": 1,
            "data": {**columns, **share, "train": train, "test": test, "partition": partition},
            "reference": {
                "checkpoint": reference.resolve(),
                "training": {"epochs": 2, "learning_rate": 5e-5, **few},
            },
            "backbone": {
                "depths": [depth for depth in DEPTHS if depth < max(DEPTHS)],
                "widths": [1.0],
                "precisions": ["float32"],
                "distillation": {"training": {"epochs": 4, "learning_rate": 3e-4, **few}},
            },
            "clusters": [{"name": "hub", "devices": devices}],
        }
    )


def parts_of(world: World) -> dict[str, Samples]:
    private = [part for own in world.private.values() for part in (own.train, own.validation)]
    return {
        "public": world.public.train,
        "validation": world.public.validation,
        "edge": join([*world.shared.values(), *private]),
        "test": join([world.public.test, *(own.test for own in world.private.values())]),
    }


@torch.no_grad()
def features(fleet: Fleet, folder: Path) -> dict[str, Tensor]:
    """Frozen features of every cut and part, float16; made once, kept in ``folder``."""
    path = folder / "features.safetensors"
    if path.exists():
        return read_tensors(path)[0]
    folder.mkdir(parents=True, exist_ok=True)
    world, journal = load_world(fleet), Journal(folder / "events.jsonl")
    link, initial = EmbeddedLink("cloud", {}, journal, "cloud"), None
    initial = untrained_reference(fleet, world.public, world.classes)
    cloud = CloudServer(fleet, world.public, world.classes, {}, link, folder, journal, initial)
    with torch.enable_grad():
        _, elastic = cloud.prepare()
    found: dict[str, Tensor] = {}
    for depth in DEPTHS:
        whole = depth == max(DEPTHS)
        backbone = (
            cloud.backbones.whole.backbone
            if whole
            else elastic.extract(elastic.shape(Variant(1.0, depth)))
        ).eval()
        head = (cloud.backbones.whole if whole else elastic.classifier).head
        found |= {f"{depth}.head.{n}": v.detach().clone() for n, v in head.named_parameters()}
        for name, samples in parts_of(world).items():
            rows: dict[str, list[Tensor]] = {}
            for batch in samples.batches(128):
                run = activations(backbone, batch.inputs)
                states = {"penultimate": run.hidden[-2], "middle": run.hidden[depth // 2 - 1]}
                maps = {k: nn.functional.layer_norm(v, v.shape[-1:]) for k, v in states.items()}
                for key, tokens in {"last": run.final, **maps}.items():
                    rows.setdefault(key, []).append(tokens[:, 1:].half())
                rows.setdefault("pooled", []).append(run.pooled.half())
            found |= {f"{depth}.{name}.{key}": torch.cat(each) for key, each in rows.items()}
            found[f"{depth}.{name}.labels"] = samples.labels
    write_tensors(path, found, {})
    return found


class Cut:
    """Features of one cut; ``second`` is what headers read beside the last state."""

    def __init__(self, tensors: dict[str, Tensor], depth: int, second: str) -> None:
        self.tensors, self.depth, self.second = tensors, depth, second
        self.head = {part: tensors[f"{depth}.head.{part}"] for part in ("weight", "bias")}
        self.space = SearchSpace(
            blocks=2, cells=1, channels=32, hidden=384, classes=len(self.head["bias"]), axes=2
        )

    def part(self, name: str, rows: Tensor | None = None) -> Samples:
        def read(key: str) -> Tensor:
            values = self.tensors[f"{self.depth}.{name}.{key}"]
            return values if rows is None else values[rows]

        maps = {"last": read("last"), "penultimate": read(self.second)}
        maps = {k: v.float().transpose(1, 2).unflatten(2, GRID) for k, v in maps.items()}
        labels = read("labels")
        inputs = {**maps, "pooled": read("pooled").float()}
        return Samples(inputs, labels, torch.ones(len(labels), dtype=torch.int64))


def raced(cut: Cut, edge: int) -> dict[str, Any]:
    """Test accuracy, and that on the samples for the choice, of all headers on an edge's data."""
    draw = lambda *purpose: generator(edge, "header reference", *purpose)  # noqa: E731
    count = len(cut.tensors[f"{cut.depth}.edge.labels"])
    order = torch.randperm(count, generator=generator(0, "edges"))
    own = cut.part("edge", order[edge * AT_EDGE : (edge + 1) * AT_EDGE])
    public, validation, test = (cut.part(name) for name in ("public", "validation", "test"))
    data, frozen, found = split_shared_data(own, draw("split")), nn.Module(), {}
    for way in WAYS:
        contest = Contest(CLASSIFICATION, cut.head, cut.space, lambda _: True, data, SETTINGS)
        known, choice = contest.features(frozen)  # type: ignore[arg-type]
        if way == "fresh":
            contest = replace(contest, classifier=contest.start(frozen))  # type: ignore[arg-type]
        else:
            contest = replace(contest, data=SearchData(public, known, choice), settings=LONGER)
        start = time.process_time()
        proposal = contest.proposal("random", frozen, draw("search"), lambda *_: None)  # type: ignore[arg-type]
        seconds = time.process_time() - start
        room, rows = parameter_count(proposal.plan.shapes()), {}
        fresh = contest.fresh(proposal.plan, draw("fresh"))
        headers: dict[str, nn.Module] = {"searched": fresh if way == "fresh" else proposal.header}
        maps = tuple(known.inputs["last"].shape[1:])
        for kind in KINDS:
            linear = LinearHeader(contest.classifier) if kind == "linear" else None
            made = linear or hand_made(kind, contest.classifier, maps, room, draw(kind))  # type: ignore[arg-type]
            if made is None:
                continue
            if way == "pre-trained":
                learn = draw(kind, "public")
                fit(CLASSIFICATION, made, public, PRETRAINING, learn, validation=validation)
            headers[kind] = made
        for kind, header in headers.items():
            start = time.process_time()
            chosen = contest.fine_tune(header, known, choice, draw("fine-tuning"))
            took = time.process_time() - start
            accuracy = evaluate(CLASSIFICATION, header.eval(), test).score
            rows[kind] = {"test": accuracy, "choice": chosen.score, "loss": chosen.loss}
            rows[kind] |= {"seconds": took}
        rows["searched"] |= {"params": room, "header": proposal.plan.genotype.describe()}
        rows["searched"] |= {"search seconds": seconds, "evaluated": proposal.evaluated}
        found[way] = rows
    return found


def best_by_hand(rows: dict[str, Any]) -> float:
    """Test accuracy of the header that the edge would take."""
    return max((rows[k] for k in KINDS if k in rows), key=lambda r: (r["choice"], -r["loss"]))[
        "test"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/header_reference"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    tensors = features(fleet_of(given.data, given.reference), given.runs)
    details: dict[str, Any] = {}
    for depth in DEPTHS:
        for second in ("penultimate", *(["middle"] if depth < max(DEPTHS) else [])):
            cut, path = Cut(tensors, depth, second), given.runs / f"{depth}-{second}.json"
            edges = json.loads(path.read_text()) if path.exists() else []
            while len(edges) < EDGES:
                edges.append(raced(cut, len(edges)))
                path.write_text(json.dumps(edges))
            for way in WAYS:
                rows = [edge[way] for edge in edges]
                ours = [100 * row["searched"]["test"] for row in rows]
                rivals = {
                    "best hand-made": [100 * best_by_hand(row) for row in rows],
                    "linear": [100 * row["linear"]["test"] for row in rows],
                }
                told: dict[str, Any] = {"searched": mean_interval(ours, 2)}
                for name, theirs in rivals.items():
                    told[name] = mean_interval(theirs, 2)
                    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
                    told[f"searched - {name}"] = mean_interval(gaps, 2)
                details[f"depth {depth}, {second}, {way}"] = told | {"edges": rows}
                gap = text(told["searched - best hand-made"], 1, 1.0)
                means = ", ".join(
                    f"{name} {told[name]['mean']:.1f}" for name in ("searched", *rivals)
                )
                print(f"depth {depth}, {second}, {way}: {means}; − best: {gap}", flush=True)
    shallow = [
        told["searched - best hand-made"]
        for name, told in details.items()
        if not name.startswith(f"depth {max(DEPTHS)}") and name.endswith("penultimate, fresh")
    ]
    worst = min(shallow, key=lambda told: told["interval"][0])
    write_benchmark(
        name="header_reference",
        value=worst["interval"][0],
        unit="lower end of (searched - best hand-made), points of test accuracy, depth ≤ 0.5",
        better="higher",
        goal=0.0,
        rival="the best of linear, MLP, CNN and Mixer of equal size by the edge's own choice data",
        seeds=list(range(EDGES)),
        interval=tuple(worst["interval"]),
        details=details,
    )


if __name__ == "__main__":
    main()
