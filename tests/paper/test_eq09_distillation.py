"""Eq. 9: the loss by hand, the sandwich, and what distillation does to its two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.config.backbone import Distillation
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.distillation import elastic as distillation
from acme_fleet.distillation.elastic import (
    DistillationStep,
    Lesson,
    distill,
    distillation_loss,
    features_loss,
    lesson_of,
    recovery_of,
    relative_error,
    sandwich,
    step_of,
    teach,
)
from acme_fleet.models.backbone.elastic import Architecture, kept_layers
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.features import Activations, Classifier
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

LAYERS = 4
WHOLE = Variant.whole(LAYERS)
STEP = DistillationStep(
    widths=[0.25, 0.5, 1.0],
    depths=[1, 2, LAYERS],
    narrow_teacher=False,
    logits_weight=1.0,
    embeddings_weight=0.1,
    random_subnetworks=2,
)
SAME_WIDTH = DistillationStep(
    widths=STEP.widths,
    depths=STEP.depths,
    narrow_teacher=True,
    logits_weight=1.0,
    embeddings_weight=1.0,
    random_subnetworks=2,
)


def constant_run(logits: float, embeddings: float, hidden: list[float]) -> Run:
    """Every number of a tensor is the same."""
    tokens = torch.ones(2, 3, 5)
    observed = Activations(
        embeddings=embeddings * tokens,
        hidden=tuple(value * tokens for value in hidden),
        final=torch.full((2, 3, 5), 77.0),
        pooled=torch.full((2, 5), 99.0),
    )
    return Run(observed, torch.full((2, 4), logits))


@pytest.fixture
def pair(make_classifier: Callable[..., Classifier]) -> tuple[ElasticClassifier, ElasticClassifier]:
    """Teacher and student with the same weights."""
    student = ElasticClassifier(make_classifier(layers=LAYERS))
    return student.frozen_copy(), student


def state_of(model: ElasticClassifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.classifier.state_dict().items()}


# --- the loss ---------------------------------------------------------------------------------


def test_loss_by_hand() -> None:
    """3·1² + 5·2² + (1² + 2²)/2, the student's two layers standing for the teacher's 1 and 3."""
    student = constant_run(logits=1.0, embeddings=4.0, hidden=[11.0, 32.0])
    teacher = constant_run(logits=0.0, embeddings=6.0, hidden=[0.0, 10.0, 20.0, 30.0])
    loss = distillation_loss(
        CLASSIFICATION, student, teacher, (1, 3), logits_weight=3.0, embeddings_weight=5.0
    )
    assert loss.item() == pytest.approx(3 * 1 + 5 * 4 + (1 + 4) / 2)


def test_loss_is_a_mean_over_numbers_and_not_of_the_constant() -> None:
    """Differences that vary inside a tensor: the mean of squares, not the square of the mean."""
    teacher = constant_run(0.0, 0.0, [0.0])
    student = constant_run(0.0, 0.0, [0.0])
    student.logits[0, 0] = 2.0  # one of 8 numbers
    student.activations.embeddings[1, 2, 3] = 3.0  # one of 30
    student.activations.hidden[0][0, 0, 0] = -6.0
    loss = distillation_loss(CLASSIFICATION, student, teacher, (0,), 1.0, 1.0)
    assert loss.item() == pytest.approx(4 / 8 + 9 / 30 + 36 / 30)


def test_loss_refuses_a_map_of_another_length() -> None:
    run = constant_run(0.0, 0.0, [0.0, 0.0])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        distillation_loss(CLASSIFICATION, run, run, (0,), 1.0, 1.0)


def test_recovery_learns_from_the_whole_models_logits_alone(
    pair: tuple[ElasticClassifier, ElasticClassifier], make_inputs: Callable[..., Any]
) -> None:
    teacher, student = pair
    inputs, half = make_inputs("vit"), Variant(0.5, 2)
    parameters = list(student.classifier.parameters())
    teach(
        CLASSIFICATION,
        teacher,
        student,
        recovery_of(Distillation(), half, Lesson("states", logits=True)),
        inputs,
        [half],
    )
    found = [p.grad.clone() if p.grad is not None else None for p in parameters]
    student.classifier.zero_grad()
    whole = teacher.run(teacher.shape(WHOLE), inputs)
    F.mse_loss(student.run(student.shape(half), inputs).logits, whole.logits).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
    for mine, parameter in zip(found, parameters, strict=True):
        expected = parameter.grad
        assert (mine is None) == (expected is None)
        if mine is not None:
            torch.testing.assert_close(mine, expected)


def test_features_loss_by_hand() -> None:
    """Squared errors over the teacher's variance, channel by channel; no label, no logits."""
    tokens = torch.zeros(2, 2, 1)
    tokens[1] = 2.0  # variance 1
    teacher = Run(Activations(tokens, (tokens, 3 * tokens), tokens, tokens[:, 0]), torch.ones(2, 4))
    mine = Activations(tokens, (3 * tokens + 1.5,), tokens, tokens[:, 0] - 0.5)
    loss = features_loss(Run(mine, torch.zeros(2, 4)), teacher, (1,))
    assert loss.item() == pytest.approx(1.5**2 / 9 + 0.5**2)


