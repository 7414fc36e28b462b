"""Light-weight models at a device's storage limit: the same data, the same number of passes.

Each is a shape of ``transformers``, as wide as the limit allows, all parameters counted: in int8
where the fleet's candidates and devices have it, with the accuracy of float32 weights, which
favours the rival. It is trained from scratch like the reference: on the pre-training data where a
scale has some, then on the cloud's public data for as many epochs as the reference, both
distillation steps and the recovery took together. Then each device gets it with a linear classifier
of its own, adapted to the edge's and the device's own data for as many epochs as a customised
header is.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LevitConfig,
    LevitForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    PvtV2Config,
    PvtV2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from acme_fleet.config.devices import Cluster, Precision, common
from acme_fleet.cost.size import file_size, shapes_of
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.models.features import Classifier, activations, moved
from acme_fleet.models.storage import read_tensors, without_prefix, write_tensors
from acme_fleet.seeding import seeded
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.augmentation import augmentation
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit
from acme_fleet.training.pretraining import train_averaged
from acme_fleet.training.resume import EpochState
from acme_research.frame.bench import Bench

_WIDEST = 256
_LEARNING_RATE = 1e-3  # of the public stage, a training from scratch where nothing came before


def _to(multiple: int, value: float) -> int:
    return max(multiple, round(value / multiple) * multiple)


def _deit(k: int, side: int, channels: int, patch: int) -> nn.Module:
    """DeiT-tiny's twelve layers and three heads, narrower."""
    hidden = 3 * k
    return ViTForImageClassification(
        ViTConfig(
            image_size=side,
            patch_size=patch,
            num_channels=channels,
            hidden_size=hidden,
            num_hidden_layers=12,
            num_attention_heads=3,
            intermediate_size=4 * hidden,
        )
    )


def _pvt(k: int, side: int, channels: int, patch: int) -> nn.Module:
    """PVTv2-B0's four stages, narrower: the pyramid that Twins-SVT starts from."""
    return PvtV2ForImageClassification(
        PvtV2Config(
            image_size=side,
            num_channels=channels,
            hidden_sizes=[2 * k, 4 * k, _to(2, 10 * k), _to(4, 16 * k)],
            depths=[1, 1, 2, 2],
            num_attention_heads=[1, 1, 2, 4],
            sr_ratios=[4, 2, 1, 1],
            mlp_ratios=[4, 4, 4, 4],
        )
    )


def _levit(k: int, side: int, channels: int, patch: int) -> nn.Module:
    """LeViT-128S's three stages, narrower, on images of twice the side: its stem divides by 16."""
    model = LevitForImageClassification(
        LevitConfig(
            image_size=2 * side,
            num_channels=channels,
            hidden_sizes=[8 * k + 8, 12 * k + 12, 16 * k + 16],
            num_attention_heads=[2, 3, 4],
            depths=[2, 2, 2],
            key_dim=[16, 16, 16],
            attention_ratio=[2, 2, 2],
            mlp_ratio=[2, 2, 2],
        )
    )
    for attention in model.modules():
        if hasattr(attention, "attention_bias_cache"):
            # It would go on with the biases of its first answer when other weights are loaded.
            attention.register_forward_pre_hook(_forget_biases)
    return _Enlarged(model, 2)


def _forget_biases(attention: Any, _: Any) -> None:
    attention.attention_bias_cache.clear()


def _mobilevit(k: int, side: int, channels: int, patch: int) -> nn.Module:
    """MobileViT-XXS's stages, narrower."""
    return MobileViTForImageClassification(
        MobileViTConfig(
            image_size=side,
            num_channels=channels,
            patch_size=2,
            hidden_sizes=[_to(4, x * k / 16) for x in (64, 80, 96)],
            neck_hidden_sizes=[_to(4, x * k / 16) for x in (16, 16, 24, 48, 64, 80, 320)],
            expand_ratio=2.0,
        )
    )


SHAPES: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "deit": _deit,
    "pvt": _pvt,
    "levit": _levit,
    "mobilevit": _mobilevit,
}
NAMES = {
    "deit": "DeiT-tiny, narrowed",
    "pvt": "PVTv2 (Twins-SVT-like)",
    "levit": "LeViT (efficient ViT)",
    "mobilevit": "MobileViT",
}


