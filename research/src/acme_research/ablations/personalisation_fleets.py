"""Devices with private features for ``personalisation.py``, and the header they all receive.

Partitions: ``iid``; ``natural`` (text: a device per domain, no two devices alike); ``c1`` three
groups that share no class; ``c2`` five pairs, neighbours share half of their classes; ``c3`` every
device draws three tenths of the classes. ``c1 of 5`` is ``c1`` with five devices.

What is left of the train set when every device and the edge have theirs is a device's *spare* set,
of its own distribution. Nothing is trained on it: settings are chosen by it, as validation splits
of 20 to 50 samples, which each device's guard has looked at too, are too small for that.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from acme_fleet.config.data import IID, Pathological
from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits, stratified_split
from acme_fleet.data.shares import allocate, class_shares
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.header.module import Header, build_header, initial_tensors
from acme_fleet.seeding import derive_seed, generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.loop import fit

DEVICES = 10
BLOCK = Block(inputs=(0, 1), operations=("conv3", "conv1"))
GENOTYPE = Genotype(blocks=(BLOCK,), cells=1, channels=16)
COARSE = Training(epochs=40, batch_size=16, learning_rate=3e-3)
PRIVATE = {"text": 200, "digits": 70}  # samples of a device, a quarter of them for validation
SHARED = 0.15  # the edge's samples relative to all private ones


@dataclass(frozen=True)
class World:
    """One seed's devices, the coarse header that all receive, and their feature samples.

    ``classes`` are the true shares of the classes on each device, rows summing to 1.
    """

    seed: int
    coarse: Header
    private: list[Splits]
    samples: list[np.ndarray]
    spare: list[Samples]
    shared: Samples
    classes: np.ndarray


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["about"])


def held_classes(
    partition: str, devices: int, about: dict[str, Any], random: np.random.Generator
) -> list:
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
    scheme = (
        IID(scheme="iid") if kind == "iid" else Pathological(scheme="pathological", classes=held)
    )
    shares = class_shares(scheme, devices, names, random)
    labels, is_test = tensors["labels"].numpy(), tensors["test"].numpy()
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    size = PRIVATE[what] / (1 - SHARED)
    private, shared, spare = [], [], []
    tests = allocate(labels[test], shares, random)
    for part, own_test in zip(allocate(labels[train], shares, random), tests, strict=True):
        own, rest = train[part], train[:0]
        if len(own) > size:
            left, taken = stratified_split(labels[own], size / len(own), random)
            own, rest = own[taken], own[left]
        kept, lent = stratified_split(labels[own], SHARED / (1 + SHARED), random)
        known, validation = stratified_split(labels[own[kept]], 0.25, random)
        kept = own[kept]
        private.append(
            Splits(*(at(tensors, i) for i in (kept[known], kept[validation], test[own_test])))
        )
        shared.append(own[lent])
        spare.append(at(tensors, rest))
    samples = [
        s.train.inputs["pooled"][torch.from_numpy(random.permutation(len(s.train)))]
        .half()
        .double()
        .numpy()
        for s in private
    ]
    edge = at(tensors, np.concatenate(shared))
    coarse = coarse_header(edge, about["classes"], seed)
    classes = shares / shares.sum(axis=1, keepdims=True)
    return World(seed, coarse, private, samples, spare, edge, classes)


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
    fit(
        CLASSIFICATION,
        header,
        shared[torch.from_numpy(known)],
        COARSE,
        generator(seed, "edge"),
        validation=shared[torch.from_numpy(choice)],
    )
    return header.eval()
