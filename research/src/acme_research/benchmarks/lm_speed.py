"""Tokens a second of a device's artifact ÷ those of the whole model in eager PyTorch.

``python -m acme_research.benchmarks.lm_speed --checkpoint smollm2-135m``: one thread, CPU time, 24
new tokens behind a prompt of 16. The device keeps two thirds of the key/value groups and of the
neurons, four of five layers, and has a header; it is written as ONNX at int4. Weights are those of
the checkpoint, cut without recovery: speed does not depend on them. Details have the whole model as
an artifact.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from acme_fleet.config.devices import Precision
from acme_fleet.cost.variant import Variant
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.deploy.export import export, origin_alone
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import LanguageModel
from acme_fleet_runtime.steps import most_probable
from acme_fleet_runtime.writer import Writer, open_artifact
from acme_research.benchmarks.deploy import saved
from acme_research.frame.record import cpu_times, print_medians, write_ratio

PROMPT, NEW, REPETITIONS = 16, 24, 9
GENOTYPE = Genotype(
    blocks=(Block(inputs=(0, 1), operations=("conv3", "max_pool")),), cells=1, channels=48
)


def device_folder(checkpoint: Path, share: float, folder: Path, precision: Precision) -> Path:
    """A device's folder: the checkpoint, cut to a share of its heads, neurons and layers."""
    elastic = ElasticClassifier(LanguageModel(load_language_model(checkpoint)))
    depth = elastic.sizes.layers if share == 1 else round(0.8 * elastic.sizes.layers)
    shape = replace(elastic.shape(Variant(share, depth)), precision=precision)
    backbone = elastic.extract(shape)
    hidden = backbone.config.hidden_size
    plan = HeaderPlan(genotype=GENOTYPE, hidden=hidden, classes=hidden, axes=1, pooled=0)
    rule = LanguagePreprocessing.of_checkpoint(checkpoint, 32)
    return saved(folder, backbone, plan, rule, ["texts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.67, 1.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole: Any = AutoModelForCausalLM.from_pretrained(options.checkpoint).eval()
    prompt = np.random.default_rng(0).integers(3, whole.config.vocab_size, PROMPT).tolist()
    ids = torch.tensor([prompt])
    fixed = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    actions: dict[str, Any] = {"eager PyTorch": lambda: whole.generate(ids, **fixed)}
    sizes = {}
    with TemporaryDirectory() as place:
        for share in options.shares:
            folder = Path(place) / f"{share:g}"
            own = device_folder(options.checkpoint, share, folder / "own", options.precision)
            done = export(origin_alone(own, ()), "onnx", folder / "artifact", force=False)
            writer = open_artifact(done.folder, threads=1)
            assert isinstance(writer, Writer)

            def write(writer: Writer = writer) -> None:
                steps = writer.steps.go_on(prompt, most_probable)
                list(itertools.islice(steps, NEW))

            name = f"artifact, {share:.0%}"
            actions[name] = write
            sizes[name] = done.manifest.files["model.onnx"].size_bytes
        seconds = cpu_times(actions, REPETITIONS)
    medians = print_medians(seconds, 3)
    write_ratio(
        "lm_speed",
        seconds["eager PyTorch"],
        seconds[f"artifact, {options.shares[0]:.0%}"],
        {
            "CPU seconds, medians": medians,
            "bytes": sizes,
            "precision": options.precision,
            "tokens": {"prompt": PROMPT, "new": NEW},
            "checkpoint": options.checkpoint.name,
        },
    )


if __name__ == "__main__":
    main()
