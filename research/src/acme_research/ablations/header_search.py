"""The gain of the header search: strategies, hand-made headers, joint training, shared weights.

``python -m acme_research.ablations.header_search digits [--seeds 5]`` or ``… cifar20 --data
PATH/TO/cifar100``. For each seed the cloud's part of ``examples/digits.yaml`` or ``cifar20.yaml``
is run once and kept in ``--out``. From the elastic backbone two are cut, a small and a large one,
each for one edge server with its own shared data. On each, every strategy searches with the same
budget, with the backbone frozen and with the backbone training along; linear and hand-made headers
of the searched header's size are trained in the same way on the same backbone. All choices are made
on the edge's data; accuracy is that on the whole test set. Beside them stands the first rival of
every run: the untouched reference, here the raw pixels, and a regression on the edge's data. A
seed's mean over its two backbones is one observation.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn
from transformers import PreTrainedModel

from acme_fleet.cloud.server import CloudServer
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.header import Header
from acme_fleet.cost.size import parameter_count
from acme_fleet.cost.variant import Variant
from acme_fleet.data.datasets import load_source
from acme_fleet.data.partition import distribute
from acme_fleet.data.samples import join
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.edge.comparison import STRATEGIES, Contest
from acme_fleet.edge.search import split_shared_data
from acme_fleet.edge.shared_weights import SharedWeights
from acme_fleet.edge.strategies import Fitting
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import feature_samples
from acme_fleet.models.header.by_hand import HAND_MADE
from acme_fleet.runs.journal import Journal
from acme_fleet.seeding import generator
from acme_fleet.simulation.probe_rival import Encoder
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_research.frame.intervals import mean_interval
from acme_research.frame.probe import Figures, fitted
from acme_research.frame.record import write_result
from acme_research.frame.runs import cifar20, digits, parser_of

BACKBONES = {"small": (0.25, 2), "large": (0.75, 4)}
SAMPLED = 20  # headers whose shared-weight reward is compared with training alone
ANY_SIZE = 2**40
JOINT_LEARNING_RATE = 1e-4
REGRESSION = "a regression on the edge's data"


def fleet_of(source: str, data: Path | None, seed: int) -> Fleet:
    if source == "digits":
        return digits(seed)
    assert data is not None, "cifar20 needs --data"
    return Fleet.parse(cifar20(data, seed))


class Seed:
    """One seed's elastic backbone, its edge servers' data and the whole test set."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        source = load_source(fleet.data)
        world = distribute(fleet, source)
        journal = Journal(folder / "events.jsonl")
        link = EmbeddedLink("cloud", {}, journal, "cloud")
        public, classes = world.public, world.classes
        reference = untrained_reference(fleet, public, classes)
        cloud = CloudServer(fleet, public, classes, {}, link, folder, journal, reference)
        _, self.elastic = cloud.prepare()
        self.fleet, self.test = fleet, source.test
        self.shared = dict(zip(BACKBONES, world.shared.values(), strict=False))

    def backbone(self, name: str) -> PreTrainedModel:
        elastic: ElasticClassifier = self.elastic
        shape = elastic.shape(Variant(*BACKBONES[name]))
        return elastic.extract(shape).requires_grad_(False).eval()

    def contest(self, name: str, header: Header | None = None, *, joint: bool) -> Contest:
        rate = JOINT_LEARNING_RATE if joint else 0.0
        settings = self.fleet.search.model_copy(update={"backbone_learning_rate": rate})
        head = self.elastic.classifier.head
        return Contest.of(
            CLASSIFICATION,
            self.backbone(name),
            {"weight": head.weight.detach(), "bias": head.bias.detach()},
            header or self.fleet.header,
            settings,
            split_shared_data(self.shared[name], self.draw(name, "split")),
            ANY_SIZE,
        )

    def draw(self, *purpose: str) -> torch.Generator:
        return generator(self.fleet.seed, "header search experiment", *purpose)

    def measured(self, header: nn.Module, backbone: PreTrainedModel, choice: float) -> dict:
        header.eval()
        test = evaluate(CLASSIFICATION, header, feature_samples(backbone, self.test)).score
        return {"test": round(test, 5), "choice": round(choice, 5)}


