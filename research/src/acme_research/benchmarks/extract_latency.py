"""Speed and size of an extracted backbone against the full one: ViT-tiny, w = d = 0.5.

Batch 1 at 224 × 224. The masked full model computes the same function as the extracted one, with
all layers' and units' work: what pruning by masks would ship.
"""

import tempfile
import time
from itertools import islice, product
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTModel

from acme_fleet.config.devices import Precision
from acme_fleet.cost.size import file_size, parameter_count, shapes_of
from acme_fleet.cost.variant import Variant
from acme_fleet.models.backbone.elastic import Architecture, architecture, as_elastic, extract
from acme_fleet.models.backbone.precision import pack
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.families import dimensions, family_of
from acme_fleet.models.features import Classifier
from acme_research.frame.record import cpu_times, print_medians, write_ratio

REPETITIONS = 60


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


def file_sizes(backbone: PreTrainedModel) -> dict[str, int]:
    """Bytes of the files at each precision, as written; each was known before."""
    sizes, shapes = {}, shapes_of(backbone)
    with tempfile.TemporaryDirectory() as folder:
        for precision in get_args(Precision):
            path = Path(folder) / precision
            save_file(pack(backbone.state_dict(), precision), path, metadata={"format": "pt"})
            sizes[precision] = path.stat().st_size
            assert sizes[precision] == file_size(shapes, precision)
        backbone.save_pretrained(folder)
        assert (Path(folder) / "model.safetensors").stat().st_size == sizes["float32"]
    return sizes


def seconds_for_sizes(backbone: PreTrainedModel) -> float:
    """CPU time for the exact sizes of 1,000 different candidates, none of which is built."""
    elastic = ElasticClassifier(Classifier(backbone, nn.Linear(192, 1)))
    candidates = islice(product(range(1, 101), range(1, 13)), 1000)
    start = time.process_time()
    for percent, depth in candidates:
        file_size(elastic.tensor_shapes(elastic.shape(Variant(percent / 100, depth))))
    return time.process_time() - start


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    full = as_elastic(ViTModel(config, add_pooling_layer=False))
    arch = architecture(dimensions(config), 0.5, 6)
    small, masked = extract(full, arch), as_elastic(full)
    mask(masked, arch)
    pixels = torch.randn(1, 3, 224, 224)
    outputs = (model(pixels).last_hidden_state for model in (small, masked))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    models = {"full": full, "masked": masked, "extracted": small}
    works = {name: lambda m=model: m(pixels) for name, model in models.items()}
    seconds = cpu_times(works, REPETITIONS)
    medians = print_medians(seconds, digits=2)
    parameters = parameter_count(shapes_of(small))
    file_bytes = {name: file_sizes(models[name]) for name in ("full", "extracted")}
    print(f"{parameters:,} parameters in files of {file_bytes['extracted']} bytes")
    write_ratio(
        "extract_latency",
        seconds["extracted"],
        seconds["full"],
        {
            "model": "ViT-tiny, 224 x 224, 12 layers",
            "kept": {"layers": arch.layers, "heads": arch.heads, "neurons": arch.neurons},
            "repetitions": REPETITIONS,
            "median CPU seconds, one thread": medians,
            "times faster than masked": medians["masked"] / medians["extracted"],
            "parameters": parameters,
            "parameters of the full model": parameter_count(shapes_of(full)),
            "file bytes": file_bytes,
            "file bytes / (4 x parameters)": file_bytes["extracted"]["float32"] / (4 * parameters),
            "CPU seconds to know the sizes of 1,000 candidates": seconds_for_sizes(full),
        },
    )


if __name__ == "__main__":
    main()
