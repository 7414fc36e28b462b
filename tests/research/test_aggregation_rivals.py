"""The rivals' weights, and the mixing of header weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from acme_fleet.device.refinement import prune_header
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import Header, build_header, initial_tensors
from acme_fleet.personalization.weights import contain, mix_headers, update_scales
from acme_research.rivals.aggregation import (
    alone,
    average,
    federated_average,
    jensen_shannon_distances,
)

GENOTYPE = Genotype(
    blocks=(Block(inputs=(0, 1), operations=("conv3", "conv1")),), cells=1, channels=4
)
PLAN = HeaderPlan(genotype=GENOTYPE, hidden=5, classes=3, axes=1)


def header(seed: int) -> Header:
    tensors = initial_tensors(PLAN.shapes(), torch.Generator().manual_seed(seed))
    return build_header(PLAN, {name: tensor + 0.1 for name, tensor in tensors.items()})


def pruned(seed: int, share: float) -> Header:
    random = torch.Generator().manual_seed(seed)
    importance = {name: torch.rand(4, generator=random) for name in PLAN.layers}
    return prune_header(header(seed), ImportanceSet.of(importance), share)


def zeros() -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in PLAN.shapes().items()}


def mixed_of(
    headers: list[Header], weights: np.ndarray, held: list[list[int]] | None = None
) -> list[dict[str, Tensor]]:
    names = [f"device-{i}" for i in range(len(headers))]
    mixed = mix_headers(
        {n: h.state_dict() for n, h in zip(names, headers, strict=True)},
        {n: h.plan for n, h in zip(names, headers, strict=True)},
        weights,
        header(0).state_dict(),
        most=float("inf"),
        held=None if held is None else dict(zip(names, held, strict=True)),
    )
    return [mixed.headers[name] for name in names]


# --- who listens to whom ----------------------------------------------------------------------


def test_rows_of_the_rivals_sum_to_one() -> None:
    for weights in (alone(4), average(4), federated_average([10, 20, 30, 40])):
        np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(federated_average([10, 30])[0], [0.25, 0.75])


def test_divergence_is_the_textbooks_in_one_component() -> None:
    """Half the relative entropies to the mean of two histograms, written out."""
    x, y = np.array([0.0] * 3 + [1.0]), np.array([0.0] + [1.0] * 3)
    distances = jensen_shannon_distances([x[:, None], y[:, None]], bins=2)
    p, q = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    middle = (p + q) / 2
    expected = (entropy(p, middle, base=2) + entropy(q, middle, base=2)) / 2
    np.testing.assert_allclose(distances, [[0, expected], [expected, 0]], atol=1e-12)


def test_divergence_tells_distributions_apart() -> None:
    random = np.random.default_rng(0)
    samples = [random.normal(shift, size=(60, 20)) for shift in (0, 0, 3)]
    distances = jensen_shannon_distances(samples)
    np.testing.assert_allclose(distances, distances.T)
    assert (distances.diagonal() == 0).all()
    assert 0 < 2 * distances[0, 1] < distances[0, 2] <= 1
    few = jensen_shannon_distances([sample[:2, :3] for sample in samples])
    assert np.isfinite(few).all()


# --- mixing the weights -----------------------------------------------------------------------


def test_unpruned_headers_mix_by_the_dense_formula() -> None:
    headers = [header(seed) for seed in range(3)]
    weights = np.random.default_rng(0).random((3, 3))
    weights /= weights.sum(axis=1, keepdims=True)
    for row, mixed in zip(weights, mixed_of(headers, weights), strict=True):
        for name in PLAN.shapes():
            states = [own.state_dict()[name] for own in headers]
            expected = sum(float(w) * state for w, state in zip(row, states, strict=True))
            torch.testing.assert_close(mixed[name], expected)


def test_the_identity_gives_every_device_its_own_header_back() -> None:
    headers = [pruned(1, 0.3), header(2), pruned(3, 0.5)]
    for own, mixed in zip(headers, mixed_of(headers, np.eye(3)), strict=True):
        torch.testing.assert_close(mixed, dict(own.state_dict()))


def test_an_entry_that_a_peer_has_pruned_comes_from_the_others() -> None:
    """By brute force over the entries of one layer's weight."""
    headers = [header(1), pruned(2, 0.5)]
    small, big = headers[1].plan.layers, headers[0].plan.layers
    mixed, _ = mixed_of(headers, np.array([[0.25, 0.75], [0.5, 0.5]]))
    name = next(n for n in big if n.endswith("conv3"))
    weight, rows = f"layers.{name}.weight", small[name].outputs
    assert len(rows) < 4
    for i, o in ((i, o) for o in range(4) for i in range(4)):
        expected = headers[0].state_dict()[weight][o, i]
        if o in rows and i in small[name].inputs:
            at = rows.index(o), small[name].inputs.index(i)
            expected = 0.25 * expected + 0.75 * headers[1].state_dict()[weight][at]
        torch.testing.assert_close(mixed[weight][o, i], expected)


