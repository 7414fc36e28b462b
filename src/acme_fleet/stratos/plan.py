"""The plan: servers and pairs, predicted cost and time, and reasons; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from acme_fleet.selection.front import exact_front
from acme_fleet.selection.ideal import (
    deployment_scores,
    random_pick,
    single_objective_pick,
    weighted_pick,
)
from acme_fleet.selection.limits import Limit, kept
from acme_fleet.stratos.pairs import Pair, pairs_of
from acme_fleet.stratos.predictors.duration import answer_latency, distillation_time
from acme_fleet.stratos.predictors.estimate import Estimate, stacked
from acme_fleet.stratos.predictors.memory import distillation_bytes, serving_bytes
from acme_fleet.stratos.predictors.size import weights_bytes
from acme_fleet.stratos.predictors.speeds import Speeds, read_calibrations, speeds_of
from acme_fleet.stratos.request import Limits, Request, Workload
from acme_fleet.stratos.servers.catalogue import (
    in_dollars,
    keep_known,
    keep_wanted,
    need_offers,
    read_catalogue,
)
from acme_fleet.stratos.servers.hardware import SHIPPED, read_hardware
from acme_fleet.stratos.servers.offer import Catalogue, Offer

OBJECTIVES = ("accuracy", "latency", "training_time", "cost")


@dataclass(frozen=True)
class Predictions:
    """Of each possible pair on each server; arrays have the shape ``(pairs, servers)``.

    Attributes:
        training_bytes, serving_bytes: peaks of memory.
        time: seconds of labels and training. latency: seconds to an answer.
        training_usd: of labels and training. cost: with the hours of serving.
        memory: true where both peaks fit the memory, the upper ends of their bars included.
        accuracy: measured share of each pair, shape ``(pairs,)``; NaN where it is not known.
    """

    training_bytes: Estimate
    serving_bytes: Estimate
    time: Estimate
    latency: Estimate
    training_usd: Estimate
    cost: Estimate
    memory: Bool[np.ndarray, "pairs servers"]
    accuracy: Float[np.ndarray, " pairs"]


@dataclass(frozen=True)
class Choice:
    """One pair on one server.

    Attributes:
        pair, server: numbers of the plan's possible pairs and offers.
        score: deployment score among what is feasible.
    """

    pair: int
    server: int
    score: float


@dataclass(frozen=True)
class Group:
    """Comparable candidates: all feasible candidates, or those of one pair.

    Attributes:
        pairs: numbers of the pairs. objectives: their names, in the order of the columns.
        feasible: number of candidates. front: those that no other dominates.
        chosen: the weighted pick. rivals: by name.
    """

    pairs: tuple[int, ...]
    objectives: tuple[str, ...]
    feasible: int
    front: tuple[Choice, ...]
    chosen: Choice
    rivals: dict[str, Choice]


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        catalogue: rows and reasons. offers: servers that are left.
        pairs: all, with reasons. possible: those without one.
        predictions: of the possible pairs.
        limits: the request's. values: of each limit, shape ``(limits, pairs, servers)``.
        upper: the same at the upper ends of the error bars.
        groups: choices; empty if nothing is feasible.
    """

    catalogue: Catalogue
    offers: list[Offer]
    pairs: list[Pair]
    possible: list[Pair]
    speeds: Speeds
    predictions: Predictions
    limits: list[Limit]
    values: Float[np.ndarray, "limits pairs servers"]
    upper: Float[np.ndarray, "limits pairs servers"]
    groups: list[Group]

    @property
    def keeps(self) -> Bool[np.ndarray, "limits pairs servers"]:
        """True where a limit is kept."""
        flat = self.values.reshape(len(self.limits), self.predictions.memory.size)
        return kept(flat, self.limits).reshape(self.values.shape)

    @property
    def feasible(self) -> Bool[np.ndarray, "pairs servers"]:
        """True where memory fits and all limits are kept."""
        return self.predictions.memory & self.keeps.all(axis=0)

    def at_risk(self, choice: Choice) -> list[Limit]:
        """Limits that the choice keeps, and the upper end of its error bar does not."""
        ends = kept(self.upper[:, choice.pair, choice.server, None], self.limits)[:, 0]
        return [limit for limit, keeps in zip(self.limits, ends, strict=True) if not keeps]


