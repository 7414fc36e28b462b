"""The pair and the server of a distillation: the plan's choice, or the one that is asked for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from acme_fleet.errors import FleetError, RunError
from acme_fleet.outside import reading
from acme_fleet.runs.sealed import checksum, read_sealed_json, write_sealed_json
from acme_fleet.stratos.pairs import Pair, pairs_of
from acme_fleet.stratos.plan import Choice, Group, Plan, choose, make_plan
from acme_fleet.stratos.predictors.estimate import Estimate
from acme_fleet.stratos.relaxation import check_feasible
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.run_directory import (
    Chosen,
    Considered,
    DistillDirectory,
    Excluded,
    PlanKept,
    Prediction,
)

_MOST_OF_FRONT = 200


def choose_pair(request: Request, pair: str | None, server: str | None) -> Chosen:
    """The plan's pick among what is asked for.

    Args:
        request: the task. pair: its name as the plan shows it; the only feasible one by default.
        server: an instance or machine; the plan's pick by default.

    Raises:
        FleetError: if nothing is feasible, the pair is impossible, or several pairs are feasible,
            are not compared and none is named.
    """
    plan = make_plan(request)
    wanted = {each.name: each for each in plan.pairs}
    if pair is not None:
        if pair not in wanted:
            raise FleetError(f"--pair: there is no {pair!r}; choose one of {', '.join(wanted)}")
        if (why := wanted[pair].excluded) is not None:
            raise FleetError(f"--pair: {pair} is impossible: {why}")
    check_feasible(plan)
    feasible = plan.feasible.copy()
    if pair is not None:
        feasible &= np.array([each.name == pair for each in plan.possible])[:, None]
    if server is not None:
        feasible &= np.array([offer.instance == server for offer in plan.offers])
    groups = choose(request, plan.predictions, feasible)
    if not groups:
        raise FleetError(
            f"--pair, --server: {pair or 'no pair'} is not feasible on "
            f"{server or 'any server'}; `acme distill plan` shows what is"
        )
    if len(groups) > 1:
        names = ", ".join(repr(plan.possible[group.chosen.pair].name) for group in groups)
        raise FleetError(
            f"--pair: name one of {names}: their accuracy is not known, so that none is chosen"
        )
    return _chosen(request, plan, groups[0])


def _chosen(request: Request, plan: Plan, group: Group) -> Chosen:
    pair, server = group.chosen.pair, group.chosen.server
    of, offer, predicted = plan.possible[pair], plan.offers[server], plan.predictions

    def told(estimate: Estimate) -> Prediction:
        value, low, high = (
            float(each[pair, server]) for each in (estimate.value, estimate.low, estimate.high)
        )
        source = estimate.source(pair, server)
        return Prediction(value=value, low=low, high=high, source=source)

    pilot = of.student.pilot
    return Chosen(
        pair=of.name,
        teacher=of.teacher.name,
        student=of.student.name,
        by=of.by,
        server=offer.instance,
        provider=offer.provider,
        region=offer.region,
        zone=offer.zone,
        billing=offer.price.billing,
        accelerators=f"{offer.accelerator}:{offer.count}" if offer.accelerator else None,
        usd_per_hour=offer.price.amount,
        training_s=told(predicted.time),
        training_usd=told(predicted.training_usd),
        latency_s=told(predicted.latency),
        pilot=None if pilot is None else (pilot.correct, pilot.asked),
        data=data_checksums(request),
        plan=_kept(plan, group),
    )


def _kept(plan: Plan, group: Group) -> PlanKept:
    """The front with the best scores, and the numbers of what each limit excludes."""
    words: dict[tuple[int, int], list[str]] = {}
    best = sorted(group.front, key=lambda one: -one.score)[:_MOST_OF_FRONT]
    named = [("chosen", group.chosen), *group.rivals.items(), *(("front", one) for one in best)]
    rows = {}
    for name, one in named:
        place = one.pair, one.server
        words.setdefault(place, []).append(name)
        rows[place] = one
    memory = Excluded(
        limit="memory of the accelerator",
        bound=None,
        unit="",
        candidates=int((~plan.predictions.memory).sum()),
    )
    return PlanKept(
        impossible={one.name: one.excluded for one in plan.pairs if one.excluded is not None},
        candidates=plan.predictions.memory.size,
        feasible=int(plan.feasible.sum()),
        excluded=[memory]
        + [
            Excluded(
                limit=limit.name, bound=limit.bound, unit=limit.unit, candidates=int((~keeps).sum())
            )
            for limit, keeps in zip(plan.limits, plan.keeps, strict=True)
        ],
        considered=[_considered(plan, one, words[place]) for place, one in rows.items()],
        objectives=list(group.objectives),
    )


def _considered(plan: Plan, choice: Choice, words: list[str]) -> Considered:
    place, of, offer = (choice.pair, choice.server), plan.predictions, plan.offers[choice.server]
    accuracy = float(of.accuracy[choice.pair])
    return Considered(
        words=words,
        pair=plan.possible[choice.pair].name,
        server=offer.instance,
        region=offer.region,
        billing=offer.price.billing,
        usd_per_hour=offer.price.amount,
        accuracy=None if math.isnan(accuracy) else accuracy,
        latency_s=float(of.latency.value[place]),
        training_s=float(of.time.value[place]),
        cost_usd=float(of.cost.value[place]),
        score=choice.score,
    )


def data_checksums(request: Request) -> dict[str, str]:
    """Checksums of the files that decide the student and its marks.

    Raises:
        FleetError: if one cannot be read.
    """
    learning, data = request.learning, request.data
    paths: dict[str, Path | None] = {
        "data.test": data.test,
        "learning.replies": learning.replies,
        "learning.made": learning.made,
        "learning.replay": learning.replay,
    }
    found = {}
    for name, path in paths.items():
        if path is not None:
            with reading(f"{name}: cannot read {path}"):
                found[name] = checksum(path.read_bytes())
    return found


def kept_choice(
    run: DistillDirectory, request: Request, pair: str | None, server: str | None
) -> Chosen:
    """The choice that a run began with; made now where it has none.

    Raises:
        RunError: if another one is asked for, or the data have changed.
        FleetError: see :func:`choose_pair`.
    """
    if not run.choice.exists():
        return choose_pair(request, pair, server)
    found = read_sealed_json(run.choice, Chosen)
    for option, asked, known in (("--pair", pair, found.pair), ("--server", server, found.server)):
        if asked not in (None, known):
            raise RunError(f"{option}: {run.path} is a run of {known}; choose another --out")
    told = data_checksums(request)
    if changed := [name for name, value in told.items() if found.data[name] != value]:
        raise RunError(
            f"{', '.join(changed)}: the file is another than when {run.path} was begun; restore "
            f"it, or choose another --out"
        )
    return found


def keep_choice(run: DistillDirectory, chosen: Chosen) -> None:
    """Write the choice, if it is not there.

    Raises:
        WriteError: if it cannot be written.
    """
    if not run.choice.exists():
        write_sealed_json(run.choice, chosen.model_dump(mode="json"))


def pair_of(request: Request, chosen: Chosen) -> Pair:
    """The pair in the table.

    Raises:
        FleetError: if the table has it no more.
    """
    for pair in pairs_of(request):
        if (pair.name, pair.by, pair.excluded) == (chosen.pair, chosen.by, None):
            return pair
    raise FleetError(f"{request.pairs}: {chosen.pair} by {chosen.by} is not possible any more")
