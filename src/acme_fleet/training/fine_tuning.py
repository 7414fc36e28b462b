"""Fine-tuning of a pre-trained reference on labelled public data; its start competes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from acme_fleet.config.backbone import Reference
from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.models.families import family_of
from acme_fleet.models.family import LM_HEAD
from acme_fleet.models.features import Classifier, activations, moved
from acme_fleet.models.padding import without_padding
from acme_fleet.models.probe import probe_of
from acme_fleet.models.storage import clone_state
from acme_fleet.runs.notes import Progress
from acme_fleet.seeding import derive_seed, seeded
from acme_fleet.tasks.base import Fit, Task
from acme_fleet.training.augmentation import Augment
from acme_fleet.training.averaging import Averaged
from acme_fleet.training.group import ALONE, Group
from acme_fleet.training.loop import Optimization, check_converging, fit, steps_of
from acme_fleet.training.precision import Numbers, mixed_precision

_PATIENCE = 3  # epochs without a better one


def fine_tune(
    task: Task,
    model: Classifier,
    settings: Reference,
    public: Splits,
    generator: torch.Generator,
    augment: Augment | None,
    progress: Progress,
    numbers: Numbers | None = None,
    group: Group = ALONE,
) -> None:
    """Train on the labels in place: smoothed labels, slower early layers, averaged weights.

    The epoch with the best validation score is kept, the start among them. Three epochs that are no
    better than one before end it; the start does not count there, as training falls below it first.

    Args:
        task: what is learned.
        model: a pre-trained backbone with a head that was fitted to its features.
        settings: of the training, of its layers and its labels.
        public: what is learned, and what chooses the epoch.
        generator: decides order, augmentation and dropout.
        augment: changes each batch.
        progress: called with the epochs that are done, and all.
        numbers: of matrix products.
        group: see :func:`~acme_fleet.training.loop.fit`.
    """
    training = settings.training
    averaged = Averaged.over(model, steps_of(public.train, training))
    fit(
        task.smoothed(settings.label_smoothing),
        averaged,
        public.train,
        training,
        generator,
        validation=public.validation,
        augment=augment,
        after_backward=averaged.update,
        on_epoch=lambda epoch, note: progress(epoch, training.epochs, note),
        scales=layer_scales(model, settings.layer_decay),
        patience=_PATIENCE,
        numbers=numbers,
        group=group,
    )
    model.load_state_dict(averaged.average.module.state_dict())
    model.eval()


def contrast(
    probe: Fit,
    model: Classifier,
    settings: Reference,
    public: Splits,
    generator: torch.Generator,
    progress: Progress,
    numbers: Numbers | None = None,
) -> None:
    """Train pooled vectors in place to tell classes apart, then fit the head to them.

    Contrastive fine-tuning as in SetFit (Tunstall et al., 2022), for few samples of each class.
    Here all pairs of a batch count, half of which are drawn as partners of the same class. What is
    kept, and when it ends, is as in :func:`fine_tune`, by a regression on the vectors.

    Args:
        probe: the task's regression.
        model: see :func:`fine_tune`, and for the other arguments.
    """
    training, backbone = settings.training, model.backbone
    steps = steps_of(public.train, training)
    scales = layer_scales(model, settings.layer_decay)
    optimization = Optimization(backbone.parameters(), training, steps, scales)
    head, best = probe_of(probe, model, public)
    kept, latest, waited = clone_state(backbone), 0.0, 0
    for epoch in range(training.epochs):
        backbone.train()
        with seeded(derive_seed(generator.initial_seed(), "dropout", epoch), backbone.device):
            total = _contrastive_epoch(
                model, public.train, training, optimization, generator, numbers
            )
        backbone.eval()
        check_converging(total, optimization.parameters, epoch, training)
        found, score = probe_of(probe, model, public)
        waited += 1
        if score > latest:
            latest, waited = score, 0
        if score > best:
            head, best, kept = found, score, clone_state(backbone)
        progress(epoch + 1, training.epochs, f"validation {score:.4f}")
        if waited >= _PATIENCE:
            break
    backbone.load_state_dict(kept)
    model.head.load_state_dict(head)


def _contrastive_epoch(
    model: Classifier,
    train: Samples,
    training: Training,
    optimization: Optimization,
    generator: torch.Generator,
    numbers: Numbers | None,
) -> Float[Tensor, ""]:
    """A step for each batch; the sum of their losses."""
    device = model.backbone.device
    total = torch.zeros((), device=device)
    for rows in paired_batches(train.labels, training.batch_size, generator):
        batch = without_padding(train[rows])
        with mixed_precision(device, numbers):
            vectors = activations(model.backbone, moved(batch.inputs, device)).pooled
            loss = contrastive_loss(vectors, batch.labels.to(device))
        loss.backward()
        optimization.step()
        total += loss.detach()
    return total


def paired_batches(
    labels: Int[Tensor, " samples"], size: int, generator: torch.Generator
) -> list[Int[Tensor, " rows"]]:
    """Batches in which each sample of the first half has a partner of its class in the second.

    An epoch has as many batches as one of all samples. A partner is drawn among all samples of
    the class; one that is alone in its class is its own partner, which teaches nothing.
    """
    members = [torch.nonzero(labels == label).flatten() for label in range(int(labels.max()) + 1)]
    batches = []
    while len(batches) < math.ceil(len(labels) / size):
        order = torch.randperm(len(labels), generator=generator)
        for anchors in order.split(max(1, size // 2)):
            draws = torch.rand(len(anchors), generator=generator)
            own = [members[int(labels[row])] for row in anchors]
            partners = [of[int(draw * len(of))] for of, draw in zip(own, draws, strict=True)]
            batches.append(torch.cat([anchors, torch.stack(partners)]))
    return batches[: math.ceil(len(labels) / size)]


def contrastive_loss(
    vectors: Float[Tensor, "batch pooled"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Squared error of the cosines: 1 within a class, 0 between two; both kinds weigh the same.

    The pairs of a vector with itself do not count.
    """
    unit = F.normalize(vectors.float(), dim=1)
    cosines = unit @ unit.T
    alike = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    within, between = alike & ~itself, ~alike
    pull = ((1 - cosines).square() * within).sum() / within.sum().clamp(min=1)
    push = (cosines.square() * between).sum() / between.sum().clamp(min=1)
    return (pull + push) / 2


def layer_scales(model: Classifier, decay: float) -> dict[Tensor, float]:
    """Learning-rate scales by depth: the head 1, each earlier layer ``decay`` times the next."""
    family = family_of(model.backbone.config)
    layers = list(model.backbone.get_submodule(family.layers).children())
    first = decay ** (len(layers) + 1)
    scales: dict[Tensor, float] = dict.fromkeys(model.backbone.parameters(), first)
    for number, layer in enumerate(layers):
        scales |= dict.fromkeys(layer.parameters(), decay ** (len(layers) - number))
    for name, parameter in model.backbone.named_parameters():
        if name.startswith(f"{LM_HEAD}."):
            scales[parameter] = 1.0
    return scales
