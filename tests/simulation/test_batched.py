"""Devices trained together: the numbers of one after another, whatever their data and headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import pytest
import torch

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.device.refinement import HeaderState, LocalTraining, prune_header, train_header
from acme_fleet.messages.header_plan import MORE_OPERATIONS, Block, Genotype, HeaderPlan, Operation
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import Header, build_header, initial_tensors
from acme_fleet.models.header.unpruned import expand, presence, shrink, unpruned
from acme_fleet.simulation.batched import train_headers
from acme_fleet.simulation.stacked import split_vectors, stacked_logits
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate

HIDDEN, CLASSES = 6, 4
TRAINING = Training(epochs=3, batch_size=8, learning_rate=0.02)
CELLS: list[tuple[tuple[int, int], tuple[Operation, Operation]]] = [
    ((0, 1), ("conv3", "avg_pool")),
    ((2, 0), ("downsample", "max_pool")),
    ((1, 2), ("conv5", "identity")),
]


def header(axes: Literal[1, 2], seed: int, cells: int = 1) -> Header:
    blocks = tuple(Block(inputs=inputs, operations=operations) for inputs, operations in CELLS)
    genotype = Genotype(blocks=blocks, cells=cells, channels=5)
    plan = HeaderPlan(genotype=genotype, hidden=HIDDEN, classes=CLASSES, axes=axes)
    return build_header(plan, initial_tensors(plan.shapes(), torch.Generator().manual_seed(seed)))


def samples(count: int, axes: int, seed: int) -> Samples:
    """Features of texts have a mask; some are shorter than others."""
    generator = torch.Generator().manual_seed(seed)
    grid = (4,) * axes
    labels = torch.randint(CLASSES, (count,), generator=generator)
    shift = labels.view(-1, 1, *(1 for _ in grid)).float()
    inputs = {
        name: torch.randn(count, HIDDEN, *grid, generator=generator) + shift
        for name in ("last", "penultimate")
    }
    inputs["pooled"] = torch.randn(count, HIDDEN, generator=generator)
    if axes == 1:
        lengths = torch.randint(1, 5, (count, 1, 1), generator=generator)
        mask = torch.arange(4) < lengths
        inputs = {name: x * mask if x.ndim == 3 else x for name, x in inputs.items()}
        inputs["mask"] = mask
    return Samples(inputs, labels, torch.ones(count, dtype=torch.int64))


def device(number: int, axes: Literal[1, 2], *, pruned: bool) -> LocalTraining:
    """Devices differ in how much data they have: a part of a batch up to several."""
    own = header(axes, seed=number % 2)
    if pruned:
        random = torch.Generator().manual_seed(number)
        channels = own.plan.genotype.channels
        scores = {name: torch.rand(channels, generator=random) for name in own.plan.layers}
        own = prune_header(own, ImportanceSet.of(scores), 0.15 * number)
    parts = (samples(n, axes, seed) for seed, n in enumerate((5 + 9 * number, 3 + number, 1)))
    return LocalTraining(own, Splits(*parts), torch.Generator().manual_seed(number))


@pytest.mark.parametrize("to_mix", [False, True])
@pytest.mark.parametrize(("axes", "pruned"), [(1, False), (2, False), (1, True), (2, True)])
def test_together_is_one_by_one(axes: Literal[1, 2], pruned: bool, to_mix: bool) -> None:
    def fleet() -> list[LocalTraining]:
        return [device(number, axes, pruned=pruned) for number in (2, 0, 3, 1)]

    together = list(train_headers(CLASSIFICATION, fleet(), TRAINING, together=3, to_mix=to_mix))
    for one, (trained, importance) in zip(fleet(), together, strict=True):
        expected, expected_importance = train_header(
            CLASSIFICATION, one.header, one.features, TRAINING, one.generator, to_mix=to_mix
        )
        assert trained.plan == expected.plan
        torch.testing.assert_close(
            trained.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-5
        )
        assert importance.is_close(expected_importance, rtol=1e-3, atol=1e-7)
        before = one.header.state_dict()
        assert any(not torch.equal(value, before[n]) for n, value in trained.state_dict().items())


def test_a_header_to_be_mixed_learns_on_when_its_own_validation_says_no() -> None:
    one = device(1, 1, pruned=False)
    known = one.features.train
    wrong = dataclasses.replace(known, labels=(known.labels + 1) % CLASSES)
    features = dataclasses.replace(one.features, validation=wrong)
    before = evaluate(CLASSIFICATION, one.header, known).loss

    def trained(to_mix: bool) -> float:
        found, _ = train_header(
            CLASSIFICATION,
            one.header,
            features,
            TRAINING,
            torch.Generator().manual_seed(0),
            to_mix=to_mix,
        )
        return evaluate(CLASSIFICATION, found, known).loss

    assert trained(True) < 0.8 * before < trained(False)


def test_the_header_that_was_given_stays_as_it_was() -> None:
    one = device(1, 1, pruned=False)
    before = {name: value.clone() for name, value in one.header.state_dict().items()}
    list(train_headers(CLASSIFICATION, [one], TRAINING))
    torch.testing.assert_close(one.header.state_dict(), before, rtol=0, atol=0)


def test_devices_are_taken_only_as_they_are_needed() -> None:
    taken = []

    def fleet() -> Iterator[LocalTraining]:
        for number in range(5):
            taken.append(number)
            yield device(number, 1, pruned=False)

    results = train_headers(CLASSIFICATION, fleet(), TRAINING, together=2)
    next(results)
    assert taken == [0, 1]


def test_different_genotypes_are_refused() -> None:
    one, two = device(0, 1, pruned=False), device(1, 1, pruned=False)
    other = LocalTraining(header(1, seed=0, cells=2), two.features, two.generator)
    with pytest.raises(ValueError, match="different genotypes"):
        list(train_headers(CLASSIFICATION, [one, other], TRAINING))


@pytest.mark.parametrize("axes", [1, 2])
def test_a_pruned_header_in_the_places_of_the_unpruned_one(axes: Literal[1, 2]) -> None:
    own = device(3, axes, pruned=True)
    tensors = expand(own.header.plan, own.header.state_dict())
    full = build_header(unpruned(own.header.plan), tensors)
    inputs = own.features.train.inputs
    assert own.header.plan.neurons < full.plan.neurons
    torch.testing.assert_close(full(**inputs), own.header(**inputs))
    back = shrink(own.header.plan, tensors)
    torch.testing.assert_close(back.state_dict(), own.header.state_dict(), rtol=0, atol=0)
    present = presence(own.header.plan)
    assert sum(int(p.sum()) for p in present.values()) == sum(
        p.numel() for p in own.header.parameters()
    )


def test_vectors_are_split_by_the_plans_order() -> None:
    plan = header(1, seed=0).plan
    total = sum(t.numel() for t in header(1, seed=0).state_dict().values())
    rows = torch.arange(2.0 * total).view(2, total)
    pieces = split_vectors(plan, rows)
    assert {name: tuple(piece.shape[1:]) for name, piece in pieces.items()} == plan.shapes()
    torch.testing.assert_close(
        torch.cat([piece.flatten(1) for piece in pieces.values()], dim=1), rows
    )


@pytest.mark.parametrize("to_mix", [False, True])
def test_device_whose_training_diverges_ships_numbers_and_disturbs_nobody(to_mix: bool) -> None:
    """One device's features are so large that its weights overflow; it keeps what it had."""
    wild = Training(epochs=2, batch_size=8, learning_rate=0.02)
    good = [Splits(*(samples(n, 1, n) for n in (24, 10, 5))) for _ in range(2)]
    bad = [
        Splits(
            *(
                Samples(
                    {k: v if k == "mask" else v * 1e38 for k, v in of.inputs.items()},
                    of.labels,
                    of.stored_bytes,
                )
                for of in (good[0].train, good[0].validation, good[0].test)
            )
        )
    ]
    data = [good[0], *bad, good[1]]
    work = [
        LocalTraining(header(1, seed), own, torch.Generator().manual_seed(seed))
        for seed, own in enumerate(data)
    ]
    results = list(train_headers(CLASSIFICATION, work, wild, to_mix=to_mix))
    alone = train_header(
        CLASSIFICATION, header(1, 1), bad[0], wild, torch.Generator().manual_seed(1), to_mix=to_mix
    )
    for trained, importance in (*results, alone):
        assert all(bool(v.isfinite().all()) for v in trained.state_dict().values())
        assert importance.finite()
        assert importance.total() > 0
    assert results[1][1] == alone[1]
    for number in (0, 2):
        one, _ = train_header(
            CLASSIFICATION,
            header(1, number),
            data[number],
            wild,
            torch.Generator().manual_seed(number),
            to_mix=to_mix,
        )
        torch.testing.assert_close(
            dict(one.state_dict()), dict(results[number][0].state_dict()), rtol=1e-3, atol=1e-4
        )
    start = header(1, 1).state_dict()
    torch.testing.assert_close(dict(results[1][0].state_dict()), dict(start))
    torch.testing.assert_close(dict(alone[0].state_dict()), dict(start))