def make_plan(request: Request) -> Plan:
    """Read the lists and tables, predict, and choose.

    Raises:
        FleetError: if a file is wrong, no server is left, or no pair is possible.
    """
    hardware = read_hardware(*filter(None, (SHIPPED, request.hardware)))
    catalogue = read_catalogue(request.servers)
    in_dollars(catalogue, request.usd_per)
    keep_wanted(catalogue, request.regions, request.billing)
    own, by_name = read_calibrations(catalogue.offers, request.calibrations)
    keep_known(catalogue, hardware, by_name)
    offers = need_offers(catalogue)
    speeds = speeds_of(offers, hardware, own, by_name)
    workload = request.workload
    pairs = pairs_of(request)
    possible = [pair for pair in pairs if pair.excluded is None]
    prices = np.array([offer.price.amount for offer in offers])
    predictions = predict(possible, speeds, prices, workload)
    none = np.empty((0, *predictions.memory.shape))
    plan = Plan(catalogue, offers, pairs, possible, speeds, predictions, [], none, none, [])
    return decided(request, plan)


def decided(request: Request, plan: Plan) -> Plan:
    """The same predictions with the choices by a request's limits and weights."""
    prices = np.array([offer.price.amount for offer in plan.offers])
    limits, values = limit_values(request.limits, plan.predictions, prices)
    _, upper = limit_values(request.limits, plan.predictions, prices, upper=True)
    limited = replace(plan, limits=limits, values=values, upper=upper)
    return replace(limited, groups=choose(request, plan.predictions, limited.feasible))


def predict(
    pairs: Sequence[Pair],
    speeds: Speeds,
    usd_per_hour: Float[np.ndarray, " servers"],
    workload: Workload,
) -> Predictions:
    """Predict every pair on every server."""
    rows = [_predict_one(pair, speeds, workload) for pair in pairs]
    training, serving, time, latency = map(stacked, map(list, zip(*rows, strict=True)))
    usd = time.scaled(usd_per_hour / 3600, "USD")
    return Predictions(
        training_bytes=training,
        serving_bytes=serving,
        time=time,
        latency=latency,
        training_usd=usd,
        cost=usd.plus(usd_per_hour * workload.serving_hours),
        memory=(np.maximum(training.high, serving.high) <= speeds.memory_bytes),
        accuracy=np.array([_accuracy(pair) for pair in pairs]),
    )


def _accuracy(pair: Pair) -> float:
    pilot = pair.student.pilot
    return np.nan if pilot is None else pilot.correct / pilot.asked


def _predict_one(
    pair: Pair, speeds: Speeds, workload: Workload
) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """Bytes of training and of serving, seconds of training and of an answer."""
    student, teacher = pair.student.size, pair.teacher_size
    logits, precision = pair.by == "logits", workload.teacher_precision
    tokens = workload.prompt_tokens + workload.answer_tokens
    teacher_weights = weights_bytes(teacher, precision)
    trains = distillation_bytes(
        *(student, teacher, precision, workload.batch_size, tokens), logits=logits
    )
    labels = 0.0
    if not logits:
        labels = serving_bytes(teacher, teacher_weights, workload.label_batch, tokens)
    served = serving_bytes(student, pair.student.served_bytes, workload.concurrency, tokens)

    def peak(total: Float[np.ndarray, " servers"] | float) -> Estimate:
        value = total + speeds.start_bytes
        return Estimate(value, speeds.memory_error, speeds.calibrated, "bytes")

    return (
        peak(np.maximum(trains * speeds.memory_factor, labels)),
        peak(served),
        distillation_time(speeds, student, teacher, teacher_weights, workload, logits=logits),
        answer_latency(speeds, student, pair.student.served_bytes, workload),
    )


