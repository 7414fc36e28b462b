"""The work of a run, stage by stage, from its plan: what the time left is estimated by."""

from __future__ import annotations

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.inspection.plan import Plan
from acme_fleet.runs.forecast import Expected
from acme_fleet.tasks.registry import task_of

TRAINED = 3  # a step's operations over those of its forward pass
_PARTS = 4  # of an edge server's data, of which two are trained on
_PRECISIONS = 3  # at which a whole language model is measured
_SEARCH = "header search"


def expected_work(fleet: Fleet, plan: Plan) -> dict[str, Expected]:
    """Stages by the beginnings of their names, with the operations that they take.

    An operation here is a weight that one sample passes. Header stages are far from the speed of
    backbones, which is why :class:`~acme_fleet.runs.forecast.Forecast` measures each kind.

    Args:
        fleet, plan: of the run, before any training.
    """
    whole = plan.reference_bytes / 4
    sizes = [size / plan.reference_bytes for size in plan.sizes]
    middle = whole * min(1.0, sum(sizes) / len(sizes) * 4 / _mean_bytes(plan))
    train, validation, _ = plan.public_parts
    distilled = fleet.backbone.distillation
    students = 2 + distilled.random_subnetworks
    step = TRAINED * students * middle + whole  # the teacher passes a batch once
    epochs = distilled.training.epochs
    reference = fleet.reference.training.epochs
    shapes = {(v.width, v.depth, v.hidden) for v in plan.grid.variants}
    work = {
        "reference": Expected(1, TRAINED * whole * train * reference),
        "reordered": Expected(1, TRAINED * whole * min(train, fleet.backbone.importance_samples)),
        "width-elastic": Expected(1, step * train * epochs),
        "elastic": Expected(1, step * train * epochs),
        "candidate losses": Expected(1, middle * validation * len(plan.grid.variants)),
    }
    groups = len(fleet.clusters)
    if distilled.recovery is not None:
        epoch, trial = (TRAINED * middle + whole) * train, fleet.trial_epochs
        # A shape is trained once, however many clusters get it; the whole one is not.
        cut = max(1, len(shapes - {(1, max(v.depth for v in plan.grid.variants), 1)}))
        recovered = min(groups, cut)
        if rest := distilled.recovery.epochs - trial:
            work["recovered-"] = Expected(recovered, recovered * epoch * rest, until=_SEARCH)
        if trial:
            tried = min(groups * fleet.selection.finalists, cut)
            work["tried-"] = Expected(tried, tried * epoch * trial, until=_SEARCH)
    work |= _headers(fleet, plan, middle)
    if plan.holdings:
        tested = sum(own.test for own in plan.holdings.values())
        times = 1 if task_of(fleet.task).probe is not None else _PRECISIONS
        work["whole reference"] = Expected(1, whole * tested * times)
    if plan.holdings and task_of(fleet.task).probe is not None:
        samples = sum(own.train for own in plan.holdings.values())
        work["ten lines"] = Expected(1, whole * samples)
    return work


def _headers(fleet: Fleet, plan: Plan, backbone: float) -> dict[str, Expected]:
    """Searches and the devices' training, whose features are computed once."""
    header, search, settings = plan.header_weights, fleet.search, fleet.personalization
    groups, count = len(fleet.clusters), len(fleet.devices)
    held = sum(own.train for own in plan.holdings.values()) or count * 100
    shared = held * fleet.data.edge_share
    steps = search.steps * search.weight_updates_per_step * search.batch_size * groups
    judged = shared / _PARTS * (search.steps * search.children_per_step + search.final_samples)
    tuned = shared / 2 * search.fine_tuning.epochs
    passed = header * (TRAINED * (steps + tuned) + judged)
    tried = backbone * shared + passed
    sure = search.when == "always" or search.backbone_learning_rate > 0
    work = {_SEARCH: Expected(groups, tried, 0.0 if sure else passed)}
    if search.rivals:
        work["header rivals"] = Expected(groups, 3 * passed, 0.0 if sure else 3 * passed)

    def trained(training: Training) -> float:
        return TRAINED * header * held * training.epochs

    rounds = settings.rounds
    each = trained(settings.local)
    work["features"] = Expected(count, backbone * held, until="final model")
    work["round "] = Expected(rounds * count, rounds * each)
    work["fine-tuning"] = Expected(count, trained(settings.training(rounds)))
    work["final model"] = Expected(count, backbone * held / 2)
    if settings.rivals and plan.holdings:
        epochs = settings.training_in_all
        work["alone and FedAvg"] = Expected(groups, 2 * trained(epochs) + backbone * held)
    return work


def _mean_bytes(plan: Plan) -> float:
    """Bytes of a weight, in the mean of the candidates."""
    bytes_of = {"int4": 0.5, "int8": 1.0, "float16": 2.0, "float32": 4.0}
    return sum(bytes_of[each] for each in plan.grid.precisions) / len(plan.grid.precisions)