@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_that_do_not_differ_teach_no_pooled_vector(rows: int) -> None:
    """They have no variance to measure an error by; the last batch may be one sample."""
    mine = torch.full((rows, 1, 4), 2.0, requires_grad=True)
    loss = relative_error(mine, torch.ones(rows, 1, 4), None)
    loss.backward()
    assert loss.item() == 0
    assert mine.grad is not None
    assert not mine.grad.any()


def test_a_last_batch_of_one_sample_spoils_nothing(
    make_classifier: Callable[..., Classifier], make_samples: Callable[..., Samples]
) -> None:
    student = ElasticClassifier(make_classifier(layers=LAYERS))
    teacher = student.frozen_copy()
    training = Training(epochs=1, batch_size=8, learning_rate=1e-3)
    step = step_of(Distillation(), 0, [0.5], [2], Lesson("features", logits=False))
    draw = torch.Generator().manual_seed(0)
    distill(CLASSIFICATION, teacher, student, step, make_samples(17), training, draw)
    assert all(bool(p.isfinite().all()) for p in student.classifier.parameters())


def test_learning_features_moves_towards_the_teacher_and_raises_the_probe(
    make_classifier: Callable[..., Classifier], make_samples: Callable[..., Samples]
) -> None:
    """Without a label; the probe is the teacher's own."""
    reference = make_classifier(layers=LAYERS)
    samples, unseen = make_samples(256), make_samples(200, seed=1)
    training = Training(epochs=20, batch_size=32, learning_rate=4e-3)
    fit(CLASSIFICATION, reference, samples, training, torch.Generator().manual_seed(0))
    assert evaluate(CLASSIFICATION, reference, unseen).score > 0.6
    student = ElasticClassifier(reference)
    teacher, arch = student.frozen_copy(), student.shape(Variant(0.25, LAYERS))
    unlabelled = Samples(samples.inputs, None, samples.stored_bytes)

    def found() -> tuple[float, float]:
        with torch.no_grad():
            run = student.run(arch, unseen.inputs)
            whole = teacher.run(teacher.shape(WHOLE), unseen.inputs)
            accuracy = (run.logits.argmax(dim=1) == unseen.labels).float().mean()
            return features_loss(run, whole, arch.layers).item(), accuracy.item()

    before = found()
    lesson = Lesson("features", logits=False)
    step = step_of(Distillation(), 0, [0.25], [LAYERS], lesson)
    distill(
        CLASSIFICATION,
        teacher,
        student,
        step,
        unlabelled,
        training,
        torch.Generator().manual_seed(0),
    )
    after = found()
    assert after[0] < 0.5 * before[0]
    assert after[1] > before[1] + 0.05


def test_a_checkpoint_teaches_features_and_what_the_run_trained_its_states() -> None:
    asked = Distillation()
    assert lesson_of(asked, "trained") == Lesson("states", logits=True)
    assert lesson_of(asked, "untouched") == Lesson("features", logits=False)
    assert lesson_of(asked, "fine-tuned") == Lesson("features", logits=True)
    states = asked.model_copy(update={"match": "states"})
    assert lesson_of(states, "untouched") == Lesson("states", logits=True)


def test_zero_for_a_student_that_is_its_teacher(
    pair: tuple[ElasticClassifier, ElasticClassifier], make_inputs: Callable[..., Any]
) -> None:
    teacher, student = pair
    whole, half = student.shape(WHOLE), student.shape(Variant(0.5, LAYERS))
    inputs = make_inputs("vit")
    lesson = teacher.run(whole, inputs)
    assert (
        distillation_loss(
            CLASSIFICATION, student.run(whole, inputs), lesson, whole.layers, 1.0, 1.0
        ).item()
        == 0
    )
    assert (
        distillation_loss(
            CLASSIFICATION, student.run(half, inputs), lesson, half.layers, 1.0, 1.0
        ).item()
        > 0
    )


# --- the students of a step -------------------------------------------------------------------


