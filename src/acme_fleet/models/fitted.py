"""The folder that ``acme reference`` makes: a reference with a classifier for a fleet's classes.

An ordinary Hugging Face checkpoint of the backbone, with the checkpoint's own tokenizer or
preprocessing, sentence encoders' ``1_Pooling/config.json``, and ``classifier.safetensors``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor
from transformers import AutoModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.data.checkpoint_files import located
from acme_fleet.errors import DamagedError, FleetError
from acme_fleet.models.backbone.checkpoints import read_checkpoint, save_plain
from acme_fleet.models.families import family_of, is_elastic
from acme_fleet.models.features import Classifier
from acme_fleet.models.pooling import pooled_size, write_pooling
from acme_fleet.models.storage import read_tensors, write_tensors
from acme_fleet.runs.atomic import writing
from acme_fleet.runs.sealed import STRICT, typed

CLASSIFIER = "classifier.safetensors"
_DOCUMENTS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "preprocessor_config.json"),
)
_OF_THE_RUN = {"image_size", "vision_use_head"}  # by the data's size, and by the pooling

Origin = Literal["fine-tuned", "untouched"]


@dataclass(frozen=True)
class About:
    """Use of a fitted classifier.

    Attributes:
        classes: names, in the order of its rows.
        pooling: of the vectors that it takes.
        origin: of the backbone; untouched if fine-tuning did not win.
    """

    __pydantic_config__ = STRICT

    classes: list[str]
    pooling: Pooling
    origin: Origin


def write_fitted(
    folder: Path, checkpoint: str | Path, revision: str | None, model: Classifier, about: About
) -> None:
    """Write a reference that was made from ``checkpoint``.

    Raises:
        WriteError: if a file cannot be written.
        FleetError: if the checkpoint cannot be read any more.
    """
    backbone, found = model.backbone, read_checkpoint(checkpoint, revision)
    plain, config = backbone, found.config
    if not is_elastic(config):
        for key in _OF_THE_RUN & config.to_dict().keys():
            setattr(config, key, getattr(backbone.config, key))
        config.id2label = dict(enumerate(about.classes))
        config.label2id = {name: number for number, name in enumerate(about.classes)}
        plain = AutoModel.from_config(config, **family_of(config).options)
        plain.load_state_dict(backbone.state_dict())
    save_plain(plain, folder)
    source = located(checkpoint, revision)
    for name in _DOCUMENTS:
        if (source / name).is_file():
            with writing(folder / name):
                shutil.copyfile(source / name, folder / name)
    write_pooling(folder, about.pooling, backbone.config.hidden_size)
    write_tensors(folder / CLASSIFIER, model.head.state_dict(), asdict(about))


def read_fitted(
    checkpoint: str | Path, classes: Sequence[str], hidden: int
) -> tuple[dict[str, Tensor], About] | None:
    """A folder's classifier, if it has one for these classes in this order.

    Args:
        checkpoint: a folder; a name on the hub has none.
        classes: of the fleet.
        hidden: the backbone's hidden size.

    Raises:
        FleetError: if the file is damaged, or its classifier is of another shape.
    """
    path = Path(checkpoint) / CLASSIFIER
    if not path.is_file():
        return None
    try:
        tensors, content = read_tensors(path)
        about = typed(path, About, content)
    except DamagedError as error:
        raise FleetError(f"{error}; make it again with `acme reference`") from error
    if about.classes != list(classes):
        return None
    rows = len(classes)
    expected = {"weight": (rows, pooled_size(about.pooling, hidden)), "bias": (rows,)}
    if (shapes := {name: tuple(t.shape) for name, t in tensors.items()}) != expected:
        raise FleetError(f"cannot use {path}: its tensors are {shapes}, expected {expected}")
    return tensors, about
