"""Headers made by hand: as large as the budget allows, and what each of them reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.cost.size import parameter_count, shapes_of
from acme_fleet.models.header.by_hand import (
    HAND_MADE,
    CNNHeader,
    HandMade,
    MixerHeader,
    MLPHeader,
    hand_made,
)

HIDDEN, CLASSES = 12, 5
CLASSIFIER = {"weight": torch.randn(CLASSES, HIDDEN), "bias": torch.randn(CLASSES)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(grid: tuple[int, ...], count: int = 3, seed: int = 0) -> dict[str, Tensor]:
    draw = seeded(seed)
    shapes = {"last": (HIDDEN, *grid), "penultimate": (HIDDEN, *grid), "pooled": (HIDDEN,)}
    return {name: torch.randn(count, *shape, generator=draw) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", HAND_MADE)
@pytest.mark.parametrize("grid", [(4, 4), (9,)])
@pytest.mark.parametrize("params", [1_500, 9_000])
def test_it_is_as_wide_as_the_budget_allows(kind: HandMade, grid: tuple[int, ...], params: int):
    header = hand_made(kind, CLASSIFIER, (HIDDEN, *grid), params, seeded())
    assert header is not None
    assert header(**features(grid)).shape == (3, CLASSES)
    makers: dict[str, Callable[[int], torch.nn.Module]] = {
        "mlp": lambda width: MLPHeader(HIDDEN, HIDDEN, CLASSES, width),
        "cnn": lambda width: CNNHeader(HIDDEN, HIDDEN, CLASSES, width, 2 if len(grid) == 2 else 1),
        "mixer": lambda width: MixerHeader(
            HIDDEN, HIDDEN, CLASSES, width, torch.Size(grid).numel()
        ),
    }
    width = header.get_submodule("classifier.branch").in_features
    sizes = [parameter_count(shapes_of(makers[kind](width + more))) for more in (0, 1)]
    assert sizes[0] == parameter_count(shapes_of(header)) <= params < sizes[1]


@pytest.mark.parametrize("kind", HAND_MADE)
def test_none_if_not_even_the_narrowest_fits(kind: HandMade):
    assert hand_made(kind, CLASSIFIER, (HIDDEN, 4, 4), HIDDEN * CLASSES + 5, seeded()) is None


@pytest.mark.parametrize("kind", HAND_MADE)
def test_it_starts_as_the_classifier_and_every_weight_can_learn(kind: HandMade):
    header = hand_made(kind, CLASSIFIER, (HIDDEN, 4, 4), 5_000, seeded())
    assert header is not None
    inputs = features((4, 4), 64)
    plain = F.linear(inputs["pooled"], CLASSIFIER["weight"], CLASSIFIER["bias"])
    assert torch.equal(header(**inputs), plain)
    optimizer = torch.optim.SGD(header.parameters(), lr=0.1)
    for _ in range(2):  # the layers learn once the classifier reads what they find
        optimizer.zero_grad()
        F.cross_entropy(header(**inputs), torch.arange(64) % CLASSES).backward()
        optimizer.step()
    for name, parameter in header.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def reading(kind: HandMade) -> nn.Module:
    """A header whose classifier reads what its layers find."""
    header = hand_made(kind, CLASSIFIER, (HIDDEN, 4, 4), 5_000, seeded())
    assert header is not None
    with torch.no_grad():
        header.get_parameter("classifier.branch.weight").normal_(generator=seeded(1))
    return header


@pytest.mark.parametrize("kind", HAND_MADE)
def test_the_generator_decides_the_weights(kind: HandMade):
    def weights(seed: int) -> Tensor:
        header = hand_made(kind, CLASSIFIER, (HIDDEN, 4, 4), 5_000, seeded(seed))
        assert header is not None
        return torch.cat([p.detach().flatten() for p in header.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("kind", HAND_MADE)
@pytest.mark.parametrize("name", ["last", "penultimate", "pooled"])
def test_all_features_are_read(kind: HandMade, name: str):
    header = reading(kind)
    inputs, other = features((4, 4)), features((4, 4), seed=1)
    assert not torch.allclose(header(**inputs), header(**{**inputs, name: other[name]}))


def test_what_tells_them_apart():
    """A mixer uses positions, a CNN uses neighbours, an MLP uses neither."""
    inputs = features((4, 4))
    order = torch.randperm(16, generator=seeded(5))

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].unflatten(2, (4, 4))

    def mirrored(x: Tensor) -> Tensor:
        return x.transpose(2, 3)

    for kind, change, same in (
        ("mlp", shuffled, True),
        ("cnn", shuffled, False),
        ("mixer", mirrored, False),
    ):
        header = reading(kind)
        maps = {name: change(inputs[name]) for name in ("last", "penultimate")}
        assert torch.allclose(header(**inputs), header(**{**inputs, **maps}), atol=1e-5) == same