def limit_values(
    limits: Limits,
    predictions: Predictions,
    usd_per_hour: Float[np.ndarray, " servers"],
    *,
    upper: bool = False,
) -> tuple[list[Limit], Float[np.ndarray, "limits pairs servers"]]:
    """The limits that are given, and the value of each candidate that they bind.

    With ``upper`` they are the upper ends of the error bars.
    """
    shape = predictions.time.value.shape

    def end(estimate: Estimate) -> Float[np.ndarray, "pairs servers"]:
        return estimate.high if upper else estimate.value

    known = {
        "min_accuracy": (np.broadcast_to(predictions.accuracy[:, None], shape), ""),
        "max_p95_latency_ms": (1000 * end(predictions.latency), "ms"),
        "max_training_usd": (end(predictions.training_usd), "USD"),
        "max_usd_per_hour": (np.broadcast_to(usd_per_hour, shape), "USD/h"),
        "max_training_hours": (end(predictions.time) / 3600, "h"),
    }
    given = {name: bound for name in known if (bound := getattr(limits, name)) is not None}
    rows = [known[name][0] for name in given]
    return [
        Limit(name, known[name][1], bound, at_least=name.startswith("min"))
        for name, bound in given.items()
    ], np.array(rows, dtype=np.float64).reshape(len(given), *shape)


def choose(
    request: Request, predictions: Predictions, feasible: Bool[np.ndarray, "pairs servers"]
) -> list[Group]:
    """Fronts and choices: over all pairs if the accuracy of each is known, else within each pair.

    Accuracy is never guessed, so that pairs without a pilot cannot be compared with others.
    """
    pairs = np.flatnonzero(feasible.any(axis=1))
    if not pairs.size:
        return []
    if np.isfinite(predictions.accuracy[pairs]).all():
        return [_group(request, predictions, feasible, tuple(pairs.tolist()), OBJECTIVES)]
    return [
        _group(request, predictions, feasible, (pair,), OBJECTIVES[1:]) for pair in pairs.tolist()
    ]


def objective_table(
    predictions: Predictions, names: Sequence[str]
) -> Float[np.ndarray, "pairs servers objectives"]:
    """Objectives that are minimised: the share of wrong answers, seconds, US dollars."""
    shape = predictions.time.value.shape
    columns = {
        "accuracy": np.broadcast_to(1 - predictions.accuracy[:, None], shape),
        "latency": predictions.latency.value,
        "training_time": predictions.time.value,
        "cost": predictions.cost.value,
    }
    return np.stack([columns[name] for name in names], axis=-1)


def _group(
    request: Request,
    predictions: Predictions,
    feasible: Bool[np.ndarray, "pairs servers"],
    pairs: tuple[int, ...],
    names: tuple[str, ...],
) -> Group:
    """Front, weighted pick and rivals among the feasible candidates of some pairs."""
    of = np.zeros_like(feasible)
    of[list(pairs)] = feasible[list(pairs)]
    rows = np.argwhere(of)
    table = objective_table(predictions, names)[of]
    weights = [getattr(request.weights, name) for name in names]
    scores = deployment_scores(table, weights)

    def choice(row: int) -> Choice:
        return Choice(int(rows[row, 0]), int(rows[row, 1]), float(scores[row]))

    generator = np.random.default_rng(request.seed)
    rivals = {
        f"{name.replace('_', ' ')} first": choice(single_objective_pick(table, column))
        for column, name in enumerate(names)
        if name != "training_time"
    }
    return Group(
        pairs=pairs,
        objectives=names,
        feasible=len(rows),
        front=tuple(choice(row) for row in np.flatnonzero(exact_front(table)).tolist()),
        chosen=choice(weighted_pick(table, weights)),
        rivals=rivals | {"random": choice(random_pick(len(rows), generator))},
    )
