"""A reference model from data alone: what ``acme pretrain`` makes where there is no download.

The recipe is that of DeiT (Touvron et al., 2021), cut to what a small model on small images needs:
AdamW with warm-up and a cosine to zero, random crops, mirror images, CutMix (Yun et al., 2019) and
a moving average of the weights; on a GPU bfloat16 and ``torch.compile``. The result is an ordinary
Hugging Face folder, which ``reference.checkpoint`` takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from acme_fleet.config.backbone import Reference, ViT
from acme_fleet.config.training import Training
from acme_fleet.data.checkpoint_files import PRETRAINING, WEIGHT_SUMS, weight_sums
from acme_fleet.data.datasets import Source
from acme_fleet.data.learned import DATA_SUMS, digests
from acme_fleet.data.samples import Samples, stratified_split
from acme_fleet.errors import FleetError, RunError, WriteError
from acme_fleet.models.backbone.checkpoints import save_plain
from acme_fleet.models.features import Classifier
from acme_fleet.models.storage import (
    PREPROCESSING,
    with_prefix,
    write_json,
)
from acme_fleet.models.vit import new_vit, vit_config
from acme_fleet.runs.atomic import remove, remove_partial
from acme_fleet.runs.locks import LOCK, held
from acme_fleet.runs.sealed import read_marked_json, write_marked_json
from acme_fleet.seeding import derive_seed, generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.augmentation import augmentation
from acme_fleet.training.averaging import Averaged
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit, steps_of
from acme_fleet.training.precision import Numbers, training_device, training_numbers
from acme_fleet.training.resume import EpochState

SHAPES = {
    "vit-micro": ViT(hidden_size=192, layers=6, heads=4, neurons=768),
    "vit-tiny": ViT(hidden_size=192, layers=12, heads=3, neurons=768),
    "vit-small": ViT(hidden_size=384, layers=12, heads=6, neurons=1536),
    "vit-base": ViT(hidden_size=768, layers=12, heads=12, neurons=3072),
}
"""Shapes by name; all but the first are DeiT's."""

RECORD, _STATE, _COMPUTE = PRETRAINING, "epochs.safetensors", "compute.json"
_VALIDATION = 0.05


@dataclass(frozen=True)
class Recipe:
    """A pre-training's model, data and settings.

    Attributes:
        model: the shape, with its patch; :data:`SHAPES` has names for some.
        training: epochs, batch size, learning rate, weight decay.
        crop_padding: pixels by which crops may move. flip: whether mirror images are images.
        cutmix: the share of batches that are mixed; pays in long training, where memorising is
            the danger, and slows a short one down.
        seed: decides everything.
    """

    model: ViT
    training: Training
    crop_padding: int = 0
    flip: bool = False
    cutmix: float = 0.0
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        parts = {"model": self.model.model_dump(), "training": self.training.model_dump()}
        return {**vars(self), **parts}