def strategies(seed: Seed, name: str) -> dict[str, dict[str, Any]]:
    """Every strategy, frozen and joint, and the hand-made headers beside each of the two."""
    found = {}
    for joint in (False, True):
        mode = "joint" if joint else "frozen"
        contest = seed.contest(name, joint=joint)
        sizes, ended = [], seed.backbone(name)
        for strategy in STRATEGIES:
            backbone, start = seed.backbone(name), time.perf_counter()
            draw = seed.draw(name, strategy)
            result = contest.proposal(strategy, backbone, draw, lambda *_: None)
            seconds = time.perf_counter() - start
            sizes.append(parameter_count(result.plan.shapes()))
            ended = backbone
            known, choice = contest.features(backbone)
            for origin, header in (
                ("shared", result.header),
                ("fresh", contest.fresh(result.plan, draw)),
            ):
                tuned = contest.fine_tune(header, known, choice, seed.draw(name, "fine-tuning"))
                found[f"{strategy}, {mode}, {origin}"] = {
                    **seed.measured(header, backbone, tuned.score),
                    "params": sizes[-1],
                    "search seconds": round(seconds, 2),
                    "evaluated": result.evaluated,
                    "header": result.plan.genotype.describe(),
                }
        header, contender = contest.linear(ended, seed.draw(name, "linear"))
        row = seed.measured(header, ended, contender.choice.score)
        found[f"linear, {mode}"] = {**row, "params": contender.params}
        for kind in HAND_MADE:
            made = contest.by_hand(kind, ended, max(sizes), seed.draw(name, kind))
            if made:
                row = seed.measured(made[0], ended, made[1].choice.score)
                found[f"{kind}, {mode}"] = {**row, "params": made[1].params}
    return found


def shared_against_alone(seed: Seed, name: str) -> dict[str, Any]:
    """Kendall's τ of the shared-weight reward with the accuracy after training alone."""
    contest, backbone = seed.contest(name, joint=False), seed.backbone(name)
    kept: list[SharedWeights] = []
    original = SharedWeights.__init__

    def remember(self: SharedWeights, *arguments: Any) -> None:
        original(self, *arguments)
        kept.append(self)

    SharedWeights.__init__ = remember  # type: ignore[method-assign]
    start = time.process_time()
    try:
        *_, contender = contest.search("random", backbone, seed.draw(name, "τ"), lambda *_: None)
    finally:
        SharedWeights.__init__ = original
    search_seconds = (time.process_time() - start) / contender.evaluated
    draw = seed.draw(name, "sampled")
    fitting = Fitting(contest.space, contest.fits)
    sampled: dict[tuple[int, ...], None] = {}
    while len(sampled) < SAMPLED:
        sampled[fitting.uniform(draw)] = None
    known, choice = contest.features(backbone)
    reward = feature_samples(backbone, contest.data.reward)
    test = feature_samples(backbone, seed.test)
    rewards, alone, seconds = [], [], []
    for decisions in sampled:
        plan = contest.space.plan(decisions)
        rewards.append(evaluate(CLASSIFICATION, kept[0].child(plan), reward).score)
        header = contest.fresh(plan, seed.draw(name, "fresh"))
        start = time.process_time()
        contest.fine_tune(header, known, choice, seed.draw(name, "alone"))
        seconds.append(time.process_time() - start)
        alone.append(evaluate(CLASSIFICATION, header, test).score)
    ranked: Any = stats.kendalltau(rewards, alone)
    return {
        # Constant rewards rank nothing.
        "tau": float(np.nan_to_num(ranked.statistic)),
        "rewards": rewards,
        "alone": [round(a, 5) for a in alone],
        "seconds alone": round(statistics.fmean(seconds), 4),
        "seconds per evaluated header": round(search_seconds, 4),
    }


def regression(seed: Seed, name: str) -> Figures:
    """The first rival of every run, on the parts that headers are trained and chosen on."""
    parts = seed.contest(name, joint=False).data
    known = join([parts.weights, parts.reward])
    return fitted(Encoder(None, None), known, parts.choice, seed.test, REGRESSION)