class _Enlarged(nn.Module):
    """A model on images that are enlarged first; it looks like the model otherwise."""

    def __init__(self, model: nn.Module, factor: int) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, pixel_values: Tensor) -> Any:
        larger = F.interpolate(pixel_values, scale_factor=self.factor, mode="nearest")
        return self.model(pixel_values=larger)


class Rival(nn.Module):
    """A body without its classifier, and a linear classifier."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        inner = body
        while isinstance(inner, _Enlarged):
            inner = inner.model
        inner.classifier = nn.Identity()
        self.body, self.head = body, nn.Linear(features, classes)

    def features(self, pixel_values: Tensor) -> Tensor:
        """The classifier's input, shape ``(batch, features)``."""
        return self.body(pixel_values=pixel_values.to(self.head.weight.device)).logits

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)``."""
        return self.head(self.features(pixel_values))


class Plain(nn.Module):
    """A backbone with a linear classifier on its pooled token, adapted like a rival."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.head = classifier.head

    def features(self, **inputs: Tensor) -> Tensor:
        """The pooled token, shape ``(batch, hidden)``."""
        backbone = self.classifier.backbone
        return activations(backbone, moved(inputs, backbone.device)).pooled

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)``."""
        return self.classifier(**inputs)


class Head(nn.Module):
    """A classifier on features that are computed already."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = nn.Linear(head.in_features, head.out_features)
        self.head.load_state_dict(head.state_dict())

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape ``(batch, classes)``."""
        return self.head(features)


# --- shapes -----------------------------------------------------------------------------------


def make(shape: str, k: int, bench: Bench, classes: int) -> Rival:
    """An untrained rival of width ``k``."""
    channels, side = bench.images.channels, bench.images.side
    trained = "pretraining" in bench.extra
    patch = (bench.recipe() if trained else bench.fleet.reference).model.patch_size
    larger = bench.extra["upsampling"] if shape != "deit" else 1
    with seeded(k):
        body = SHAPES[shape](k, side * larger, channels, patch)
        body = _Enlarged(body, larger) if larger > 1 else body
        rival = Rival(body, 1, classes).eval()
        with torch.no_grad():
            features = rival.features(torch.zeros(1, channels, side, side)).shape[1]
        rival.head = nn.Linear(features, classes)
    return rival


def limit_of(cluster: Cluster) -> int:
    """min C_n of a cluster in bytes."""
    return min(device.storage for device in cluster.devices)


def rival_bytes(rival: Rival, limit: int, bench: Bench) -> int:
    """Bytes of a rival's file on the devices of a limit."""
    fleet = bench.unprepared
    devices = [cluster.precisions for cluster in fleet.clusters if limit_of(cluster) == limit]
    able = common([fleet.backbone.precisions, *devices])
    precision: Precision = "int8" if "int8" in able else "float32"
    return file_size(shapes_of(rival), precision)


def widest(shape: str, limit: int, bench: Bench) -> int | None:
    """The largest width whose file is within ``limit`` bytes; none if the narrowest is not."""
    classes, fitting, too_wide = bench.images.classes, 0, 2

    def fits(k: int) -> bool:
        return rival_bytes(make(shape, k, bench, classes), limit, bench) <= limit

    while fits(too_wide):
        fitting, too_wide = too_wide, min(2 * too_wide, _WIDEST)
        if fitting == _WIDEST:
            return fitting
    while too_wide - fitting > 1:
        k = (fitting + too_wide) // 2
        if fits(k):
            fitting = k
        else:
            too_wide = k
    return fitting or None


# --- training ---------------------------------------------------------------------------------


def trained(shape: str, limit: int, bench: Bench) -> Rival | None:
    """A rival after the cloud's two stages; both are kept on disk."""
    k = widest(shape, limit, bench)
    if k is None:
        return None
    rival = make(shape, k, bench, len(bench.world.classes))
    path = bench.folder / "rivals" / f"{shape}-{limit}.safetensors"
    if not path.exists():
        if "pretraining" in bench.extra:
            known = _pretrained(shape, k, limit, bench)
            rival.body.load_state_dict(without_prefix("body", known))
        public_stage(rival, bench, bench.draw("rival", shape, limit))
        write_tensors(path, rival.state_dict(), {})
    rival.load_state_dict(read_tensors(path)[0])
    return rival.eval()


