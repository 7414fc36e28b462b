"""Eq. 16-18: importance of a header's neurons, against hand sums and exact removal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.device.importance import (
    ImportanceAccumulator,
    ablation_importance,
    neurons_to_keep,
)
from acme_fleet.device.refinement import prune_header, train_header
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import Header, build_header, initial_tensors, prune
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.loop import fit

CHANNELS = 5
BLOCKS = (
    Block(inputs=(0, 1), operations=("conv3", "downsample")),
    Block(inputs=(2, 0), operations=("conv1", "max_pool")),
)


def make_header(seed: int = 0, channels: int = CHANNELS) -> Header:
    genotype = Genotype(blocks=BLOCKS, cells=1, channels=channels)
    plan = HeaderPlan(genotype=genotype, hidden=6, classes=3, axes=2)
    tensors = initial_tensors(plan.shapes(), torch.Generator().manual_seed(seed))
    header = build_header(plan, {n: t + 0.1 for n, t in tensors.items()})  # no bias is zero
    assert len(plan.layers) == 7
    return header


def make_features(count: int, seed: int = 0) -> Samples:
    """Three classes, each brighter in its own channels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    maps = torch.randn(2, count, 6, 4, 4, generator=generator)
    maps[:, torch.arange(count), labels] += 1.0
    pooled = 0.1 * torch.randn(count, 6, generator=generator)
    inputs = {"last": maps[0], "penultimate": maps[1], "pooled": pooled}
    return Samples(inputs, labels, torch.ones(count, dtype=torch.int64))


