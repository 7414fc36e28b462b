"""Importance sets: their algebra's laws, their order, and what is refused on arrival."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.importance_set import ImportanceSet

CHANNELS = {"cell0-b": 4, "a": 1, "cell0-a": 3}
_SEEDS = st.integers(0, 2**32 - 1)
_FACTORS = st.floats(1e-3, 1e3)


def _set(seed: int) -> ImportanceSet:
    draw = torch.Generator().manual_seed(seed)
    scale = 10.0 ** (seed % 7 - 3)  # devices' losses differ by orders of magnitude
    return ImportanceSet.of(
        {n: scale * (torch.rand(size, generator=draw) + 1e-3) for n, size in CHANNELS.items()}
    )


def _sets(seed: int, count: int) -> list[ImportanceSet]:
    return [_set(seed + number) for number in range(count)]


def _weights(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(count), size=count)


# --- laws -------------------------------------------------------------------------------------


@given(_SEEDS, _SEEDS, _SEEDS)
def test_addition_is_commutative_and_associative_and_zero_is_neutral(x: int, y: int, z: int):
    a, b, c = _set(x), _set(y), _set(z)
    assert a + b == b + a
    assert ((a + b) + c).is_close(a + (b + c))
    assert a + ImportanceSet.zeros(CHANNELS) == a


@given(_SEEDS, _SEEDS, _FACTORS, _FACTORS)
def test_scaling_distributes(x: int, y: int, s: float, t: float):
    a, b = _set(x), _set(y)
    assert s * a == a * s
    assert (s * (a + b)).is_close(s * a + s * b)
    assert ((s + t) * a).is_close(s * a + t * a)
    assert (s * (t * a)).is_close((s * t) * a)
    assert (a * s / s).is_close(a)
    assert (s * a).total() == pytest.approx(s * a.total(), rel=1e-5)


@given(_SEEDS, _FACTORS)
def test_normalised_sets_have_sum_one_whatever_their_scale(seed: int, factor: float):
    own = _set(seed)
    once = own.normalized()
    assert once.total() == pytest.approx(1)
    assert once.normalized().is_close(once)
    assert (factor * own).normalized().is_close(once)
    assert once.layers == own.layers


@given(_SEEDS, st.integers(1, 4), _FACTORS)
def test_mixing_is_linear_in_the_sets_and_in_the_weights(seed: int, count: int, factor: float):
    some, others = _sets(seed, count), _sets(seed + 100, count)
    one, two = _weights(seed, count), _weights(seed + 1, count)
    mix = ImportanceSet.mixtures
    summed = mix([a + factor * b for a, b in zip(some, others, strict=True)], one)
    apart = zip(mix(some, one), mix(others, one), strict=True)
    for together, (a, b) in zip(summed, apart, strict=True):
        assert together.is_close(a + factor * b, rtol=1e-4)
    apart = zip(mix(some, one), mix(some, two), strict=True)
    for together, (a, b) in zip(mix(some, one + factor * two), apart, strict=True):
        assert together.is_close(a + factor * b, rtol=1e-4)


@given(_SEEDS, st.integers(1, 5))
def test_a_mixture_is_the_weighted_sum(seed: int, count: int):
    sets, weights = _sets(seed, count), _weights(seed, count)
    for row, mixed in zip(weights, ImportanceSet.mixtures(sets, weights), strict=True):
        expected = ImportanceSet.zeros(CHANNELS)
        for weight, own in zip(row, sets, strict=True):
            expected = expected + float(weight) * own
        assert mixed.is_close(expected, rtol=1e-4)
    for own, mixed in zip(sets, ImportanceSet.mixtures(sets, np.eye(count)), strict=True):
        assert mixed == own


@given(_SEEDS, st.permutations(range(4)))
def test_mixing_commutes_with_a_permutation_of_the_devices(seed: int, order: list[int]):
    sets, weights = _sets(seed, 4), _weights(seed, 4)
    mixed = ImportanceSet.mixtures(sets, weights)
    again = ImportanceSet.mixtures([sets[i] for i in order], weights[np.ix_(order, order)])
    for place, device in enumerate(order):
        assert again[place].is_close(mixed[device])


@given(_SEEDS)
def test_flat_and_unflatten_are_inverse(seed: int):
    own = _set(seed)
    assert own.unflatten(own.flat()) == own
    vector = torch.rand(sum(CHANNELS.values()), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(own.unflatten(vector).flat(), vector)


# --- order and form ---------------------------------------------------------------------------


@given(_SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_a_mapping_does_not_matter_where_layers_are_given(
    seed: int, shuffle: random.Random
):
    own = _set(seed)
    entries = list(own.by_layer().items())
    shuffle.shuffle(entries)
    again = ImportanceSet.of(dict(entries), CHANNELS)
    assert again == own
    assert again.layers == tuple(CHANNELS)
    assert again.normalized() == own.normalized()  # to the last bit: sums run in one order
    arrived = ImportanceSet.checked(dict(entries), CHANNELS, "the set")
    assert torch.equal(arrived.flat(), own.flat())


def test_sets_in_another_order_are_different_and_cannot_be_added():
    own = _set(0)
    turned = ImportanceSet.of(own.by_layer(), reversed(own.layers))
    assert turned != own
    for operation in (
        lambda: own + turned,
        lambda: own.is_close(turned),
        lambda: ImportanceSet.mixtures([own, turned], np.full((2, 2), 0.5)),
        lambda: own + ImportanceSet.zeros(CHANNELS | {"a": 2}),
    ):
        with pytest.raises(ValueError, match="different forms"):
            operation()


def test_equal_sets_have_equal_numbers_of_equal_type():
    own = _set(0)
    assert own == _set(0)
    assert own != _set(1)
    assert own != ImportanceSet(own.layers, tuple(values.double() for values in own.values))
    assert own != own.by_layer()


def test_no_set_can_be_changed_nor_be_a_key():
    own = _set(0)
    with pytest.raises(FrozenInstanceError):
        own.layers = ()  # type: ignore[misc]
    own.by_layer().clear()
    assert own == _set(0)
    with pytest.raises(TypeError, match="unhashable"):
        hash(own)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ImportanceSet((), ()), "0 vectors for 0 layers"),
        (lambda: ImportanceSet(("a", "b"), (torch.ones(1),)), "1 vectors for 2 layers"),
        (lambda: ImportanceSet(("a", "a"), (torch.ones(1),) * 2), "names a layer twice"),
        (lambda: ImportanceSet.of({"a": torch.ones(1)}, ["b"]), r"of \['a'\], expected \['b'\]"),
        (lambda: ImportanceSet.zeros(CHANNELS).normalized(), "sum 0 cannot be scaled"),
        (lambda: ImportanceSet.zeros(CHANNELS).unflatten(torch.ones(9)), "9 numbers for 8"),
    ],
)
def test_what_is_no_set_is_refused(build: Any, words: str):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_layers_numbers():
    own = _set(0)
    assert torch.equal(own["a"], own.values[1])
    assert own.finite()
    assert own.any()
    assert not ImportanceSet.zeros(CHANNELS).any()
    assert not (own + ImportanceSet.zeros(CHANNELS) / 0.0).finite()
    with pytest.raises(KeyError):
        own["elsewhere"]


# --- on arrival -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance", "words"),
    [
        ({"one": [1.0, -0.5], "two": [1.0]}, "the set of cam-1 must be non-negative"),
        ({"one": [0.0, 0.0], "two": [0.0]}, "not all zero"),
        ({"one": [1.0, 1.0]}, "the set of cam-1 lacks two"),
        ({"one": [1.0], "two": [1.0]}, r"the set of cam-1: one has shape \(1,\), expected \(2,\)"),
        ({"one": [1.0, 1.0], "two": [1.0], "x": [1.0]}, "the set of cam-1 has unknown x"),
    ],
)
def test_a_set_that_arrives_wrong_is_refused_by_the_tensors_name(
    importance: dict[str, list[float]], words: str
):
    tensors = {name: torch.tensor(values) for name, values in importance.items()}
    with pytest.raises(ProtocolError, match=words):
        ImportanceSet.checked(tensors, {"one": 2, "two": 1}, "the set of cam-1")


def test_sums_that_overflow_to_both_sides_are_refused():
    large = torch.full((2,), 3e38)
    with pytest.raises(ProtocolError, match="must be non-negative"):
        ImportanceSet.checked({"one": large, "two": -large}, {"one": 2, "two": 2}, "the set")


def test_a_large_sum_is_accepted():
    ImportanceSet.checked({"one": torch.full((2,), 3e38)}, {"one": 2}, "the set")