PARTS: dict[str, Callable[[Seed, str], Any]] = {
    "strategies": strategies,
    "shared weights": shared_against_alone,
    "probe": regression,
}


def run_seed(fleet: Fleet, folder: Path) -> dict[str, Any]:
    path = folder / "header_search.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    seed = None
    for part, work in PARTS.items():
        for name in BACKBONES:
            if name not in record.setdefault(part, {}):
                seed = seed or Seed(fleet, folder)
                start = time.perf_counter()
                record[part][name] = work(seed, name)
                path.write_text(json.dumps(record))
                took = time.perf_counter() - start
                print(f"seed {fleet.seed}, {part}, {name}: {took:.0f} s", flush=True)
    return {"seed": fleet.seed, **record}


def interval(values: Iterable[float]) -> dict[str, Any]:
    return mean_interval(list(values), 4)


def over_backbones(record: dict[str, Any], part: str, row: str, key: str) -> float:
    return statistics.fmean(record[part][name][row][key] for name in BACKBONES)


def best_by_choice(record: dict[str, Any], names: list[str]) -> float:
    """Test accuracy of whichever the edge would have taken, mean over the backbones."""
    taken = []
    for name in BACKBONES:
        rows = [
            record["strategies"][name][row] for row in names if row in record["strategies"][name]
        ]
        taken.append(max(rows, key=lambda row: row["choice"])["test"])
    return statistics.fmean(taken)


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = list(records[0]["strategies"]["small"])
    table = {}
    for row in rows:
        table[row] = {
            key: interval(over_backbones(r, "strategies", row, key) for r in records)
            for key in records[0]["strategies"]["small"][row]
            if key != "header"
        }

    def gap(ours: Callable[[Any], float], rival: Callable[[Any], float]) -> dict[str, Any]:
        return interval(100 * (ours(r) - rival(r)) for r in records)

    def of(row: str) -> Callable[[Any], float]:
        return lambda record: over_backbones(record, "strategies", row, "test")

    differences = {}
    for mode in ("frozen", "joint"):
        hand = [f"{kind}, {mode}" for kind in ("linear", *HAND_MADE)]
        for origin in ("shared", "fresh"):
            for strategy in STRATEGIES:
                row = f"{strategy}, {mode}, {origin}"
                differences[f"{row} - best hand-made"] = gap(
                    of(row), lambda r, hand=hand: best_by_choice(r, hand)
                )
                differences[f"{row} - linear"] = gap(of(row), of(f"linear, {mode}"))
                if strategy != "random":
                    differences[f"{row} - random"] = gap(of(row), of(f"random, {mode}, {origin}"))
    for strategy in STRATEGIES:
        start = f"{strategy}, frozen"
        differences[f"{start}: fresh - shared"] = gap(of(f"{start}, fresh"), of(f"{start}, shared"))
        differences[f"{strategy}, fresh: joint - frozen"] = gap(
            of(f"{strategy}, joint, fresh"), of(f"{start}, fresh")
        )
    probe = [over_backbones(r, "probe", "accuracy", REGRESSION) for r in records]
    shared = [r["shared weights"][name] for r in records for name in BACKBONES]
    return {
        "strategies": table,
        "probe, test accuracy": interval(probe),
        "differences in points of test accuracy": differences,
        "Kendall's tau, shared weights against alone": interval(s["tau"] for s in shared),
        "training alone / search, seconds per header": interval(
            s["seconds alone"] / s["seconds per evaluated header"] for s in shared
        ),
    }


def main() -> None:
    parser = parser_of(__doc__, "header_search")
    parser.add_argument("source", choices=["digits", "cifar20"])
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for number in range(arguments.seeds):
        fleet = fleet_of(arguments.source, arguments.data, number)
        records.append(run_seed(fleet, arguments.out / f"{arguments.source}-seed-{number}"))
    result = {"backbones (width, depth)": BACKBONES, **summarise(records)}
    print(json.dumps(result, indent=1))
    write_result(f"header_search_{arguments.source}", result | {"seeds": records})


if __name__ == "__main__":
    main()
