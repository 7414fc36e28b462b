"""A distillation that is interrupted after any epoch ends bit for bit as one that is not."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.cloud.server import CloudServer
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import DistillationStep, distill, distillation_loss
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.links.base import Failure, Link
from acme_fleet.messages.base import Message
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.features import Activations, Classifier
from acme_fleet.models.storage import clone_state, read_tensors, write_tensors
from acme_fleet.runs.journal import Journal, Observer, Progress
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.resume import EpochState

STEP = DistillationStep([0.5, 1.0], [1, 3], True, 1.0, 1.0, 1)
TRAINING = Training(epochs=4, batch_size=5, learning_rate=0.01)


class Interrupted(Exception):
    """Stands for a power cut."""


def stop_after(epochs: int) -> Progress:
    def on_epoch(done: int, total: int, note: str = "") -> None:
        if done == epochs:
            raise Interrupted

    return on_epoch


def jitter(batch: Samples, generator: torch.Generator) -> Samples:
    noise = torch.randn(batch.inputs["pixel_values"].shape, generator=generator)
    return Samples(
        {"pixel_values": batch.inputs["pixel_values"] + 0.1 * noise},
        batch.labels,
        batch.stored_bytes,
    )


def train(
    classifier: Classifier,
    samples: Samples,
    state: EpochState | None,
    stop: int = 0,
    step: DistillationStep = STEP,
) -> dict[str, Tensor]:
    student = ElasticClassifier(classifier)
    distill(
        CLASSIFICATION,
        student.frozen_copy(),
        student,
        step,
        samples,
        TRAINING,
        torch.Generator().manual_seed(3),
        augment=jitter,
        on_epoch=stop_after(stop),
        state=state,
    )
    return clone_state(classifier)


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("step", [STEP, replace(STEP, match="features", hidden=[0.5, 1.0])])
def test_stopped_after_any_epochs(
    step: DistillationStep,
    make_classifier: Callable[..., Classifier],
    make_samples: Callable[..., Samples],
    tmp_path: Path,
) -> None:
    """Maps between hidden sizes go on too."""
    samples = make_samples(12)
    whole = train(make_classifier(), samples, None, step=step)
    state = EpochState(tmp_path / "epochs.safetensors")
    for stop in (1, 3):
        with pytest.raises(Interrupted):
            train(make_classifier(), samples, state, stop, step)
    assert same(train(make_classifier(), samples, state, step=step), whole)
    assert same(train(make_classifier(), samples, state, step=step), whole)  # nothing is left to do
    state.remove()
    assert not list(tmp_path.iterdir())
    state.remove()


@pytest.mark.parametrize("damage", ["cut", "flipped", "older"])
def test_a_damaged_file_is_named_and_the_stage_done_anew(
    damage: str,
    make_classifier: Callable[..., Classifier],
    make_samples: Callable[..., Samples],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "epochs.safetensors"
    whole = train(make_classifier(), make_samples(6), EpochState(path))
    content = bytearray(path.read_bytes())
    match damage:
        case "cut":
            path.write_bytes(content[:1000])
        case "flipped":
            content[-5] ^= 4
            path.write_bytes(content)
        case "older":
            tensors, about = read_tensors(path)
            write_tensors(path, tensors, {**about, "step": 3})
    assert same(train(make_classifier(), make_samples(6), EpochState(path)), whole)
    assert "epochs.safetensors" in caplog.text
    assert "computed anew" in caplog.text


# --- the cloud server ---------------------------------------------------------------------------


class NoEdges(Link):
    def members(self) -> list[str]:
        return []

    def call(
        self, requests: Mapping[str, Message], reply: type[Message], timeout_s: float
    ) -> dict[str, Any | Failure]:
        return {}


class Stopper(Observer):
    """Interrupts a stage when it reports some progress."""

    def __init__(self, stage: str, done: int) -> None:
        self.at = stage, done

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        if (name, done) == self.at:
            raise Interrupted


def cloud(
    folder: Path, samples: Callable[..., Samples], observer: Observer | None, allocation: str
) -> CloudServer:
    folder.mkdir(exist_ok=True)
    training = {"epochs": 3, "batch_size": 8}
    settings = Fleet.model_validate(
        {
            "reference": {
                "model": {"hidden_size": 8, "layers": 3, "heads": 2, "neurons": 16},
                "training": training,
            },
            "backbone": {
                "widths": [0.5, 1.0],
                "depths": [1, 3],
                "allocation": allocation,
                "distillation": {"training": training, "logits_loss": "soft_cross_entropy"},
            },
            "clusters": [{"name": "edge", "devices": [{"name": "cam", "storage": 10**6}]}],
        }
    )
    public = Splits(samples(24, 0), samples(8, 1), samples(8, 2))
    journal = Journal(folder / "events.jsonl", observer)
    reference = untrained_reference(settings, public, list("abcd"))
    edges = NoEdges()
    return CloudServer(settings, public, list("abcd"), {}, edges, folder, journal, reference)


@pytest.mark.parametrize(
    ("stage", "allocation"), [("width-elastic", "uniform"), ("elastic", "global")]
)
def test_the_cloud_goes_on_inside_a_stage(
    stage: str, allocation: str, make_samples: Callable[..., Samples], tmp_path: Path
) -> None:
    _, whole = cloud(tmp_path / "whole", make_samples, None, allocation).prepare()
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        cloud(folder, make_samples, Stopper(stage, 2), allocation).prepare()
    assert (folder / f"{stage}-epochs.safetensors").exists()
    _, elastic = cloud(folder, make_samples, None, allocation).prepare()
    assert same(clone_state(elastic.classifier), clone_state(whole.classifier))
    assert elastic.shape(Variant(0.5, 3)) == whole.shape(Variant(0.5, 3))
    assert not list(folder.glob("*-epochs*"))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert sum(event.get("stage") == "reference" for event in events) == 1


# --- soft cross-entropy -------------------------------------------------------------------------


def constant_run(logits: Tensor) -> Run:
    zero = torch.zeros(len(logits), 2, 3)
    return Run(Activations(zero, (zero,), zero, zero[:, 0]), logits)


def test_soft_cross_entropy_by_hand() -> None:
    student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    loss = distillation_loss(
        CLASSIFICATION,
        constant_run(student),
        constant_run(teacher),
        [0],
        2.0,
        1.0,
        "soft_cross_entropy",
    )
    by_hand = -(teacher.softmax(1) * F.log_softmax(student, 1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, 2 * by_hand)