def test_rows_of_own_classes_come_from_those_who_hold_the_class() -> None:
    """By brute force over the classifier's rows; everything else is mixed as without ``held``."""
    headers, held = [header(1), pruned(2, 0.5), header(3)], [[0, 1], [1, 2], [0]]
    weights = np.array([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.1, 0.1, 0.8]])
    plain, mixed = mixed_of(headers, weights), mixed_of(headers, weights, held)
    rows = "classifier.pooled.weight"
    sent = [own.state_dict()[rows] for own in headers]
    for device, c in ((device, c) for device in range(3) for c in range(3)):
        who = [i for i in range(3) if c in held[i] or c not in held[device]]
        total = sum(weights[device, i] for i in who)
        expected = sum(float(weights[device, i]) * sent[i][c] for i in who) / total
        torch.testing.assert_close(mixed[device][rows][c], expected)
    for one, other in zip(mixed, plain, strict=True):
        assert not torch.allclose(one[rows], other[rows])
        for name in one:
            if not name.startswith("classifier."):
                torch.testing.assert_close(one[name], other[name])


def test_a_device_gets_a_header_of_its_own_size() -> None:
    headers = [pruned(1, 0.2), pruned(2, 0.5)]
    for own, mixed in zip(headers, mixed_of(headers, np.full((2, 2), 0.5)), strict=True):
        build_header(own.plan, mixed)


def test_a_poisoned_device_is_contained() -> None:
    """One of five uploads a header a million times too large: it weighs like two honest ones."""
    start = zeros()
    honest = {f"device-{i}": header(i).state_dict() for i in range(4)}
    poisoned = {name: 1e6 * value for name, value in header(9).state_dict().items()}
    sent = {**honest, "bad": poisoned}
    contained = contain(sent, start, update_scales(sent, start))

    def length(tensors: dict[str, Tensor]) -> float:
        return float(torch.cat([value.flatten() for value in tensors.values()]).norm())

    lengths = {name: length(dict(own)) for name, own in honest.items()}
    assert length(contained["bad"]) <= 2.01 * max(lengths.values())
    for name, own in honest.items():
        torch.testing.assert_close(contained[name], dict(own))


def test_of_two_devices_the_shorter_update_sets_the_limit() -> None:
    start, one = zeros(), dict(header(1).state_dict())
    sent = {"a": one, "b": {n: 1e30 * v for n, v in one.items()}}
    contained = contain(sent, start, update_scales(sent, start))
    torch.testing.assert_close(contained["b"], {name: 2 * value for name, value in one.items()})


def test_headers_that_did_not_move_are_left_alone() -> None:
    start = dict(header(0).state_dict())
    sent = {"a": start, "b": start}
    scales = update_scales(sent, start)
    assert scales == {"a": 1.0, "b": 1.0}
    torch.testing.assert_close(contain(sent, start, scales)["a"], start)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_peer_without_weight_changes_nothing(share: float) -> None:
    headers = [header(1), pruned(2, share)]
    first, _ = mixed_of(headers, np.array([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(first, dict(headers[0].state_dict()))
