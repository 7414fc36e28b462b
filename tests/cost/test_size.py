"""Sizes are known before anything is built: against the files themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn
from transformers import PreTrainedModel

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import file_size, parameter_count, shapes_of, zeta
from acme_fleet.messages.header_plan import HeaderPlan, smallest_genotype
from acme_fleet.models.backbone.elastic import (
    Architecture,
    as_elastic,
    build,
    elastic_config,
    extract,
)
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header.module import Header

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
UNEVEN = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2))


def real_size(module: nn.Module, dtype: torch.dtype, path: Path) -> int:
    save_file({n: t.to(dtype) for n, t in module.state_dict().items()}, path, {"format": "pt"})
    return path.stat().st_size


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_file_of_a_backbone(
    family: str,
    precision: Precision,
    plain_backbone: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> None:
    """Known from the configuration alone: the skeleton has shapes but no weights."""
    elastic = as_elastic(plain_backbone(family))
    for model in (elastic, extract(elastic, UNEVEN)):
        skeleton = build(model.config)
        assert all(parameter.is_meta for parameter in skeleton.parameters())
        size = real_size(model, DTYPES[precision], tmp_path / "model")
        assert file_size(shapes_of(skeleton), precision) == size
        assert parameter_count(shapes_of(skeleton)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("precision", DTYPES)
def test_file_of_a_whole_device_model(
    precision: Precision, plain_backbone: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """Backbone and header in one file, both from their descriptions."""
    elastic = as_elastic(plain_backbone("vit"))
    plan = HeaderPlan(genotype=smallest_genotype(2, 2, 5), hidden=16, classes=7, axes=2)
    model = CustomizedModel(extract(elastic, UNEVEN), Header(plan))
    shapes = shapes_of(build(elastic_config(elastic.config, UNEVEN)), "backbone.")
    shapes |= {f"header.{name}": shape for name, shape in plan.shapes().items()}
    assert file_size(shapes, precision) == real_size(model, DTYPES[precision], tmp_path / "model")
    assert shapes == shapes_of(model)


@given(
    st.dictionaries(
        st.text("abcXYZ019._-", min_size=1, max_size=12),
        st.lists(st.integers(0, 12), max_size=4).map(tuple),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(list(DTYPES)),
)
def test_file_of_any_tensors(shapes: dict[str, tuple[int, ...]], precision: Precision) -> None:
    """Scalars and empty tensors too."""
    tensors = {name: torch.zeros(shape, dtype=DTYPES[precision]) for name, shape in shapes.items()}
    assert file_size(shapes, precision) == len(save(tensors, metadata={"format": "pt"}))
    assert parameter_count(shapes) == sum(math.prod(shape) for shape in shapes.values())


def test_file_of_no_tensors() -> None:
    assert file_size({}) == len(save({}, metadata={"format": "pt"}))


# --- ζ ----------------------------------------------------------------------------------------


def test_zeta_by_hand() -> None:
    """d·w·(H + 2 ξ_h ξ_f) = 6 · 0.5 · (100 + 2·10·40) (Eq. 3)."""
    assert zeta(6, 0.5, head_params=100, hidden=10, neurons=40) == 2700


@pytest.mark.parametrize(("width", "depth"), [(1.0, 3), (0.5, 3), (0.25, 1), (0.75, 2)])
def test_zeta_counts_the_matrices_of_the_layers(
    width: float, depth: int, plain_backbone: Callable[..., PreTrainedModel]
) -> None:
    """H is four matrices; biases and normalisations are what ζ leaves out."""
    elastic = as_elastic(plain_backbone("vit"))  # 4 heads, 12 neurons: quarters are whole
    kept = Architecture(
        layers=tuple(range(depth)),
        heads=(round(4 * width),) * depth,
        neurons=(round(12 * width),) * depth,
    )
    shapes = shapes_of(build(elastic_config(elastic.config, kept)).get_submodule("layers"))
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    assert len(matrices) == 6 * depth
    expected = zeta(depth, width, head_params=4 * 16 * 16, hidden=16, neurons=12)
    assert parameter_count(matrices) == expected
