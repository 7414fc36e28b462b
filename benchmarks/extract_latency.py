"""How much faster and smaller an extracted backbone is than the full one: ViT-tiny, w = d = 0.5.

Batch 1 at 224 × 224. The masked full model computes the same function as the extracted one, with
all layers' and units' work: what pruning by masks would ship.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from record import cpu_times, ratio_of_medians, write_result
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTModel

from acme_fleet.cost.size import parameter_count, shapes_of
from acme_fleet.models.elastic import Architecture, architecture, as_elastic, extract
from acme_fleet.models.families import dimensions, family_of

REPETITIONS, GOAL = 60, 1 / 3


def mask(backbone: PreTrainedModel, arch: Architecture) -> None:
    """Zero what ``arch`` leaves out of each kept layer, where it enters the output matrices."""
    family, sizes = family_of(backbone.config), dimensions(backbone.config)
    layers = list(backbone.get_submodule(family.layers).children())
    for index, heads, neurons in zip(arch.layers, arch.heads, arch.neurons, strict=True):
        for name, kept in ((family.output, heads * sizes.head_dim), (family.neurons_out, neurons)):
            linear = layers[index].get_submodule(name)
            assert isinstance(linear, nn.Linear)
            ones = (torch.arange(linear.in_features) < kept).float()
            linear.register_forward_pre_hook(lambda _, x, ones=ones: (x[0] * ones,))
    for index in set(range(sizes.layers)) - set(arch.layers):  # computed, and then passed over
        layers[index].register_forward_hook(lambda _, x, output: x[0])


@torch.no_grad()
def main() -> None:
    start = time.perf_counter()
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    full = as_elastic(ViTModel(config, add_pooling_layer=False))
    arch = architecture(dimensions(config), 0.5, 6)
    small, masked = extract(full, arch), as_elastic(full)
    mask(masked, arch)
    pixels = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(
        small(pixels).last_hidden_state, masked(pixels).last_hidden_state, rtol=1e-4, atol=1e-4
    )
    seconds = cpu_times(
        {
            name: lambda m=m: m(pixels)
            for name, m in {"full": full, "masked": masked, "extracted": small}.items()
        },
        REPETITIONS,
    )
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    value, interval = ratio_of_medians(seconds["extracted"], seconds["full"])
    parameters = parameter_count(shapes_of(small))
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        file_bytes = (Path(folder) / "model.safetensors").stat().st_size
    for name, median in medians.items():
        print(f"{name:<12}{1000 * median:8.2f} ms")
    print(f"{parameters:,} parameters in a file of {file_bytes:,} bytes")
    path = write_result(
        name="extract_latency",
        value=value,
        unit="latency of the extracted backbone / of the full one, batch 1",
        better="lower",
        goal=GOAL,
        rival="the full model (and the masked one, see details)",
        seeds=[0],
        interval=interval,
        seconds=time.perf_counter() - start,
        details={
            "model": "ViT-tiny, 224 x 224, 12 layers",
            "kept": {"layers": arch.layers, "heads": arch.heads, "neurons": arch.neurons},
            "repetitions": REPETITIONS,
            "median CPU seconds, one thread": medians,
            "times faster than masked": medians["masked"] / medians["extracted"],
            "parameters": parameters,
            "parameters of the full model": parameter_count(shapes_of(full)),
            "file bytes": file_bytes,
            "file bytes / (4 x parameters)": file_bytes / (4 * parameters),
        },
    )
    print(f"{value:.3f} of the full model's, 95 % interval {interval}; wrote {path}")


if __name__ == "__main__":
    main()