def squares(header: Header, batch: Samples) -> dict[str, Tensor]:
    """(g·v)² of every parameter on one batch (Eq. 17)."""
    loss = F.cross_entropy(header(**batch.inputs), batch.labels)
    named = dict(header.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    return {n: (g * named[n].detach()) ** 2 for n, g in zip(named, gradients, strict=True)}


# --- Eq. 17-18 --------------------------------------------------------------------------------


def test_mean_over_iterations_of_the_sum_over_a_neurons_parameters() -> None:
    header, samples = make_header(), make_features(30)
    accumulator = ImportanceAccumulator(header)
    seen: list[dict[str, Tensor]] = []
    for batch in samples.batches(10):
        seen.append(squares(header, batch))
        header.zero_grad()
        F.cross_entropy(header(**batch.inputs), batch.labels).backward()
        accumulator.add()
    result = accumulator.result(CHANNELS)
    assert result.layers == tuple(header.plan.layers)
    for name, importance in result.by_layer().items():
        mean = {
            part: sum((one[f"layers.{name}.{part}"] for one in seen), torch.zeros(())) / 3
            for part in ("weight", "bias")
        }
        for neuron in range(CHANNELS):
            by_hand = mean["weight"][neuron].sum() + mean["bias"][neuron]
            assert importance[neuron].item() == pytest.approx(by_hand.item(), rel=1e-4)
        assert importance.max() > 0


def test_training_measures_every_iteration_before_the_weights_move() -> None:
    """Two epochs of one batch: Q of the first weights and Q of the second, not of the last."""
    header, samples = make_header(), make_features(12)
    splits = Splits(samples, make_features(9, seed=1), make_features(9, seed=2))
    one = Training(epochs=1, batch_size=12, learning_rate=0.05)
    trained, first = train_header(CLASSIFICATION, header, splits, one, torch.Generator())
    expected = squares(header, samples)
    for name, importance in first.by_layer().items():
        total = expected[f"layers.{name}.weight"].flatten(1).sum(1)
        torch.testing.assert_close(
            importance, total + expected[f"layers.{name}.bias"], rtol=1e-3, atol=1e-8
        )
    # The header that came in is unchanged, and the weights did move.
    assert all(
        torch.equal(value, make_header().state_dict()[name])
        for name, value in header.state_dict().items()
    )
    two = Training(epochs=2, batch_size=12, learning_rate=0.05)
    _, both = train_header(CLASSIFICATION, header, splits, two, torch.Generator())
    name = "cell0-block0-0-conv3"
    assert not torch.allclose(both[name], first[name], rtol=0.01)
    assert trained.plan == header.plan


def test_a_pruned_neuron_has_no_importance() -> None:
    name = "cell0-block0-0-conv3"
    header = prune(make_header(), {name: (1, 3)})
    accumulator, samples = ImportanceAccumulator(header), make_features(6)
    F.cross_entropy(header(**samples.inputs), samples.labels).backward()
    accumulator.add()
    result = accumulator.result(CHANNELS)
    assert all(len(values) == CHANNELS for values in result.values)
    assert (result[name] > 0).tolist() == [False, True, False, True, False]


# --- Eq. 16 -----------------------------------------------------------------------------------


def test_ablation_equals_physical_removal() -> None:
    header, samples = make_header(), make_features(20)
    before = {name: value.clone() for name, value in header.state_dict().items()}

    @torch.no_grad()
    def loss(some: Header) -> Tensor:
        return F.cross_entropy(some(**samples.inputs), samples.labels)

    for name in header.plan.layers:
        exact = ablation_importance(CLASSIFICATION, header, samples, name)
        for neuron in range(CHANNELS):
            kept = tuple(c for c in range(CHANNELS) if c != neuron)
            removed = (loss(header) - loss(prune(header, {name: kept}))) ** 2
            torch.testing.assert_close(exact[neuron], removed, rtol=1e-3, atol=1e-8)
    assert all(torch.equal(before[n], value) for n, value in header.state_dict().items())


def rank_correlation(seed: int) -> float:
    """Spearman's, of Eq. 17's sums and Eq. 16, over all neurons of a trained header."""
    header, samples = make_header(seed, channels=8), make_features(96, seed)
    training = Training(epochs=2, batch_size=16, learning_rate=5e-3)
    fit(CLASSIFICATION, header, samples, training, torch.Generator().manual_seed(seed))
    accumulator = ImportanceAccumulator(header)
    for batch in samples.batches(16):
        header.zero_grad()
        F.cross_entropy(header(**batch.inputs), batch.labels).backward()
        accumulator.add()
    taylor = accumulator.result(8).flat()
    exact = torch.cat(
        [ablation_importance(CLASSIFICATION, header, samples, name) for name in header.plan.layers]
    )
    return float(spearmanr(taylor, exact).statistic)


def test_ranks_neurons_much_like_their_removal() -> None:
    """Σ(g·v)² is a coarse estimate of (Σ g·v)²: measured .49, .64, .51, .70, where chance is 0."""
    assert np.mean([rank_correlation(seed) for seed in range(4)]) > 0.4


# --- what is kept -----------------------------------------------------------------------------


@st.composite
def rankings(draw: st.DrawFn) -> tuple[dict[str, list[int]], dict[str, tuple[int, ...]]]:
    """Importance of six channels of some layers, and the channels left in each."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    values = st.lists(st.integers(0, 3), min_size=6, max_size=6)
    left = st.sets(st.integers(0, 5), min_size=1).map(sorted).map(tuple)
    return {n: draw(values) for n in names}, {n: draw(left) for n in names}


@given(rankings(), st.integers(0, 15).map(lambda n: n / 16))
def test_the_least_important_share_goes_and_one_stays_in_each_layer(
    ranking: tuple[dict[str, list[int]], dict[str, tuple[int, ...]]], share: float
) -> None:
    values, left = ranking
    importance = ImportanceSet.of(
        {name: torch.tensor(row, dtype=torch.float32) for name, row in values.items()}
    )
    kept = neurons_to_keep(importance, left, share)
    assert kept.keys() == left.keys()
    assert all(set(kept[n]) <= set(left[n]) and list(kept[n]) == sorted(kept[n]) for n in left)
    assert all(kept[name] for name in left)
    total = sum(map(len, left.values()))
    wanted = min(math.floor(share * total), total - len(left))
    assert total - sum(map(len, kept.values())) == wanted
    # Whatever was dropped mattered no more than what was kept, the last of a layer apart.
    dropped = [values[n][c] for n in left for c in set(left[n]) - set(kept[n])]
    spared = [values[n][c] for n in left if len(kept[n]) > 1 for c in kept[n]]
    assert not dropped or not spared or max(dropped) <= min(spared)
    # The most important of a layer is never the one that goes.
    assert all(
        max(values[n][c] for c in kept[n]) == max(values[n][c] for c in left[n]) for n in left
    )


def test_ties_are_broken_by_name_and_number_whatever_the_order_of_the_layers() -> None:
    same = {name: torch.ones(3) for name in "cab"}
    one, other = ImportanceSet.of(same), ImportanceSet.of(same, "abc")
    left = dict.fromkeys("bca", (0, 1, 2))
    expected = {"a": (2,), "b": (1, 2), "c": (0, 1, 2)}
    assert neurons_to_keep(one, left, 3 / 9) == expected
    assert neurons_to_keep(other, dict(sorted(left.items())), 3 / 9) == expected


def test_the_share_is_of_what_is_left_and_reaches_over_layers() -> None:
    importance = ImportanceSet(
        ("a", "b"), (torch.tensor([5.0, 6, 7, 8]), torch.tensor([1.0, 2, 3, 9]))
    )
    left = {"a": (0, 1, 2, 3), "b": (1, 2, 3)}
    assert neurons_to_keep(importance, left, 0.0) == left
    assert neurons_to_keep(importance, left, 0.43) == {"a": (1, 2, 3), "b": (3,)}
    assert neurons_to_keep(importance, left, 0.99) == {"a": (3,), "b": (3,)}


def test_prune_header_removes_the_share_physically() -> None:
    header = make_header()
    importance = ImportanceSet.of({name: torch.arange(5.0) for name in header.plan.layers})
    smaller = prune_header(header, importance, 0.2)
    assert header.plan.neurons == 35
    assert smaller.plan.neurons == 28
    assert all(layer.outputs == (1, 2, 3, 4) for layer in smaller.plan.layers.values())
    assert sum(p.numel() for p in smaller.parameters()) < sum(
        p.numel() for p in header.parameters()
    )
    assert prune_header(smaller, importance, 0.2).plan.neurons == 23  # 5.6 of 28, rounded down
