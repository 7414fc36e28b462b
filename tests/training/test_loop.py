"""The training loop keeps what was best, and the evaluation is what it says."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples
from acme_fleet.tasks.base import Evaluation
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import Diverged, Optimization, fit, steps_of, warmup_cosine


class Linear(nn.Module):
    """Takes its input by name, with some dropout."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(5, 3), nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))


def make(count: int, seed: int = 0, shift: int = 0) -> Samples:
    """The class is the largest of the first three numbers, or the one ``shift`` after it."""
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    labels = (x[:, :3].argmax(dim=1) + shift) % 3
    return Samples({"x": x}, labels, torch.ones(count, dtype=torch.int64))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()]).clone()


PLAN = Training(epochs=5, batch_size=16, learning_rate=0.05)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- evaluation -------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 50))
def test_evaluation_equals_a_direct_computation(count: int, batch_size: int) -> None:
    module, samples = Linear(), make(count)
    result = evaluate(CLASSIFICATION, module, samples, batch_size)
    with torch.no_grad():
        logits = samples.inputs["x"] @ module.linear.weight.T + module.linear.bias
    truth = [float(-row.log_softmax(0)[y]) for row, y in zip(logits, samples.labels, strict=True)]
    right = [bool(row.argmax() == y) for row, y in zip(logits, samples.labels, strict=True)]
    assert result.loss == pytest.approx(sum(truth) / count, rel=1e-4)
    assert result.score == sum(right) / count


def test_better_is_more_accurate_then_less_loss() -> None:
    order = [
        Evaluation(1.0, 9, 10),
        Evaluation(5.0, 9, 10),
        Evaluation(1.0, 8, 10),
    ]
    for (i, one), (j, other) in itertools.product(enumerate(order), repeat=2):
        assert one.better_than(other) == (i < j)


# --- what is kept -----------------------------------------------------------------------------


def test_learns() -> None:
    module = Linear()
    before = evaluate(CLASSIFICATION, module, make(200, seed=1))
    fit(CLASSIFICATION, module, make(200), PLAN, seeded())
    after = evaluate(CLASSIFICATION, module, make(200, seed=1))
    assert after.score > 0.85 > before.score
    assert after.loss < before.loss
    assert not module.training


def test_keeps_the_best_epoch_by_validation() -> None:
    """The weights after each epoch are written down; those kept are the best of them."""
    module, validation = Linear(), make(60, seed=1)
    states = [weights(module)]
    results = [evaluate(CLASSIFICATION, module, validation)]

    def note(epoch: int, told: str) -> None:
        assert re.fullmatch(r"loss [\d.e+-]+, validation accuracy [\d.]+", told)
        states.append(weights(module))
        results.append(evaluate(CLASSIFICATION, module, validation))

    training = Training(epochs=6, batch_size=4, learning_rate=0.5)  # it jumps about
    fit(CLASSIFICATION, module, make(24), training, seeded(), validation=validation, on_epoch=note)
    best = 0
    for epoch in range(1, len(results)):
        if results[epoch].better_than(results[best]):
            best = epoch
    assert 0 < best < 6
    assert torch.equal(weights(module), states[best])
    # Without validation the last epoch's weights stay.
    again = Linear()
    fit(CLASSIFICATION, again, make(24), training, seeded())
    assert torch.equal(weights(again), states[6])


def test_keeps_the_first_weights_when_training_only_harms() -> None:
    """Trained on wrong labels, judged by right ones."""
    module = Linear()
    fit(CLASSIFICATION, module, make(200), PLAN, seeded())
    good = weights(module)
    fit(CLASSIFICATION, module, make(100, shift=1), PLAN, seeded(), validation=make(100, seed=1))
    assert torch.equal(weights(module), good)


def test_the_first_weights_are_judged_without_dropout() -> None:
    """A module that comes in training mode is not worse for it."""
    module = Linear(dropout=0.9)
    module.linear.weight.data = 10 * torch.eye(3, 5)
    module.linear.bias.data.zero_()
    perfect = weights(module)
    module.train()
    fit(CLASSIFICATION, module, make(100, shift=1), PLAN, seeded(), validation=make(100, seed=1))
    assert torch.equal(weights(module), perfect)
    assert not module.training


def test_trains_in_training_mode() -> None:
    modes = []
    module = Linear()
    module.dropout.register_forward_hook(lambda m, *_: modes.append(m.training))
    training = Training(epochs=2, batch_size=50)
    fit(CLASSIFICATION, module, make(100), training, seeded(), validation=make(10))
    assert modes == [False, True, True, False, True, True, False]


# --- determinism and hooks --------------------------------------------------------------------


def test_deterministic_by_generator() -> None:
    def trained(seed: int) -> Tensor:
        module = Linear()
        fit(CLASSIFICATION, module, make(100), PLAN, seeded(seed))
        return weights(module)

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_dropout_draws_from_the_generators_seed_alone() -> None:
    """Not from what the process has drawn before; and what it draws later is not changed."""
    training = Training(epochs=1, batch_size=16, learning_rate=0.05)

    def trained(dropout: float, seed: int, before: int) -> Tensor:
        module = Linear(dropout)
        with torch.random.fork_rng():
            torch.manual_seed(before)
            expected = torch.rand(3)
            torch.manual_seed(before)
            fit(
                CLASSIFICATION, module, make(16), training, seeded(seed)
            )  # a single batch: its order is nothing
            assert torch.equal(torch.rand(3), expected)
        return weights(module)

    assert torch.equal(trained(0.5, 0, before=1), trained(0.5, 0, before=2))
    torch.testing.assert_close(trained(0.0, 0, before=1), trained(0.0, 1, before=1))
    assert not torch.allclose(trained(0.5, 0, before=1), trained(0.5, 1, before=1))