def recipe_for(
    source: Source,
    model: str,
    training: Training,
    patch_size: int | None = None,
    cutmix: float | None = None,
    seed: int = 0,
) -> Recipe:
    """The recipe that suits a data set: crops move by an eighth, colour images may be mirrored.

    Grey images are often signs, whose mirror images are others. Half of the batches are mixed by
    CutMix where training is long (from 50 epochs on).

    Raises:
        FleetError: if there is no such model.
    """
    if model not in SHAPES:
        raise FleetError(f"--model: there is no {model}; choose one of {', '.join(SHAPES)}")
    _, channels, side, _ = source.train.inputs["pixel_values"].shape
    patch = patch_size or (16 if side >= 128 else max(1, side // 8))
    return Recipe(
        SHAPES[model].model_copy(update={"patch_size": patch}),
        training,
        crop_padding=side // 8,
        flip=channels == 3,
        cutmix=(0.5 if training.epochs >= 50 else 0.0) if cutmix is None else cutmix,
        seed=seed,
    )


def pretrain(
    source: Source,
    recipe: Recipe,
    folder: Path,
    *,
    paths: Sequence[Path] = (),
    torch_device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Train a ViT on all of ``source.train`` but a small validation share, and save it.

    Stopped, it goes on after the last finished epoch, bit for bit on a CPU.

    Args:
        source: the data set; its test samples are used for the last report alone.
        recipe: what is trained, and how.
        folder: gets ``config.json``, ``model.safetensors``, ``preprocessor_config.json`` and
            ``pretraining.json``.
        paths: of the data set, by whose bytes a fleet is told that its reference has learned them.
        torch_device: where to train.
        progress: called with finished and all epochs, and the validation accuracy in words.

    Returns:
        What ``pretraining.json`` holds: recipe, numbers of samples, accuracies.

    Raises:
        RunError: if the folder holds something else, or another process works in it.
        WriteError: if a file cannot be written; the same call goes on with what is finished.
        FleetError: if the images cannot be cut into patches, or there is no such GPU.
    """
    place = training_device(torch_device, "--device")
    with held(folder):
        try:
            return _pretrain(source, recipe, folder, place, progress, paths)
        except WriteError as error:
            raise WriteError(f"{error}; the same command goes on with what is finished") from error


def _pretrain(
    source: Source,
    recipe: Recipe,
    folder: Path,
    place: torch.device,
    progress: Callable[[int, int, str], None],
    paths: Sequence[Path],
) -> dict[str, Any]:
    labels = source.train.labels.numpy()
    random = np.random.default_rng(derive_seed(recipe.seed, "pretraining", "split"))
    known, held_out = (
        source.train[torch.from_numpy(index)]
        for index in stratified_split(labels, _VALIDATION, random)
    )
    _, channels, rows, columns = known.inputs["pixel_values"].shape
    config = vit_config(Reference(model=recipe.model), (channels, rows, columns))
    classifier = new_vit(CLASSIFICATION, config, source.classes, recipe.seed).to(place)
    state = started(folder, recipe.describe(), len(source.train))  # nothing is refused behind it
    if place.type == "cuda":
        classifier.compile()

    def loss() -> Tensor:
        return classifier(**known[: recipe.training.batch_size].inputs).square().mean()

    decided = folder / _COMPUTE
    numbers = training_numbers("auto", classifier, loss, decided)

    def tell(epoch: int, note: str, model: nn.Module) -> None:
        told = CLASSIFICATION.written(evaluate(CLASSIFICATION, model, held_out))
        progress(epoch, recipe.training.epochs, f"{note}, validation {told}")

    model = train_averaged(classifier, known, recipe, state, tell, numbers)
    save_checkpoint(model, config, source, folder)
    record = {
        "recipe": recipe.describe(),
        "samples": len(source.train),
        DATA_SUMS: digests(paths),
        "params": sum(p.numel() for p in classifier.parameters()),
        "validation": _figures(model, held_out),
        "test": _figures(model, source.test),
        WEIGHT_SUMS: weight_sums(folder),
    }
    write_marked_json(folder / RECORD, record)
    state.remove()
    remove(decided)
    return record


def _figures(model: Classifier, samples: Samples) -> dict[str, float]:
    result = evaluate(CLASSIFICATION, model, samples)
    return {"loss": result.loss, "accuracy": result.score, "samples": result.count}


def finished(folder: Path) -> bool:
    """True if the folder holds a model that :func:`pretrain` has trained to the end."""
    return (folder / RECORD).exists() and "test" in read_marked_json(folder / RECORD)


def started(folder: Path, recipe: dict[str, Any], samples: int) -> EpochState:
    """Take an empty folder, or one where the same was begun and not finished.

    Raises:
        RunError: if the folder holds something else.
    """
    begun = {"recipe": json.loads(json.dumps(recipe)), "samples": samples}
    path = folder / RECORD
    if finished(folder):
        raise RunError(f"{folder} holds a finished model; choose another --out")
    if path.exists():
        if read_marked_json(path) != begun:
            raise RunError(
                f"{folder} holds an unfinished training with other data or options: repeat that "
                f"command, choose another --out, or remove the folder"
            )
    elif any(entry.name != LOCK for entry in folder.iterdir()):
        raise RunError(f"{folder} is not an empty directory; choose another --out")
    else:
        write_marked_json(path, begun)
    remove_partial(folder)  # of processes that were killed
    return EpochState(folder / _STATE)


Trained = TypeVar("Trained", bound=nn.Module)


def train_averaged(
    module: Trained,
    samples: Samples,
    recipe: Recipe,
    state: EpochState,
    on_epoch: Callable[[int, str, nn.Module], None] = lambda epoch, note, model: None,
    numbers: Numbers | None = None,
) -> Trained:
    """Train any classifier by the recipe; returns it with the averaged weights, in eval mode.

    Args:
        module: takes the samples' inputs by name and returns logits; it is trained in place.
        samples: the training data.
        recipe: its ``model`` does not matter here.
        state: where an unfinished training stands.
        on_epoch: called with the number of finished epochs, the loss in words, and the average so
            far.
        numbers: of matrix products, see :func:`~acme_fleet.training.precision.mixed_precision`.
    """
    model = Averaged.over(module, steps_of(samples, recipe.training))
    fit(
        CLASSIFICATION,
        model,
        samples,
        recipe.training,
        generator(recipe.seed, "pretraining"),
        augment=_augmentation(recipe),
        after_backward=model.update,
        on_epoch=lambda epoch, note: on_epoch(epoch, note, model),
        state=state,
        numbers=numbers,
    )
    return cast("Trained", model.average.module).eval()


def cutmix(batch: Samples, share: float, generator: torch.Generator) -> Samples:
    """Paste a rectangle of another image of the batch into each, in a ``share`` of the batches.

    CutMix trains on both labels, weighted by their areas. Here each image's label is drawn by
    these weights: the same expected loss, with one label for each image.
    """
    if float(torch.rand((), generator=generator)) >= share:
        return batch
    pixels = batch.inputs["pixel_values"]
    count, _, rows, columns = pixels.shape
    side = float(torch.rand((), generator=generator).sqrt())  # so that the area is uniform
    height, width = round(side * rows), round(side * columns)
    top = int(torch.randint(rows - height + 1, (), generator=generator))
    left = int(torch.randint(columns - width + 1, (), generator=generator))
    other = torch.randperm(count, generator=generator)
    mixed = pixels.clone()
    inside = (..., slice(top, top + height), slice(left, left + width))
    mixed[inside] = pixels[other][inside]
    pasted = torch.rand(count, generator=generator) < height * width / (rows * columns)
    labels = torch.where(pasted, batch.labels[other], batch.labels)
    return Samples({**batch.inputs, "pixel_values": mixed}, labels, batch.stored_bytes)


def _augmentation(recipe: Recipe) -> Callable[[Samples, torch.Generator], Samples]:
    move = augmentation(recipe.crop_padding, flip=recipe.flip)

    def augment(batch: Samples, generator: torch.Generator) -> Samples:
        return cutmix(move(batch, generator) if move else batch, recipe.cutmix, generator)

    return augment


def save_checkpoint(
    classifier: Classifier, config: ViTConfig, source: Source, folder: Path
) -> None:
    """Write a ViT with its classifier and its preprocessing as a Hugging Face folder."""
    names = dict(enumerate(source.classes))
    config = ViTConfig.from_dict(
        {**config.to_dict(), "id2label": names, "label2id": {v: k for k, v in names.items()}}
    )
    with torch.device("meta"):
        model = ViTForImageClassification(config)
    tensors = with_prefix("vit", classifier.backbone.state_dict())
    tensors |= with_prefix("classifier", classifier.head.state_dict())
    cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    model.load_state_dict(cpu, assign=True)
    save_plain(model, folder)
    write_json(folder / PREPROCESSING, source.preprocessing.model_dump(mode="json"))
