"""A fleet's checkpoint, fine-tuned once on its public data, for many runs."""

from __future__ import annotations

import copy
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from acme_fleet.cloud.backbones import Backbones, Stage
from acme_fleet.config.backbone import Pooling
from acme_fleet.config.base import differences
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Splits
from acme_fleet.distillation.reference import check_reference, untrained_reference
from acme_fleet.errors import FleetError, RunError
from acme_fleet.models.fitted import About, write_fitted
from acme_fleet.models.pooling import pool_by
from acme_fleet.models.probe import probe_of
from acme_fleet.runs.atomic import make_folder
from acme_fleet.runs.locks import LOCK, held
from acme_fleet.runs.sealed import STRICT, read_marked_json, typed, write_marked_json
from acme_fleet.seeding import threads
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.evaluation import evaluate

RECORD, WORK = "reference.json", ".work"
_DECIDES = ("task", "seed", "threads", "accelerator", "compute", "data", "reference")


@dataclass(frozen=True)
class FineTuned:
    """A reference that is kept, on the public test data.

    Attributes:
        origin: ``fine-tuned``, or ``untouched`` where that was no better on validation data.
        pooling: of its features.
        accuracy: of its classifier.
        accuracy_untouched: of a regression on the untouched checkpoint's features.
        test_samples: of both.
    """

    __pydantic_config__ = STRICT

    origin: str
    pooling: Pooling
    accuracy: float
    accuracy_untouched: float
    test_samples: int


def make_reference(fleet: Fleet, out: Path, stage: Stage) -> FineTuned:
    """Fine-tune the fleet's checkpoint into a folder that ``reference.checkpoint`` takes.

    A folder that the same settings have made already is kept as it is. The text model's whole
    vocabulary stays: ``acme run`` cuts it.

    Args:
        fleet: its checkpoint, its public data, and its settings of the reference.
        out: the folder; new, empty, or begun with the same settings.
        stage: surrounds each stage of the work.

    Raises:
        FleetError: if there is no checkpoint, no labels, or a task without a probe.
        RunError: if the folder holds something else, or another process works in it.
        WriteError: if a file cannot be written.
    """
    checkpoint = fleet.reference.checkpoint
    if checkpoint is None:
        raise FleetError(
            "reference.checkpoint: there is none to fine-tune; name a pre-trained one, or train "
            "one from data alone with `acme pretrain`"
        )
    check_reference(fleet)
    backbone = fleet.backbone.model_copy(update={"vocabulary": None})
    fleet = fleet.with_paths_from(Path.cwd()).model_copy(update={"backbone": backbone})
    told = fleet.model_dump(mode="json")
    settings = {key: told[key] for key in _DECIDES}
    with held(out):
        if (known := _begun(out, settings)) is not None:
            return known
        world = load_world(fleet, [])
        if not world.public.labelled:
            raise FleetError(f"data.public: {fleet.data.public} has no labels to fine-tune on")
        write_marked_json(out / RECORD, {"settings": settings})
        make_folder(out / WORK)
        with threads(fleet.threads):
            result = _made(fleet, world.classes, out, stage, world.public)
        write_marked_json(out / RECORD, {"settings": settings, "result": asdict(result)})
        shutil.rmtree(out / WORK, ignore_errors=True)
    return result


def _made(fleet: Fleet, classes: list[str], out: Path, stage: Stage, public: Splits) -> FineTuned:
    settings, task = fleet.reference, task_of(fleet.task)
    assert settings.checkpoint is not None
    if task.probe is None:
        raise FleetError(f"task: {fleet.task} has no regression to start from")
    start = untrained_reference(fleet, public, classes)
    untouched = copy.deepcopy(start)
    found, model = Backbones(fleet, public, classes, out / WORK, stage, start).reference()
    pool_by(untouched.backbone, found.pooling)
    head, _ = probe_of(task.probe, untouched, public)
    untouched.head.load_state_dict(head)
    origin = "untouched" if found.origin == "untouched" else "fine-tuned"
    about = About(classes, found.pooling, origin)
    write_fitted(out, settings.checkpoint, settings.revision, model.cpu(), about)
    before, after = (evaluate(task, each, public.test) for each in (untouched, model))
    return FineTuned(origin, found.pooling, after.score, before.score, after.count)


def _begun(out: Path, settings: dict[str, Any]) -> FineTuned | None:
    """The result of a folder that is finished; none of an empty one, or one that goes on.

    Raises:
        RunError: if the folder holds something else.
    """
    path = out / RECORD
    if not path.exists():
        if any(entry.name != LOCK for entry in out.iterdir()):
            raise RunError(f"{out} is not an empty directory; choose another --out")
        return None
    content = read_marked_json(path)
    changes = list(differences(content.get("settings", {}), settings))
    if changes:
        other = "; ".join(changes[:3])
        raise RunError(f"{out} is of other settings ({other}); choose another --out")
    return typed(path, FineTuned, content["result"]) if "result" in content else None