def test_hooks_see_every_step_and_epoch() -> None:
    module, samples = Linear(), make(40)
    events: list[Any] = []

    def augment(batch: Samples, generator: torch.Generator) -> Samples:
        torch.rand(1, generator=generator)
        events.append(len(batch))
        return batch

    def after_backward() -> None:
        gradient = module.linear.weight.grad
        assert gradient is not None
        events.append("gradient" if gradient.any() else "none")

    fit(
        CLASSIFICATION,
        module,
        samples,
        Training(epochs=2, batch_size=16),
        seeded(),
        augment=augment,
        after_backward=after_backward,
        on_epoch=lambda n, _: events.append(f"epoch {n}"),
    )
    epoch = [16, "gradient", 16, "gradient", 8, "gradient"]
    assert events == [*epoch, "epoch 1", *epoch, "epoch 2"]


def test_gradients_do_not_pile_up_and_are_the_mean_over_the_batch() -> None:
    module, samples, seen = Linear(), make(10), []
    training = Training(epochs=2, batch_size=10, learning_rate=1e-9, weight_decay=0)

    def note() -> None:
        assert module.linear.weight.grad is not None
        seen.append(module.linear.weight.grad.clone())

    fit(CLASSIFICATION, module, samples, training, seeded(), after_backward=note)
    loss = nn.functional.cross_entropy(module(**samples.inputs), samples.labels)
    (expected,) = torch.autograd.grad(loss, [module.linear.weight])
    torch.testing.assert_close(seen, [expected, expected], rtol=1e-4, atol=1e-6)


# --- the optimisation -------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch", "steps"), [(64, 16, 12), (65, 16, 15), (3, 16, 3)])
def test_number_of_steps(count: int, batch: int, steps: int) -> None:
    assert steps_of(make(count), Training(epochs=3, batch_size=batch)) == steps


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = warmup_cosine(optimizer, steps=20)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert rates[11] == pytest.approx(1.0)  # halfway down the cosine
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert schedule.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)


def test_optimization_clips_and_clears_and_leaves_frozen_weights() -> None:
    free, frozen = torch.zeros(4, requires_grad=True), torch.ones(4)
    optimization = Optimization([free, frozen], PLAN, steps=3)
    norms = []
    optimization.optimizer.register_step_pre_hook(
        lambda *_: norms.append(free.grad.norm().item() if free.grad is not None else None)
    )
    (100 * free).sum().backward()
    optimization.step()
    assert norms == [pytest.approx(1.0)]
    assert free.grad is None
    assert (free < 0).all()
    assert torch.equal(frozen, torch.ones(4))


# --- training that diverges -------------------------------------------------------------------

WILD = Training(epochs=4, batch_size=16, learning_rate=1e30)


class Breaks(Linear):
    """Its answers are numbers until the ``good`` epochs of three batches are over."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.left = 3 * good

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.left -= 1
        return super().forward(x) * (float("nan") if self.training and self.left < 0 else 1.0)


@pytest.mark.parametrize("validated", [True, False])
def test_training_that_diverges_says_so_with_its_epoch(validated: bool) -> None:
    validation = make(20, 1) if validated else None
    with pytest.raises(Diverged, match=r"epoch [12] of 4: at a learning rate of 1e\+30"):
        fit(CLASSIFICATION, Linear(), make(48), WILD, seeded(), validation=validation)
    with pytest.raises(Diverged, match="in epoch 3 of 5"):
        fit(CLASSIFICATION, Breaks(2), make(48), PLAN, seeded(), validation=validation)


def test_last_step_that_leaves_no_numbers_is_noticed() -> None:
    """The loss of the last batch is still a number."""
    module = Linear()

    def spoil() -> None:
        module.linear.weight.grad = torch.full_like(module.linear.weight, float("nan"))

    one = Training(epochs=1, batch_size=48)
    with pytest.raises(Diverged, match="epoch 1 of 1"):
        fit(CLASSIFICATION, module, make(48), one, seeded(), after_backward=spoil)


def test_tolerant_training_ends_with_the_best_epoch_or_as_it_began() -> None:
    two = PLAN.model_copy(update={"epochs": 5})
    module, stopped = Breaks(2), Breaks(2)
    fit(CLASSIFICATION, module, make(48), two, seeded(), validation=make(20, 1), tolerant=True)
    assert weights(module).isfinite().all()
    assert evaluate(CLASSIFICATION, module, make(20, 1)).better_than(
        evaluate(CLASSIFICATION, Linear(), make(20, 1))
    )
    before = weights(stopped)
    fit(CLASSIFICATION, stopped, make(48), two, seeded(), tolerant=True)
    torch.testing.assert_close(weights(stopped), before)


def test_tolerance_changes_nothing_where_training_converges() -> None:
    modules = Linear(0.3), Linear(0.3)
    for module, tolerant in zip(modules, (False, True), strict=True):
        fit(CLASSIFICATION, module, make(48), PLAN, seeded(), tolerant=tolerant)
    assert torch.equal(weights(modules[0]), weights(modules[1]))


def test_answers_that_are_no_numbers_are_never_better() -> None:
    """All NaN is taken for class 0, whose share can be large."""
    nan, good = Evaluation(float("nan"), 9, 10), Evaluation(50.0, 1, 10)
    assert good.better_than(nan)
    assert not nan.better_than(good)
    assert not nan.better_than(nan)
    assert not Evaluation(float("inf"), 10, 10).better_than(good)