def test_a_header_without_numbers_is_never_the_best() -> None:
    """NaN is taken for class 0: here every answer would be right."""
    validation = samples(10, 1, 0)
    zeros = Samples(validation.inputs, torch.zeros_like(validation.labels), validation.stored_bytes)
    coarse = header(1, 0)
    state = HeaderState(coarse, coarse, evaluate(CLASSIFICATION, coarse, zeros))
    broken = header(1, 0)
    for parameter in broken.parameters():
        parameter.data.fill_(float("nan"))
    assert evaluate(CLASSIFICATION, broken, zeros).score == 1.0
    after = state.with_current(CLASSIFICATION, broken, zeros)
    assert after.best is state.best
    assert after.best_evaluation == state.best_evaluation


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("operation", MORE_OPERATIONS)
def test_operations_beside_the_papers_are_the_same_for_many(
    operation: Operation, axes: Literal[1, 2]
) -> None:
    """Logits of two devices' own headers, and gradients of all their tensors."""
    block = Block(inputs=(0, 1), operations=(operation, operation))
    genotype = Genotype(blocks=(block,), cells=2, channels=5)
    plan = HeaderPlan(genotype=genotype, hidden=HIDDEN, classes=CLASSES, axes=axes)
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    drawn = [{n: torch.randn(s, generator=g) for n, s in plan.shapes().items()} for g in draws]
    own, data = [build_header(plan, each) for each in drawn], samples(6, axes, seed=3)
    stacked = {n: torch.stack([each[n] for each in drawn]).requires_grad_() for n in drawn[0]}
    inputs = {name: torch.stack([x] * 2, dim=1) for name, x in data.inputs.items()}
    together = stacked_logits(plan, stacked, inputs)
    one_by_one = torch.stack([one(**data.inputs).T for one in own])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)
    weights = torch.randn(together.shape, generator=draws[0])
    (together * weights).sum().backward()
    (one_by_one * weights).sum().backward()
    for name, tensor in stacked.items():
        assert tensor.grad is not None
        for got, one in zip(tensor.grad, own, strict=True):
            torch.testing.assert_close(got, one.get_parameter(name).grad, rtol=1e-3, atol=1e-3)
