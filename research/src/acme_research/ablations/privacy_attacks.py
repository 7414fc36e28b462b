"""Attacks on what leaves a device, by a curious edge server: who was trained on, and what it was.

``python -m acme_research.ablations.privacy_attacks``. Digits through a small ViT, 20 devices with
40 samples each; the edge server has the backbone, the coarse header, the fleet's seed and 600
samples of its own of the same distribution. What it gets passes through the product's own
protections.

*Membership*: does a sample belong to the device's training set? AUC over its 40 training samples
and 40 others of the same distribution; .5 is a guess. From a feature sample, by the distance of a
candidate's features to the nearest row; from an importance set, by the likeness of the candidate's
own set to it; from a header, by its loss on the candidate less the coarse header's.

*Inversion*: pixels from a row of features, by a ridge regression that the edge server fits on its
own samples under the same protection. Share of the pixels' variance that it explains, and how often
the true image is the nearest of 200 to what it makes; .005 is a guess.

Means over devices with Student's 95 % interval; half of the devices swap the two parts of the
others. An attack that fails shows nothing about a better one.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import Tensor

from acme_fleet.config.backbone import Reference, ViT
from acme_fleet.config.data import Data
from acme_fleet.config.personalization import Privacy
from acme_fleet.config.training import Training
from acme_fleet.data.datasets import load_source
from acme_fleet.data.samples import Samples, Splits, join
from acme_fleet.device.importance import ImportanceAccumulator
from acme_fleet.device.refinement import train_header
from acme_fleet.messages.header_plan import Genotype, HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.features import feature_samples
from acme_fleet.models.header.module import Header, build_header, initial_tensors
from acme_fleet.models.vit import new_vit, vit_config
from acme_fleet.privacy.protection import Protection
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.loop import fit
from acme_research.ablations.personalisation_fleets import BLOCK
from acme_research.frame.intervals import mean_interval
from acme_research.frame.record import write_result

DEVICES, MEMBERS, OWN, CANDIDATES = 20, 40, 600, 200
HIDDEN = 32
GENOTYPE = Genotype(blocks=(BLOCK,), cells=1, channels=8)
LOCAL = Training(epochs=30, batch_size=16, learning_rate=5e-3)
FEATURES: dict[str, dict[str, Any]] = {
    "as they are": {},
    "8 bits": {"sketch_bits": 8},
    "sketch of 16, 8 bits": {"sketch_dim": 16, "sketch_bits": 8},
    "sketch of 4, 8 bits": {"sketch_dim": 4, "sketch_bits": 8},
    "noise, ε = 10": {"feature_noise": 0.5},
    "noise, ε = 1": {"feature_noise": 3.73},
    "sketch of 16, noise, ε = 10": {"sketch_dim": 16, "feature_noise": 0.5},
}
IMPORTANCE = {"as it is": None, "noise, ε = 10": 0.5, "noise, ε = 1": 3.73}


def training(epochs: int) -> Training:
    """On the edge server."""
    return Training(epochs=epochs, batch_size=32, learning_rate=3e-3)


class Stage:
    """The world of the attacks: a trained ViT, the edge server's samples and those of devices."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        source = load_source(Data())
        whole = join([source.train, source.test])
        order = torch.randperm(len(whole), generator=generator(0, "attacks"))
        self.folder, rest = folder, iter(order.split(MEMBERS))
        self.own = whole[torch.cat([next(rest) for _ in range(OWN // MEMBERS)])]
        self.devices = [(whole[next(rest)], whole[next(rest)]) for _ in range(DEVICES // 2)]
        # There are as many digits as for half of the devices; the others swap the two parts.
        self.devices += [(others, members) for members, others in self.devices]
        shape = tuple(self.own.inputs["pixel_values"].shape[1:])
        settings = Reference(model=ViT(hidden_size=HIDDEN, layers=2, heads=2, neurons=64))
        model = new_vit(CLASSIFICATION, vit_config(settings, shape), source.classes, 0)  # type: ignore[arg-type]
        fit(CLASSIFICATION, model, self.own, training(15), generator(0, "reference"))
        self.backbone = model.backbone.eval()
        self.plan = HeaderPlan(genotype=GENOTYPE, hidden=HIDDEN, classes=10, axes=2)
        first = build_header(self.plan, initial_tensors(self.plan.shapes(), generator(0, "header")))
        public = self.features(self.own)
        splits, draw = Splits(public, public, public), generator(0, "coarse")
        self.coarse, _ = train_header(CLASSIFICATION, first, splits, training(2), draw)

    def features(self, samples: Samples) -> Samples:
        return feature_samples(self.backbone, samples)

    def protection(self, device: int, **privacy: Any) -> Protection:
        settings = Privacy.model_validate({"feature_clip": 1.1, **privacy})
        return Protection(f"d{device}", settings, 0, self.folder / f"secret-{device}")

    def trained(self, device: int) -> tuple[Header, ImportanceSet]:
        members = self.features(self.devices[device][0])
        splits = Splits(members, members, members)
        draw = generator(device, "local")
        return train_header(CLASSIFICATION, self.coarse, splits, LOCAL, draw, to_mix=True)


def auc(stage: Stage, device: int, scores: Callable[[Samples], np.ndarray]) -> float:
    """Of scores that tell a device's training samples from others."""
    parts = [stage.features(part) for part in stage.devices[device]]
    truth = np.repeat([1, 0], [len(part) for part in parts])
    return float(roc_auc_score(truth, np.concatenate([scores(part) for part in parts])))


def from_features(stage: Stage, device: int, **privacy: Any) -> float:
    """The edge server projects candidates as the fleet's seed says; it cannot repeat the noise."""
    members = stage.features(stage.devices[device][0])
    sent = stage.protection(device, **privacy).features(members.inputs["pooled"])
    known = {name: value for name, value in privacy.items() if name == "sketch_dim"}
    rows = (sent.values.double() * sent.scale).numpy()

    def scores(candidates: Samples) -> np.ndarray:
        asked = stage.protection(99, **known).features(candidates.inputs["pooled"])
        made = (asked.values.double() * asked.scale).numpy()
        return -np.linalg.norm(made[:, None] - rows[None], axis=2).min(axis=1)

    return auc(stage, device, scores)


def own_set(header: Header, sample: Samples) -> Tensor:
    """The importance set of one sample alone."""
    accumulator = ImportanceAccumulator(header)
    header.zero_grad()
    CLASSIFICATION.loss(header(**sample.inputs), sample.labels).backward()
    accumulator.add()
    return accumulator.result(GENOTYPE.channels).normalized().flat()


def from_importance(stage: Stage, device: int, noise: float | None) -> float:
    header, importance = stage.trained(device)
    privacy = {} if noise is None else {"importance_noise": noise}
    sent = stage.protection(device, **privacy).importance(importance).normalized().flat().double()
    header.requires_grad_(True)

    def scores(candidates: Samples) -> np.ndarray:
        sets = [own_set(stage.coarse, candidates[i : i + 1]) for i in range(len(candidates))]
        own = torch.stack(sets).double()
        return torch.nn.functional.cosine_similarity(own, sent[None]).numpy()

    return auc(stage, device, scores)


@torch.no_grad()
def from_header(stage: Stage, device: int) -> float:
    with torch.enable_grad():
        header, _ = stage.trained(device)

    def scores(candidates: Samples) -> np.ndarray:
        labels = candidates.labels[:, None]
        losses = [
            CLASSIFICATION.loss(each(**candidates.inputs)[:, :, None], labels, "none")
            for each in (stage.coarse, header)
        ]
        return (losses[0] - losses[1]).flatten().numpy()

    return auc(stage, device, scores)


def inverted(stage: Stage, device: int, **privacy: Any) -> tuple[float, float]:
    """Share of variance explained, and of images found again among 200."""
    public, members = stage.own, stage.devices[device][0]
    sent = stage.protection(device, **privacy).features(stage.features(members).inputs["pooled"])
    mine = stage.protection(99, **privacy).features(stage.features(public).inputs["pooled"])
    known, target = ((each.values.double() * each.scale).numpy() for each in (mine, sent))
    pixels, true = (each.inputs["pixel_values"].flatten(1).numpy() for each in (public, members))
    made = Ridge(alpha=1.0).fit(known, pixels).predict(target)
    explained = 1 - ((made - true) ** 2).sum() / ((true - pixels.mean(axis=0)) ** 2).sum()
    decoys = pixels[: CANDIDATES - 1]
    to_true = np.linalg.norm(made - true, axis=1)
    to_decoys = np.linalg.norm(made[:, None] - decoys[None], axis=2).min(axis=1)
    return float(explained), float((to_true < to_decoys).mean())


def over_devices(measure: Callable[[int], float]) -> dict[str, Any]:
    return mean_interval([measure(device) for device in range(DEVICES)], 3)


def on_features(stage: Stage, privacy: dict[str, Any]) -> dict[str, Any]:
    """Both attacks on a feature sample under one protection."""
    pairs = [inverted(stage, device, **privacy) for device in range(DEVICES)]
    return {
        "membership": over_devices(lambda device: from_features(stage, device, **privacy)),
        "explained": mean_interval([explained for explained, _ in pairs], 3),
        "found again": mean_interval([share for _, share in pairs], 3),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        found = {
            "features": {name: on_features(stage, own) for name, own in FEATURES.items()},
            "importance": {
                name: over_devices(lambda device, n=noise: from_importance(stage, device, n))
                for name, noise in IMPORTANCE.items()
            },
            "header": over_devices(lambda device: from_header(stage, device)),
        }
    print(json.dumps(found, indent=1))
    write_result("privacy_attacks", found)


if __name__ == "__main__":
    main()
