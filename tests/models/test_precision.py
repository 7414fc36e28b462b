"""Sizes at every precision are those of files that are really written that way."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from acme_fleet.cloud.objectives import Grid, candidate_sizes
from acme_fleet.config.header import Header as HeaderSettings
from acme_fleet.cost.size import Precision, file_size, shapes_of
from acme_fleet.cost.variant import Variant
from acme_fleet.messages.header_plan import HeaderPlan, smallest_genotype
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, build, extract, subnetwork
from acme_fleet.models.backbone.precision import pack, unpack
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import Classifier, CustomizedModel
from acme_fleet.models.header.module import Header

PRECISIONS: list[Precision] = ["fp32", "fp16", "int8"]
UNEVEN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_size_of_a_written_backbone(
    family: str,
    precision: Precision,
    plain_backbone: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> None:
    """From the reference's configuration alone: no weights, and no module for the sub-network."""
    elastic = as_elastic(plain_backbone(family))
    views = subnetwork(build(elastic.config).state_dict(), elastic.config, UNEVEN)
    assert all(view.is_meta for view in views.values())
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    path, small = tmp_path / "model", extract(elastic, UNEVEN)
    save_file(pack(small.state_dict(), precision), path, {"format": "pt"})
    assert file_size(shapes, precision) == path.stat().st_size
    assert shapes == shapes_of(small)
    small.load_state_dict(unpack(load_file(path)))


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_candidate_sizes_are_those_of_the_files(
    family: str, make_classifier: Callable[..., Classifier], tmp_path: Path
) -> None:
    elastic, settings = ElasticClassifier(make_classifier(family)), HeaderSettings(channels=5)
    grid = Grid((Variant(0.25, 1), Variant(0.5, 3), Variant(1.0, 2, 0.5)))
    for variant, size in zip(grid.variants, candidate_sizes(elastic, grid, settings), strict=True):
        backbone = elastic.extract(elastic.shape(variant))
        hidden = backbone.config.hidden_size
        plan = HeaderPlan(genotype=smallest_genotype(2, 1, 5), hidden=hidden, classes=4, axes=2)
        tensors = CustomizedModel(backbone, Header(plan)).state_dict()
        save_file(tensors, tmp_path / "model", {"format": "pt"})
        assert (tmp_path / "model").stat().st_size == size


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e20]),
    st.integers(0, 99),
)
def test_int8_is_right_to_half_a_step(shape: tuple[int, ...], scale: float, seed: int) -> None:
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    packed = pack({"a.weight": weight, "a.bias": weight}, "int8")
    found = unpack(packed)
    assert torch.equal(found["a.bias"], weight)
    if weight.ndim == 1:
        assert torch.equal(found["a.weight"], weight)
        return
    assert packed["a.weight"].dtype == torch.int8
    steps = packed["a.weight_scale"].view(-1, *[1] * (weight.ndim - 1))
    assert bool(((found["a.weight"] - weight).abs() <= 0.5001 * steps).all())
    assert not found["a.weight"][0].any()


def test_half_precision_rounds() -> None:
    found = unpack(pack({"a.weight": torch.tensor([1 / 3])}, "fp16"))["a.weight"]
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(1 / 3, rel=1e-3)
