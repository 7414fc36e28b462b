"""The shipped artifact of a device at half its size, against the reference in eager PyTorch.

ViT-S at 224 × 224 with random weights; the device keeps half of the heads and neurons of all layers
and has a header. Written as four results: ``deploy_latency`` (one image, CPU time of one thread),
``deploy_size``, ``deploy_start`` (a process from its start to its first answer, CPU time) and
``deploy_memory`` (the largest resident size of that process). The values are those of int8, which
ships by default; details have the other precisions. Random weights have no accuracy:
``artifact_vs_quantized`` measures it on real references.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ViTConfig, ViTModel

from acme_fleet.config.devices import Precision
from acme_fleet.data.datasets import Preprocessing
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.deploy.export import export, origin_alone
from acme_fleet.deploy.onnx_format import MINIMUM
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.backbone.elastic import architecture, as_elastic, extract
from acme_fleet.models.backbone.precision import pack
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import CustomizedModel, feature_sizes
from acme_fleet.models.header.module import build_header, initial_tensors
from acme_fleet.models.shipped import save_device_model
from acme_fleet.models.storage import backbone_from, config_document
from acme_fleet_runtime.manifest import GRAPH
from acme_fleet_runtime.runner import start
from acme_research.frame.intervals import ratio_of_medians
from acme_research.frame.record import cpu_times, print_medians, write_benchmark

SIDE, CLASSES, REPETITIONS, STARTS = 224, 10, 40, 7
SHIPPED: Precision = "int8"
EAGER = """
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, ViTForImageClassification
torch.set_num_threads(1)
model = ViTForImageClassification.from_pretrained(sys.argv[1]).eval()
prepare = AutoImageProcessor.from_pretrained(sys.argv[1])
pixels = prepare(Image.open(sys.argv[2]), return_tensors="pt")
with torch.no_grad():
    print(model(**pixels).logits.softmax(dim=1).argmax().item())
"""
METER = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss]))
"""


class Run(NamedTuple):
    """A process from its start to its end: CPU seconds, and bytes of its largest resident size."""

    cpu_s: float
    peak_bytes: int


def run_process(command: Sequence[str]) -> Run:
    """Run a command on one thread; its output is not shown.

    From a small process: a child's largest size is at least its parent's when it began.
    """
    meter = [sys.executable, "-I", "-c", METER, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(meter, env=environment, capture_output=True, text=True, check=True)
    return Run(*json.loads(found.stdout))


def save_reference(folder: Path) -> ViTModel:
    """The reference, whole, as Hugging Face saves it; its backbone is returned."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    config.num_labels = CLASSES
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return model.vit


def device_folder(backbone: ViTModel, precision: Precision, folder: Path) -> Path:
    """A device's folder: half of the heads and neurons of every layer, and a header."""
    elastic = as_elastic(backbone)
    sizes = dimensions(elastic.config)
    small = extract(elastic, architecture(sizes, 0.5, sizes.layers))
    config = {**config_document(small), "precision": precision}
    kept = backbone_from(config, pack(small.state_dict(), precision))
    block = Block(inputs=(0, 1), operations=("conv3", "avg_pool"))
    plan = HeaderPlan(
        genotype=Genotype(blocks=(block,), cells=1, channels=32),
        classes=CLASSES,
        **feature_sizes(kept.config)._asdict(),
    )
    names = [f"class-{number}" for number in range(CLASSES)]
    return saved(folder, kept, plan, ImagePreprocessing.centred(SIDE, SIDE, 3), names)


def saved(
    folder: Path, backbone: PreTrainedModel, plan: HeaderPlan, rule: Preprocessing, names: list[str]
) -> Path:
    """A device's folder with a backbone and an untrained header of a plan."""
    tensors = initial_tensors(plan.shapes(), torch.Generator().manual_seed(0))
    header = build_header(plan, tensors)
    save_device_model(folder, CustomizedModel(backbone, header), header, names, rule, names)
    return folder


def latencies(reference: Path, artifacts: dict[str, Path]) -> dict[str, np.ndarray]:
    """CPU seconds of one image on one thread, shape ``(repetitions,)``, measured in turns."""
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(reference).eval()
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 127.5 - 1
    sessions = {
        name: start((folder / GRAPH).read_bytes(), MINIMUM, 1) for name, folder in artifacts.items()
    }
    actions: dict[str, Any] = {"eager PyTorch": lambda: model(pixel_values=pixels)}
    for name, session in sessions.items():
        actions[name] = lambda run=session.run: run(["probabilities"], {"pixels": image})
    with torch.no_grad():
        return cpu_times(actions, REPETITIONS)


def starts(reference: Path, artifacts: dict[str, Path], photo: Path) -> dict[str, list[Run]]:
    """Processes that classify one image, in turns."""
    runner = str(Path(sysconfig.get_path("scripts")) / "acme-runtime")
    commands = {"eager PyTorch": [sys.executable, "-c", EAGER, str(reference), str(photo)]}
    for name, folder in artifacts.items():
        commands[name] = [runner, "predict", str(folder), str(photo)]
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for repetition in range(-1, STARTS):  # the first fills the disk's cache
        for name, command in commands.items():
            run = run_process(command)
            if repetition >= 0:
                runs[name].append(run)
    return runs


def main() -> None:
    torch.manual_seed(0)
    with TemporaryDirectory() as place:
        folder = Path(place)
        reference, photo = folder / "reference", folder / "photo.png"
        backbone = save_reference(reference)
        picture = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(picture).save(photo)
        artifacts = {each: folder / each / "artifact" for each in get_args(Precision)}
        for precision in get_args(Precision):
            device = device_folder(backbone, precision, folder / precision / "device")
            export(origin_alone(device, []), "onnx", artifacts[precision], force=False)
        seconds = latencies(reference, artifacts)
        medians = print_medians(seconds)
        runs = starts(reference, artifacts, photo)
        sizes = {name: (path / GRAPH).stat().st_size for name, path in artifacts.items()}
        sizes["eager PyTorch"] = (reference / "model.safetensors").stat().st_size
    columns = {
        "latency": seconds,
        "size": {name: np.full(2, size) for name, size in sizes.items()},
        "memory": {name: np.array([run.peak_bytes for run in each]) for name, each in runs.items()},
        "start": {name: np.array([run.cpu_s for run in each]) for name, each in runs.items()},
    }
    ratios = {
        name: {
            column: ratio_of_medians(values["eager PyTorch"][: len(values[name])], values[name])
            for column, values in columns.items()
        }
        for name in artifacts
    }
    for column, values in columns.items():
        write_benchmark(
            f"deploy_{column}",
            *ratios[SHIPPED][column],
            {
                "model": f"ViT-S, {SIDE} x {SIDE}, random weights",
                "precision": SHIPPED,
                "medians": {name: float(np.median(each)) for name, each in values.items()},
                "ratios": {name: row[column][0] for name, row in ratios.items()},
                "latency medians, CPU seconds": medians,
            },
        )


if __name__ == "__main__":
    main()
