"""Maps between hidden sizes: what they are fitted to, and what students learn through them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acme_fleet.cloud.objectives import (
    candidate_grid,
    candidate_quality,
    own_heads,
    sent_quality,
)
from acme_fleet.config.backbone import Backbone, Distillation
from acme_fleet.config.training import Training
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples
from acme_fleet.distillation import elastic as distillation
from acme_fleet.distillation.elastic import Lesson, distill, recovery_of, step_of, teach
from acme_fleet.distillation.maps import StateMaps, least_squares, pooled_vectors
from acme_fleet.models.backbone.elastic import Architecture
from acme_fleet.models.backbone.supernet import ElasticClassifier, Run
from acme_fleet.models.features import Classifier
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.probe import fit_probe
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

FEATURES = Lesson("features", logits=False)
MakeClassifier = Callable[..., Classifier]
MakeInputs = Callable[..., dict[str, Tensor]]


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 2), st.integers(0, 99))
def test_many_rows_of_a_linear_relation_give_it_back(
    mine: int, more: int, states: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(states * (mine + more), states * mine, generator=draw)
    x = torch.randn(400, states * mine, generator=draw)
    found = least_squares(x, x @ weight.T + 3, states)
    torch.testing.assert_close(found.weight, weight, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found(x), x @ weight.T + 3, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("states", [1, 2])
def test_rows_that_say_nothing_leave_each_channel_where_it_is(states: int) -> None:
    found = least_squares(torch.ones(5, 2 * states), torch.ones(5, 3 * states), states)
    expected = torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    expected = torch.block_diag(*[expected] * states)
    torch.testing.assert_close(found.weight, expected)
    torch.testing.assert_close(found(torch.ones(2 * states)), torch.ones(3 * states))


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_maps_bring_a_run_to_the_teachers_size(
    family: str, make_classifier: MakeClassifier, make_inputs: MakeInputs
) -> None:
    student, inputs = ElasticClassifier(make_classifier(family)), make_inputs(family)
    student.classifier.backbone.config.pooling = "first_mean"
    student.classifier.head = nn.Linear(32, 4)
    teacher, count = student.frozen_copy(), torch.ones(4, dtype=torch.int64)
    variants = [Variant(0.5, 2, 0.25), Variant(0.5, 2, 0.5), Variant(1.0, 3)]
    maps = StateMaps.fitted(teacher, student, variants, Samples(inputs, None, count))
    assert set(maps.states) == set(maps.pooled) == {"4", "8"}
    run = student.run(student.shape(variants[1]), inputs)
    lifted = maps.lifted(run)
    assert lifted.activations.pooled.shape[1] == 32
    assert {state.shape[2] for state in lifted.activations.hidden} == {16}
    assert lifted.activations.embeddings.shape[2] == 16
    assert lifted.logits is run.logits


@pytest.mark.parametrize("family", ["vit", "bert", "llama"])
@pytest.mark.parametrize("match", ["states", "features"])
def test_one_step_teaches_the_student_and_its_maps(
    family: str, match: str, make_classifier: MakeClassifier, make_inputs: MakeInputs
) -> None:
    student, inputs = ElasticClassifier(make_classifier(family)), make_inputs(family)
    teacher, cut = student.frozen_copy(), Variant(0.5, 2, 0.5)
    lesson = Lesson("features" if match == "features" else "states", logits=True)
    step = step_of(Distillation(), 0, [0.5], [2], lesson, hidden=[0.5])
    samples = Samples(inputs, None, torch.ones(4, dtype=torch.int64))
    maps = StateMaps.fitted(teacher, student, [cut], samples)
    loss = teach(CLASSIFICATION, teacher, student, step, inputs, [cut], maps)
    assert loss > 0
    (states,) = maps.states.values()
    assert states.weight.grad is not None
    assert states.weight.grad.any()
    gradients = [p.grad for p in student.classifier.parameters() if p.grad is not None]
    assert any(gradient.any() for gradient in gradients)
    head = student.classifier.head.weight.grad
    assert head is not None
    half = student.sizes.hidden // 2
    assert head[:, :half].any()
    assert not head[:, half:].any()


def test_in_the_second_step_a_states_teacher_is_as_narrow_as_its_student(
    make_classifier: MakeClassifier,
    make_samples: Callable[..., Samples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = ElasticClassifier(make_classifier())
    teacher, asked = student.frozen_copy(), set[Architecture]()
    original = teacher.run

    def seen(arch: Architecture, inputs: dict[str, Tensor]) -> Run:
        asked.add(arch)
        return original(arch, inputs)

    monkeypatch.setattr(teacher, "run", seen)
    monkeypatch.setattr(distillation.StateMaps, "fitted", None)  # none is needed
    step = step_of(Distillation(), 1, [0.5], [1], Lesson("states", logits=True), hidden=[0.5])
    training = Training(epochs=1)
    distill(CLASSIFICATION, teacher, student, step, make_samples(8), training, torch.Generator())
    assert asked == {teacher.shape(Variant(0.5, 3, 0.5))}


def trained(make_classifier: MakeClassifier, samples: Samples) -> ElasticClassifier:
    reference = make_classifier(layers=2)
    training = Training(epochs=20, batch_size=32, learning_rate=4e-3)
    fit(CLASSIFICATION, reference, samples, training, torch.Generator().manual_seed(0))
    return ElasticClassifier(reference)


def test_learning_without_labels_moves_every_hidden_size_towards_the_teacher(
    make_classifier: MakeClassifier, make_samples: Callable[..., Samples]
) -> None:
    """The candidates' loss without labels, and the accuracy of the classifier that is sent."""
    labelled, unseen = make_samples(256), make_samples(200, seed=1)
    student = trained(make_classifier, labelled)
    teacher = student.frozen_copy()
    assert evaluate(CLASSIFICATION, teacher.classifier, unseen).score > 0.6
    known, new = (Samples(s.inputs, None, s.stored_bytes) for s in (labelled, unseen))
    settings = Backbone(widths=[1.0], hidden=[0.5, 0.75, 1.0], depths=[2], precisions=("float32",))
    grid = candidate_grid(settings, student.classifier)

    def losses() -> Tensor:
        found = sent_quality(CLASSIFICATION, student, teacher, grid, new, lambda *_: None, known)
        return torch.from_numpy(found.losses)

    def accuracies() -> Tensor:
        nothing = lambda *_: None  # noqa: E731
        found = sent_quality(CLASSIFICATION, student, teacher, grid, unseen, nothing, labelled)
        return torch.from_numpy(found.scores)

    before = losses(), accuracies()
    step = step_of(Distillation(), 0, [1.0], [2], FEATURES, hidden=[0.5, 0.75])
    training = Training(epochs=15, batch_size=32, learning_rate=4e-3)
    draw = torch.Generator().manual_seed(0)
    distill(CLASSIFICATION, teacher, student, step, known, training, draw)
    after = losses(), accuracies()
    assert grid.variants[-1] == student.whole
    assert before[0][-1] == after[0][-1] == 0
    assert (after[0][:-1] < 0.85 * before[0][:-1]).all()
    assert after[1][0] > before[1][0]  # half of the hidden size; three quarters had it all
    assert after[1][1] > before[1][1] - 0.02
    # The classifier of whole vectors, cut, reads the wrong channels.
    bare = candidate_quality(CLASSIFICATION, student, grid, unseen, lambda *_: None)
    cut = [i for i, variant in enumerate(grid.variants) if variant.hidden < 1]
    assert bare.scores is not None
    assert after[1][cut].mean() > bare.scores[cut].mean()


def test_recovery_of_a_cut_backbone_alone(
    make_classifier: MakeClassifier, make_samples: Callable[..., Samples]
) -> None:
    samples, unseen = make_samples(256), make_samples(200, seed=1)
    student = trained(make_classifier, samples)
    teacher, cut = student.frozen_copy(), Variant(0.5, 1, 0.5)

    def accuracy() -> float:
        head = own_heads(fit_probe, student, [cut], samples, unseen)[cut]
        answers = head(pooled_vectors(student, cut, unseen)).argmax(dim=1)
        return float((answers == unseen.labels).float().mean())

    before = accuracy()
    training = Training(epochs=15, batch_size=32, learning_rate=4e-3)
    step = recovery_of(Distillation(), cut, FEATURES)
    draw = torch.Generator().manual_seed(0)
    distill(CLASSIFICATION, teacher, student, step, samples, training, draw)
    assert accuracy() > before + 0.05
