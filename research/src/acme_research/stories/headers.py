"""The searched header against hand-made ones of its size, on one backbone (Fig. 7b, 8, 12)."""

from typing import Any

from matplotlib.axes import Axes
from torch import nn

from acme_fleet.config.header import Header as HeaderSpace
from acme_fleet.cost.size import file_size, parameter_count, shapes_of
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples, join
from acme_fleet.edge.comparison import Contest
from acme_fleet.edge.search import split_shared_data
from acme_fleet.models.features import feature_samples
from acme_fleet.models.header.by_hand import HAND_MADE, hand_made
from acme_fleet.models.header.module import LinearHeader
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_research.frame.bench import Bench
from acme_research.frame.drawing import level, line
from acme_research.frame.intervals import mean_interval
from acme_research.frame.probe import ON_PUBLIC

KINDS = ("searched", "linear", *HAND_MADE)
_ANY_SIZE = 2**50


def race(bench: Bench, width: float, depth: int) -> dict[str, dict[str, Any]]:
    """All headers on the backbone (w, d): public data in three parts, the whole test set."""
    return bench.piece(
        f"headers/w{width:g}-d{depth}", lambda: _race(bench, width, depth, KINDS, None)
    )


def searched(bench: Bench, width: float, depth: int, blocks: int, cells: int) -> dict[str, Any]:
    """The searched header alone, of another space."""
    space = bench.fleet.header.model_copy(update={"blocks": blocks, "cells": cells})
    name = f"headers/w{width:g}-d{depth}-B{blocks}-U{cells}"
    return bench.piece(name, lambda: _race(bench, width, depth, ("searched",), space))["searched"]


def _race(
    bench: Bench, width: float, depth: int, kinds: tuple[str, ...], space: HeaderSpace | None
) -> dict[str, dict[str, Any]]:
    backbone, public = bench.backbone(Variant(width, depth)), bench.world.public
    place = (f"w{width:g}", depth, str(space))
    contest = Contest.of(
        CLASSIFICATION,
        backbone,
        bench.classifier(),
        space or bench.fleet.header,
        bench.fleet.search,
        split_shared_data(join([public.train, public.validation]), bench.draw("split", *place[:2])),
        _ANY_SIZE,
    )
    known, choice = contest.features(backbone)
    test = feature_samples(backbone, bench.test)
    draw = bench.draw("search", *place)
    result = contest.proposal("random", backbone, draw, lambda *_: None)
    room = parameter_count(result.plan.shapes())
    found = {}
    for kind in kinds:
        header = _header(contest, kind, result.plan, known, room, bench, place)
        if header is None:
            continue
        tuned = contest.fine_tune(header, known, choice, bench.draw("fine-tuning", kind, *place))
        shapes = shapes_of(backbone, "backbone.") | shapes_of(header, "header.")
        found[kind] = {
            "test": evaluate(CLASSIFICATION, header, test).score,
            "choice": tuned.score,
            "params": parameter_count(shapes_of(header)),
            "size_bytes": file_size(shapes),
        }
    found["searched"] |= {"evaluated": result.evaluated, "header": result.plan.genotype.describe()}
    return found


def _header(
    contest: Contest, kind: str, plan: Any, known: Samples, room: int, bench: Bench, place: tuple
) -> nn.Module | None:
    """An untrained header; none where even the narrowest is larger than the searched one."""
    if kind == "searched":
        return contest.fresh(plan, bench.draw("fresh", *place))
    if kind == "linear":
        return LinearHeader(contest.classifier)
    maps = tuple(known.inputs["last"].shape[1:])
    return hand_made(kind, contest.classifier, maps, room, bench.draw(kind, *place))  # type: ignore[arg-type]


def best_hand_made(found: dict[str, dict[str, Any]]) -> str:
    """The hand-made header that would have been taken: by the samples for the choice."""
    return max((k for k in found if k != "searched"), key=lambda kind: found[kind]["choice"])


def accuracies(found: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Mean test accuracies over seeds, of the kinds that all seeds have."""
    kinds = [kind for kind in KINDS if all(kind in row for row in found)]
    return {kind: mean_interval([row[kind]["test"] for row in found]) for kind in kinds}


def draw_kinds(axes: Axes, told: dict[str, Any], probe: dict[str, Any] | None, label: str) -> None:
    """A line for each kind that all cells have, and the first rival of every run."""
    cells = sorted(told, key=float)
    for kind in KINDS:
        if all(kind in told[cell] for cell in cells):
            line(axes, [float(cell) for cell in cells], [told[cell][kind] for cell in cells], kind)
    level(axes, probe, ON_PUBLIC)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy, %")