@given(
    widths=st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), min_size=1, unique=True),
    depths=st.lists(st.integers(1, 12), min_size=1, max_size=6, unique=True),
    hidden=st.lists(st.sampled_from([0.5, 0.75, 1.0]), min_size=1, unique=True),
    random=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_sandwich_always_has_the_largest_and_the_smallest(
    widths: list[float], depths: list[int], hidden: list[float], random: int, seed: int
) -> None:
    step = DistillationStep(widths, depths, True, 1.0, 1.0, random, hidden=hidden)
    students = sandwich(step, torch.Generator().manual_seed(seed))
    assert Variant(max(widths), max(depths), max(hidden)) in students
    assert Variant(min(widths), min(depths), min(hidden)) in students
    assert len(students) == len(set(students)) <= 2 + random
    assert all(s.width in widths and s.depth in depths and s.hidden in hidden for s in students)


def test_sandwich_draws_what_is_in_between_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 900
    seen = Counter(s for _ in range(draws) for s in sandwich(STEP, generator))
    largest, smallest = WHOLE, Variant(0.25, 1)
    assert seen.pop(largest) == seen.pop(smallest) == draws
    # Each of the other 7 of 9 is drawn with probability 1 - (6/7)² by two random students.
    expected = draws * (1 - (6 / 7) ** 2)
    assert len(seen) == 7
    assert all(abs(count - expected) < 5 * expected**0.5 for count in seen.values())


def test_sandwich_draws_as_often_as_limits_can_choose() -> None:
    """Three devices could have one cut, one of them another; the third, nobody (METHOD 13)."""
    generator, draws = torch.Generator().manual_seed(0), 1200
    small, large = Variant(0.5, 1), Variant(0.5, 2)
    chances = {Variant(0.25, 1): 3, small: 3, large: 1, Variant(1.0, 2): 0}
    step = replace(STEP, random_subnetworks=1, chances=chances)
    seen = Counter(s for _ in range(draws) for s in sandwich(step, generator))
    assert seen.pop(WHOLE) == seen.pop(Variant(0.25, 1)) == draws
    assert seen.keys() == {small, large}
    assert seen.total() == draws
    assert abs(seen[large] - draws / 4) < 5 * (draws / 4) ** 0.5


def test_a_width_is_drawn_at_full_depth_as_often_as_all_its_depths() -> None:
    chances = {Variant(0.5, 1): 3, Variant(0.5, 2): 1, Variant(0.25, 1): 4}
    step = step_of(
        Distillation(), 0, [0.25, 0.5], [LAYERS], Lesson("states", logits=True), chances=chances
    )
    assert step.chances == {Variant(0.5, LAYERS): 4, Variant(0.25, LAYERS): 4}


# --- distillation -----------------------------------------------------------------------------


def test_teacher_stays_and_smallest_student_learns(
    pair: tuple[ElasticClassifier, ElasticClassifier], make_samples: Callable[..., Any]
) -> None:
    teacher, student = pair
    before, start = state_of(teacher), state_of(student)
    held_out = make_samples(32, seed=1).inputs
    smallest, whole = student.shape(Variant(0.25, 1)), student.shape(WHOLE)

    @torch.no_grad()
    def loss() -> float:
        mine, lesson = student.run(smallest, held_out), teacher.run(whole, held_out)
        return distillation_loss(CLASSIFICATION, mine, lesson, smallest.layers, 1.0, 0.1).item()

    untrained = loss()
    training = Training(epochs=6, batch_size=16, learning_rate=1e-2)
    distill(
        CLASSIFICATION,
        teacher,
        student,
        STEP,
        make_samples(64),
        training,
        torch.Generator().manual_seed(0),
    )
    assert loss() < 0.7 * untrained
    after = state_of(teacher)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(not torch.equal(state_of(student)[name], value) for name, value in start.items())