def pretrain_rival(shape: str, limit: int, bench: Bench) -> None:
    """Leave on disk what all seeds' rivals of this shape and limit start from, if there is any."""
    k = widest(shape, limit, bench)
    if k is not None and "pretraining" in bench.extra:
        _pretrained(shape, k, limit, bench)


def _pretrained(shape: str, k: int, limit: int, bench: Bench) -> dict[str, Tensor]:
    """A rival's tensors, pre-trained by the reference's recipe and like it once for all seeds."""
    path = bench.pretrained_folder / "rivals" / f"{shape}-{limit}.safetensors"
    if not path.exists():
        source = bench.pretraining_source()
        state = EpochState(path.with_suffix(".epochs"))
        model = train_averaged(
            make(shape, k, bench, len(source.classes)).to(bench.options.device),
            source.train,
            bench.recipe(),
            state,
            lambda epoch, note, _: print(f"{shape} {limit}: epoch {epoch}, {note}", flush=True),
        ).cpu()
        write_tensors(path, model.state_dict(), {})
        state.remove()
    return read_tensors(path)[0]


def public_stage(model: nn.Module, bench: Bench, draw: torch.Generator) -> None:
    """The cloud's public data, the best epoch by its validation data."""
    reference, distillation = bench.fleet.reference, bench.fleet.backbone.distillation
    epochs = reference.training.epochs + distillation.epochs_in_all
    rate = reference.training.learning_rate if "pretraining" in bench.extra else _LEARNING_RATE
    training = reference.training.model_copy(update={"epochs": epochs, "learning_rate": rate})
    augment = augmentation(reference.crop_padding, flip=reference.flip)
    train, validation = bench.world.public.train, bench.world.public.validation
    with bench.accelerated(model):
        fit(CLASSIFICATION, model, train, training, draw, validation=validation, augment=augment)


@torch.no_grad()
def features_of(
    rival: Rival | Plain, bench: Bench, samples: Samples, batch_size: int = 256
) -> Samples:
    """Samples whose inputs are what the classifier sees."""
    rival.eval()
    with bench.accelerated(rival):
        found = [rival.features(**batch.inputs).cpu() for batch in samples.batches(batch_size)]
    return Samples({"features": torch.cat(found)}, samples.labels, samples.stored_bytes)


def personal_accuracies(
    rival: Rival | Plain, cluster: Cluster, bench: Bench, purpose: str
) -> list[float]:
    """Test accuracy of each device of a cluster with a classifier of its own."""
    features = partial(features_of, rival, bench)
    return adapted_accuracies(features, Head(rival.head), cluster, bench, purpose)


def adapted_accuracies(
    features: Callable[[Samples], Samples],
    header: nn.Module,
    cluster: Cluster,
    bench: Bench,
    purpose: str,
) -> list[float]:
    """Test accuracy of each device with a header of its own on frozen features.

    The header is trained on the edge's data, a quarter of them to choose the epoch, and then on
    the device's, for as many epochs as a customised header is.
    """
    shared = features(bench.world.shared[cluster.name])
    draw = bench.draw("rival edge", purpose, cluster.name)
    order = torch.randperm(len(shared), generator=draw)
    known, choice = shared[order[len(order) // 4 :]], shared[order[: len(order) // 4]]
    header = copy.deepcopy(header)
    fit(CLASSIFICATION, header, known, bench.fleet.search.fine_tuning, draw, validation=choice)
    accuracies = []
    for device in cluster.devices:
        parts = features_of_splits(features, bench.world.private[device.name])
        draw = bench.draw("rival device", purpose, device.name)
        accuracies.append(personal_accuracy(header, parts, bench, draw))
    return accuracies


def features_of_splits(features: Callable[[Samples], Samples], own: Splits) -> Splits:
    """A device's samples as its header sees them."""
    return Splits(*(features(samples) for samples in (own.train, own.validation, own.test)))


def personal_accuracy(
    header: nn.Module, parts: Splits, bench: Bench, draw: torch.Generator
) -> float:
    """Test accuracy of a copy of a header that one device has trained on."""
    personal = copy.deepcopy(header)
    training = bench.fleet.personalization.training_in_all
    fit(CLASSIFICATION, personal, parts.train, training, draw, validation=parts.validation)
    return evaluate(CLASSIFICATION, personal, parts.test).score
