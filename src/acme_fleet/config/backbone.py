"""Settings of phase 1: the reference, the elastic backbone and the choice from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from acme_fleet.config.base import Settings
from acme_fleet.config.training import Training

Width = Annotated[float, Field(gt=0, le=1)]
Rule = Literal["nearest", "literal"]
"""The distance to the ideal point of Eq. 13, see :func:`acme_fleet.selection.choice.distances`."""


class ViT(Settings):
    """Shape of a Vision Transformer that the run trains itself."""

    hidden_size: PositiveInt = 64
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    neurons: PositiveInt = 256
    patch_size: PositiveInt = 2

    @model_validator(mode="after")
    def _heads_divide(self) -> ViT:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}"
            )
        return self


Pooling = Literal["first", "mean", "last", "first_mean"]
"""One vector for an input: its first token, its tokens' mean, its last one, or first and mean."""


class Reference(Settings):
    """The reference model θ0: a checkpoint, or a ViT that is trained on the public data.

    ``checkpoint`` is a folder, found from the fleet file, or where there is none of this name a
    Hugging Face hub name; what starts with ``.`` or ``/`` is a folder always. ``revision`` is the
    commit, branch or tag on the hub. ``pooling`` makes one vector of tokens: ``first``, ``mean``,
    ``last`` or ``first_mean``. With ``auto`` a sentence encoder's own file says how, or else public
    validation data choose; if these have no labels, its family's own way is taken. A checkpoint is
    used untouched, unless training it on the public data wins on validation data; each layer then
    learns ``layer_decay`` times as fast as the one after. Without labels it is never trained.
    """

    checkpoint: Path | str | None = None
    revision: Annotated[str, Field(pattern=r"^[\w.][\w./-]{0,199}$")] | None = None
    pooling: Literal["auto", "first", "mean", "last", "first_mean"] = "auto"
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    model: ViT = ViT()
    training: Training = Training(epochs=30)
    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False

    @field_validator("checkpoint")
    @classmethod
    def _as_path(cls, value: Any) -> Any:
        return Path(value) if str(value)[:1] in (".", "/") else value

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Reference:
        if self.revision is not None and not isinstance(self.checkpoint, str):
            raise ValueError("revision is for a `checkpoint` on the hub; a folder has only one")
        return self


class Distillation(Settings):
    """Eq. 9, one entry for each of the two steps: width, then width and depth.

    ``logits_loss`` is Eq. 9's mean squared error, or the cross-entropy of the student's class
    probabilities under the teacher's. With ``recovery`` a backbone that was chosen learns on,
    alone, from the whole one: it need not share its weights with others any longer. ``match`` says
    what is learned: ``states`` and logits as in Eq. 9, or ``features``, hidden states and pooled
    vectors relative to their variance, without labels; logits join where the reference's classifier
    was trained. ``auto``: ``features`` of a checkpoint, ``states`` of what the run trains itself.
    """

    training: Training = Training(epochs=8, learning_rate=5e-4)
    recovery: Training | None = None
    random_subnetworks: Annotated[int, Field(ge=0)] = 1
    match: Literal["auto", "states", "features"] = "auto"
    logits_loss: Literal["mse", "soft_cross_entropy"] = "mse"
    logits_weight: tuple[float, float] = (1.0, 1.0)
    embeddings_weight: tuple[float, float] = (0.1, 1.0)

    @property
    def epochs_in_all(self) -> int:
        """Passes over the public data that a chosen backbone has behind it."""
        return 2 * self.training.epochs + (self.recovery.epochs if self.recovery else 0)


class Backbone(Settings):
    """The candidates δ(θ0, w, d) and how they are made elastic.

    ``allocation`` says how a width is spread over the layers: ``uniform``, the same in each, or
    ``global``, as much in all by one ranking of importance per parameter. ``importance`` is what a
    head or neuron changes: the loss on the public ``labels``, or the pooled ``features``, without
    labels. ``auto``: ``labels`` where the public data have some, otherwise ``features``.
    """

    widths: Annotated[list[Width], Field(min_length=1)] = [0.25, 0.5, 0.75, 1.0]
    depths: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 3, 4, 5, 6]
    allocation: Literal["uniform", "global"] = "uniform"
    importance: Literal["auto", "labels", "features"] = "auto"
    importance_samples: PositiveInt = 256
    distillation: Distillation = Distillation()


class Selection(Settings):
    """Eq. 10-13. ``performance_window`` (γ_p) is the loss that may be given up for the rest.

    ``rule`` says what is nearest to the ideal point: in the objectives themselves, or, literally
    as in the paper, in grid coordinates. ``matching`` says for whom: one backbone for each
    cluster (the paper), or one for each device by its own limits; those of a cluster that get
    the same one share a header search and personalise together.
    """

    matching: Literal["cluster", "device"] = "cluster"
    performance_window: PositiveFloat = 0.1
    rule: Rule = "nearest"