def test_deterministic_by_generator(
    pair: tuple[ElasticClassifier, ElasticClassifier], make_samples: Callable[..., Any]
) -> None:
    teacher, first = pair
    other, third = (ElasticClassifier(first.frozen_copy().classifier) for _ in range(2))
    for student, seed in ((first, 0), (other, 0), (third, 1)):
        student.classifier.requires_grad_(True)
        random = torch.Generator().manual_seed(seed)
        training = Training(epochs=1, batch_size=16)
        distill(CLASSIFICATION, teacher, student, STEP, make_samples(32), training, random)
    weights = [
        torch.cat([v.flatten() for v in state_of(s).values()]) for s in (first, other, third)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_batches_go_to_the_weights_device(
    pair: tuple[ElasticClassifier, ElasticClassifier], make_samples: Callable[..., Any]
) -> None:
    """On torch's device without memory, that takes no tensor of another device."""
    for model in pair:
        model.classifier.to("meta")
    distill(
        CLASSIFICATION, *pair, SAME_WIDTH, make_samples(8), Training(epochs=1), torch.Generator()
    )
    fit(CLASSIFICATION, pair[1].classifier, make_samples(8), Training(epochs=1), torch.Generator())
    assert all(value.is_meta for value in pair[1].classifier.parameters())


@pytest.mark.parametrize(("step", "widths"), [(STEP, [1.0]), (SAME_WIDTH, [0.25, 0.5, 1.0])])
def test_teacher_runs_once_a_batch_for_each_width_that_is_asked(
    step: DistillationStep,
    widths: list[float],
    pair: tuple[ElasticClassifier, ElasticClassifier],
    make_samples: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four students of three widths: one lesson in the first step of Eq. 9, three in the second."""
    teacher, student = pair
    lessons: list[Architecture] = []
    original = teacher.run

    def counted(arch: Architecture, inputs: dict[str, Tensor]) -> Run:
        assert not torch.is_grad_enabled()
        lessons.append(arch)
        return original(arch, inputs)

    students = [WHOLE, Variant(0.25, 1), Variant(0.25, LAYERS), Variant(0.5, 2)]
    monkeypatch.setattr(teacher, "run", counted)
    monkeypatch.setattr(distillation, "sandwich", lambda *_: students)
    training = Training(epochs=2, batch_size=8)
    distill(
        CLASSIFICATION,
        teacher,
        student,
        step,
        make_samples(20),
        training,
        torch.Generator().manual_seed(0),
        augment=lambda batch, _: batch,  # or answers are remembered
    )
    batches = 2 * 3
    assert Counter(lessons) == {teacher.shape(Variant(width, LAYERS)): batches for width in widths}


def test_gradient_is_the_sum_over_students_matched_through_the_kept_layers(
    pair: tuple[ElasticClassifier, ElasticClassifier],
    make_samples: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step on the whole data equals the sum of losses written out with the layer map."""
    teacher, student = pair
    for parameter in student.classifier.parameters():
        parameter.data += 0.01  # or the largest student has nothing to learn
    seen: list[list[Tensor | None]] = []

    class Recorder:
        def __init__(self, parameters: Any, training: Training, steps: int, **_: Any) -> None:
            self.parameters = list(parameters)
            assert steps == 1

        def step(self) -> None:
            seen.append([p.grad for p in self.parameters])

    students = [WHOLE, Variant(0.25, 1), Variant(0.5, 2)]
    monkeypatch.setattr(distillation, "Optimization", Recorder)
    monkeypatch.setattr(distillation, "sandwich", lambda *_: students)
    samples, generator = make_samples(12), torch.Generator().manual_seed(0)
    distill(
        CLASSIFICATION,
        teacher,
        student,
        SAME_WIDTH,
        samples,
        Training(epochs=1, batch_size=12),
        generator,
    )
    (gradients,) = seen

    total = torch.zeros(())
    for variant in students:
        layers = kept_layers(variant.depth, LAYERS)
        assert variant.depth != 2 or layers == (1, 3)
        lesson = teacher.run(teacher.shape(replace(variant, depth=LAYERS)), samples.inputs)
        mine = student.run(student.shape(variant), samples.inputs)
        total = total + distillation_loss(CLASSIFICATION, mine, lesson, layers, 1.0, 1.0)
    expected = torch.autograd.grad(total, list(student.classifier.parameters()), allow_unused=True)
    for ours, theirs in zip(gradients, expected, strict=True):
        if theirs is None:
            assert ours is None or not ours.any()
        else:
            assert ours is not None
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_augmentation_reaches_teacher_and_student_alike(
    pair: tuple[ElasticClassifier, ElasticClassifier], make_samples: Callable[..., Any]
) -> None:
    """If only one of the two saw the change, the largest student would not be at zero loss."""
    teacher, student = pair
    seen: list[Tensor] = []
    embeddings = student.skeleton(student.shape(WHOLE)).get_submodule("embeddings")
    embeddings.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    start, epochs = state_of(student), []
    only_largest = DistillationStep([1.0], [LAYERS], True, 1.0, 1.0, 0)

    def augment(batch: Any, generator: torch.Generator) -> Any:
        noise = torch.randn(batch.inputs["pixel_values"].shape, generator=generator)
        return type(batch)({"pixel_values": noise}, batch.labels, batch.stored_bytes)

    distill(
        CLASSIFICATION,
        teacher,
        student,
        only_largest,
        make_samples(8),
        Training(epochs=2, batch_size=8, weight_decay=0),
        torch.Generator().manual_seed(0),
        augment=augment,
        on_epoch=lambda done, total, note="": epochs.append((done, total)),
    )
    assert epochs == [(1, 2), (2, 2)]
    assert len(seen) == 2
    assert not torch.allclose(seen[0], seen[1])  # drawn anew, also unlike the data
    assert not torch.allclose(
        seen[0].std(), make_samples(8).inputs["pixel_values"].std(), rtol=0.02
    )
    assert all(torch.equal(state_of(student)[name], value) for name, value in start.items())
