"""Memory of a distillation step, counted on shapes, against what the allocator really gave."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from acme_fleet.config.backbone import Distillation
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.elastic import Lesson, sandwich, step_of, teach
from acme_fleet.inspection.footprint import expected_memory, step_bytes
from acme_fleet.inspection.plan import examine_whole
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.loop import Optimization
from tiny_fleet import tiny


def _samples(family: str, inputs: Callable[..., dict[str, Tensor]], count: int) -> Samples:
    return Samples(inputs(family, samples=count), None, torch.ones(count, dtype=torch.int64))


def _allocated_bytes(classifier: Classifier, inputs: dict[str, Tensor], trace: Path) -> int:
    """The peak of all tensors of two steps as the allocator's events tell, models included."""
    settings = Distillation()
    student = ElasticClassifier(copy.deepcopy(classifier).requires_grad_(True))
    teacher = student.frozen_copy()
    step = step_of(settings, 0, [0.5, 1.0], [student.sizes.layers], Lesson("features", logits=True))
    students = sandwich(step, torch.Generator().manual_seed(0))
    training = settings.training
    work = CLASSIFICATION, teacher, student, step, inputs, students
    for variant in students:
        student.skeleton(student.shape(variant))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        optimization = Optimization(student.classifier.parameters(), training, 2)
        for _ in range(2):
            teach(*work)
            optimization.step()
    now = most = sum(p.nbytes for m in (student, teacher) for p in m.classifier.parameters())
    seen.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    told = [event for event in events if event["name"] == "[memory]"]
    for event in sorted(told, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


@pytest.mark.parametrize("family", ["vit", "bert", "llama"])
def test_counted_bytes_are_those_that_are_allocated(
    family: str,
    make_classifier: Callable[..., Classifier],
    make_inputs: Callable[..., dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    classifier, count = make_classifier(family), 64
    samples = _samples(family, make_inputs, count)
    batch = {k: v for k, v in samples.inputs.items() if k != "attention_mask"}
    training = {"epochs": 1, "learning_rate": 0.001, "batch_size": count}
    fleet = tiny(**{"backbone.distillation.training": training})
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    counted = step_bytes(fleet, classifier, samples)
    allocated = _allocated_bytes(classifier, batch, tmp_path / "trace")
    # Shapes alone go another way through attention, one that keeps its matrices.
    assert 0.98 * allocated <= counted <= 1.35 * allocated
    after = classifier.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("family", ["dinov2", "siglip_vision_model", "modernbert", "gemma3_text"])
def test_families_are_counted(
    family: str,
    plain_backbone: Callable[..., PreTrainedModel],
    make_classifier: Callable[..., Classifier],
    make_inputs: Callable[..., dict[str, Tensor]],
) -> None:
    classifier = make_classifier(family)
    weights = sum(p.nbytes for p in classifier.parameters())
    one, many = (step_bytes(tiny(), classifier, _samples(family, make_inputs, n)) for n in (1, 32))
    assert 5 * weights <= one < many  # two models, gradients and two moments


def test_a_batch_in_parts_takes_less_memory() -> None:
    def needed(parts: int) -> int:
        training = {"epochs": 1, "learning_rate": 0.001, "batch_size": 64, "parts": parts}
        fleet = tiny(**{"backbone.distillation.training": training})
        seen = examine_whole(fleet)
        whole = expected_memory(fleet, seen)
        step = step_bytes(fleet, seen.reference, seen.world.public.train)
        assert whole > step + 10**8  # torch itself is there
        return step

    assert needed(4) < 0.5 * needed(1)
