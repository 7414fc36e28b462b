"""The reference model θ0: trained on the public data, or loaded from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from acme_fleet.config.backbone import Pooling, Reference
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.size import file_size, parameter_count, shapes_of
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import Origin
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import (
    check_kind,
    load_backbone,
    load_head,
    load_language_model,
    require_kind,
)
from acme_fleet.models.backbone.elastic import is_full_width, with_vocabulary
from acme_fleet.models.families import family_of, most_tokens, own_pooling
from acme_fleet.models.features import Classifier, LanguageModel, patches
from acme_fleet.models.fitted import read_fitted
from acme_fleet.models.pooling import pool_by, pooled_size, pooling_of_checkpoint, poolings_of
from acme_fleet.models.probe import choose_pooling
from acme_fleet.models.storage import clone_state
from acme_fleet.models.vit import new_vit, shape_of_vit, vit_config
from acme_fleet.runs.notes import Progress
from acme_fleet.seeding import derive_seed, seeded
from acme_fleet.tasks.base import Task
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.augmentation import Augment
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.fine_tuning import contrast, fine_tune
from acme_fleet.training.group import ALONE, Group
from acme_fleet.training.loop import fit
from acme_fleet.training.precision import Numbers

Model = TypeVar("Model", bound=Classifier)


@dataclass(frozen=True)
class ReferenceResult:
    """θ0: its size, p of Eq. 2, its accuracy on the public test data, and where it comes from.

    Without labels its accuracy is not known.
    """

    params: int
    patches: int
    size_bytes: int
    accuracy: float | None
    pooling: Pooling
    origin: Origin


def untrained_reference(
    settings: Fleet,
    public: Splits,
    class_names: list[str],
    vocabulary: Sequence[int] | None = None,
    *,
    shape_alone: bool = False,
) -> Classifier:
    """The reference before its training on the public data: a checkpoint, or a new ViT.

    A checkpoint's own classifier is kept if it knows the same classes. Without it, and without
    public labels to fit one to, the classifier is zero.

    With ``shape_alone`` a new ViT has shapes and no weights. A checkpoint is loaded all the same:
    only that shows that it can be used.

    Raises:
        FleetError: if the images cannot be cut into patches, the checkpoint cannot be used or
            holds weights that are not finite, or a setting needs public labels that are missing.
    """
    if not public.labelled:
        _check_unlabelled(settings, public)
    task, inputs = task_of(settings.task), public.train.inputs
    if settings.reference.checkpoint is None:
        _, channels, rows, columns = inputs["pixel_values"].shape
        config = vit_config(settings.reference, (channels, rows, columns))
        if shape_alone:
            return shape_of_vit(task, config, class_names)
        return new_vit(task, config, class_names, settings.seed)
    if task.per_token:
        return _language_model(settings, inputs, vocabulary)
    with seeded(derive_seed(settings.seed, "reference")):
        of = settings.reference, inputs, class_names, vocabulary
        model, own_head = _from_checkpoint(task, *of)
    if not (own_head or public.labelled):
        for parameter in model.head.parameters():
            nn.init.zeros_(parameter)
    return model


def check_reference(settings: Fleet) -> None:
    """Refuse a checkpoint that is not for the fleet's data or task, before any data are read.

    Raises:
        FleetError: see :func:`~acme_fleet.models.backbone.checkpoints.check_kind`.
    """
    checkpoint, revision = settings.reference.checkpoint, settings.reference.revision
    if checkpoint is not None:
        images, writes = not settings.data.holds_texts, task_of(settings.task).per_token
        check_kind(checkpoint, revision, images=images, writes=writes)


def _check_unlabelled(settings: Fleet, public: Splits) -> None:
    """Refuse settings that public data without labels cannot follow.

    Raises:
        FleetError: naming the first of them.
    """
    data, backbone = settings.data, settings.backbone
    labels = f"the label column {data.label_column!r}"
    if data.source != "text":
        labels = f"labels (class folders, `labels` in an .npz file, or {labels})"
    lacking = f"{data.public} has no labels"
    if settings.reference.checkpoint is None:
        raise FleetError(
            f"data.public: {lacking}, and a reference that the run trains itself needs them; name "
            f"a pre-trained reference.checkpoint, or add {labels}"
        )
    if backbone.importance == "labels":
        raise FleetError(
            f"backbone.importance: labels cannot be followed, {lacking}; say features or auto, or "
            f"add {labels}"
        )
    if backbone.distillation.match == "states":
        raise FleetError(
            f"backbone.distillation.match: states learns a classifier, which cannot be fitted: "
            f"{lacking}; say features or auto, or add {labels}"
        )
    if len(public.validation) < 2:
        raise FleetError(
            f"data.public: {lacking}, and {len(public.validation)} sample for validation; features "
            f"are compared by their variance over 2 or more: use more samples, or raise "
            f"data.validation"
        )


def fitted_origin(settings: Reference, class_names: list[str], model: Classifier) -> Origin | None:
    """The origin of a checkpoint that was made for these classes; none of any other.

    Raises:
        FleetError: if its classifier cannot be used.
    """
    if settings.checkpoint is None or isinstance(model, LanguageModel):
        return None
    hidden = model.backbone.config.hidden_size
    fitted = read_fitted(settings.checkpoint, class_names, hidden)
    return None if fitted is None else fitted[1].origin


def known_pooling(settings: Reference, hidden: int) -> Pooling | None:
    """A checkpoint's pooling by the fleet file or its own; none where neither says.

    Raises:
        FleetError: if the checkpoint's own file cannot be followed.
    """
    if settings.pooling != "auto" or settings.checkpoint is None:
        return None if settings.pooling == "auto" else settings.pooling
    return pooling_of_checkpoint(settings.checkpoint, hidden)


def checkpoint_backbone(
    settings: Reference, inputs: Mapping[str, Tensor], vocabulary: Sequence[int] | None = None
) -> tuple[PreTrainedModel, Pooling | None]:
    """A checkpoint's untouched backbone for such inputs, and how it is known to be pooled.

    Args:
        settings: name the checkpoint.
        inputs: images, whose size it takes, or texts.
        vocabulary: the tokens that it keeps; none keeps all.

    Raises:
        FleetError: if it cannot be loaded, or its own pooling file cannot be followed.
    """
    assert settings.checkpoint is not None
    pixels = inputs.get("pixel_values")
    side = None if pixels is None else pixels.shape[-1]
    backbone = load_backbone(settings.checkpoint, settings.revision, side)
    if vocabulary is not None:
        backbone = with_vocabulary(backbone, vocabulary)
    return backbone, known_pooling(settings, backbone.config.hidden_size)


def _from_checkpoint(
    task: Task,
    settings: Reference,
    inputs: dict[str, Tensor],
    class_names: list[str],
    vocabulary: Sequence[int] | None,
) -> tuple[Classifier, bool]:
    """The checkpoint as a classifier, and whether it came with a head for these classes."""
    checkpoint, revision = settings.checkpoint, settings.revision
    assert checkpoint is not None
    backbone, known = checkpoint_backbone(settings, inputs, vocabulary)
    config = backbone.config
    require_kind(str(checkpoint), config, images="pixel_values" in inputs)
    pool_by(backbone, known or config.pooling)
    if not is_full_width(config):
        raise FleetError(f"reference.checkpoint: {checkpoint} was made narrower already")
    images = family_of(config).grid == "image"
    (_check_images if images else _check_texts)(checkpoint, config, inputs)
    if (fitted := read_fitted(checkpoint, class_names, config.hidden_size)) is not None:
        tensors, about = fitted
        pool_by(backbone, about.pooling)
        head = task.head(pooled_size(about.pooling, config.hidden_size), class_names)
        head.load_state_dict(tensors)
        return _finite(checkpoint, Classifier(backbone, head)), True
    head = load_head(checkpoint, class_names, revision) if images else None
    if head is not None:  # it was trained on vectors of one kind
        double = head.in_features == pooled_size("first_mean", config.hidden_size)
        own = "first_mean" if double else own_pooling(config)
        config.pooling, head = (own, head) if known in (None, own) else (known, None)
    width = pooled_size(config.pooling, config.hidden_size)
    loaded = Classifier(backbone, head or task.head(width, class_names))
    return _finite(checkpoint, loaded), head is not None


def _language_model(
    settings: Fleet, inputs: Mapping[str, Tensor], vocabulary: Sequence[int] | None
) -> LanguageModel:
    """A checkpoint as a language model; texts are compared by the mean of their states."""
    checkpoint, asked = settings.reference.checkpoint, settings.reference.pooling
    assert checkpoint is not None
    backbone = load_language_model(checkpoint, settings.reference.revision)
    if vocabulary is not None:
        backbone = with_vocabulary(backbone, vocabulary)
    pool_by(backbone, "mean" if asked == "auto" else asked)
    if not is_full_width(backbone.config):
        raise FleetError(f"reference.checkpoint: {checkpoint} was made narrower already")
    _check_texts(checkpoint, backbone.config, inputs)
    return _finite(checkpoint, LanguageModel(backbone))


def _finite(checkpoint: str | Path, model: Model) -> Model:
    for name, tensor in model.state_dict().items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise FleetError(
                f"reference.checkpoint: {bad} of {tensor.numel()} numbers of the tensor {name} of "
                f"{checkpoint} are not finite; save the checkpoint again from a sound model"
            )
    return model


def _check_images(
    checkpoint: str | Path, config: PreTrainedConfig, inputs: dict[str, Tensor]
) -> None:
    size = (config.num_channels, config.image_size, config.image_size)
    shape = tuple(inputs["pixel_values"].shape[1:])
    if size != shape:
        raise FleetError(
            f"reference.checkpoint: {checkpoint} takes images of {size}, the data have "
            f"{shape}; set data.image_size to {config.image_size}"
        )


def _check_texts(
    checkpoint: str | Path, config: PreTrainedConfig, inputs: Mapping[str, Tensor]
) -> None:
    tokens, known = inputs["input_ids"].shape[1], int(inputs["input_ids"].max())
    if tokens > most_tokens(config):
        raise FleetError(
            f"data.max_tokens: {tokens} is more than the {most_tokens(config)} tokens that "
            f"{checkpoint} takes"
        )
    if known >= config.vocab_size:
        raise FleetError(
            f"reference.checkpoint: the tokenizer of {checkpoint} says token {known}, the model "
            f"knows {config.vocab_size} tokens"
        )


def public_probe(
    task: Task, model: Classifier, public: Splits, pooling: Pooling | None
) -> tuple[Pooling, dict[str, Tensor]]:
    """A pre-trained reference with a head for the task, without touching its backbone.

    Args:
        task: without a probe the model's own head and pooling stay.
        model: its own head is kept if it is the better one on validation data.
        public: what the probe is fitted to, and what chooses.
        pooling: how it was pre-trained to be pooled; none lets the validation data choose.

    Returns:
        How it is pooled, and the tensors of the head.
    """
    backbone, classes = model.backbone, model.head.out_features
    own = backbone.config.pooling, clone_state(model.head)
    if task.probe is None:
        return own
    ways = poolings_of(backbone.config, pooling)
    best, probe = choose_pooling(task.probe, backbone, public, classes, ways)

    def score(candidate: tuple[Pooling, dict[str, Tensor]]) -> float:
        tried = copy.deepcopy(model)
        tried.backbone.config.pooling = candidate[0]
        tried.head.load_state_dict(candidate[1])
        return evaluate(task, tried.eval(), public.validation).score

    return max((best, probe.tensors()), own, key=score)


def train_reference(
    task: Task,
    model: Classifier,
    settings: Reference,
    public: Splits,
    generator: torch.Generator,
    augment: Augment | None,
    progress: Progress,
    numbers: Numbers | None = None,
    group: Group = ALONE,
) -> Classifier:
    """Train in place: from nothing, or a checkpoint, whose start competes with the best epoch.

    Without labels there is nothing to train a checkpoint on: it stays as it is.
    """
    if not public.labelled:
        return model
    if settings.checkpoint is None:
        fit(
            task,
            model,
            public.train,
            settings.training,
            generator,
            validation=public.validation,
            augment=augment,
            on_epoch=lambda epoch, note: progress(epoch, settings.training.epochs, note),
            numbers=numbers,
            group=group,
        )
    elif settings.recipe == "labels":
        fine_tune(task, model, settings, public, generator, augment, progress, numbers, group)
    elif task.probe is not None:
        contrast(task.probe, model, settings, public, generator, progress, numbers)
    return model


def origin_of(settings: Reference, before: Mapping[str, Tensor], model: Classifier) -> Origin:
    """The origin of a reference whose tensors were ``before`` until training."""
    if settings.checkpoint is None:
        return "trained"
    after = model.state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    return "untouched" if same else "fine-tuned"


def described(task: Task, model: Classifier, test: Samples, origin: Origin) -> ReferenceResult:
    """Size, origin and, where the test data have labels, score of θ0."""
    shapes = shapes_of(model)
    return ReferenceResult(
        params=parameter_count(shapes),
        patches=patches(model.backbone.config, test.inputs),
        size_bytes=file_size(shapes),
        accuracy=evaluate(task, model, test).score if test.labelled else None,
        pooling=model.backbone.config.pooling,
        origin=origin,
    )
