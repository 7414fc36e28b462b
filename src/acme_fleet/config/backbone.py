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
from acme_fleet.config.devices import Precisions
from acme_fleet.config.training import Training

Width = Annotated[float, Field(gt=0, le=1)]
Rule = Literal["nearest", "literal"]
"""The distance to the ideal point of Eq. 13, see :func:`acme_fleet.selection.choice.distances`."""


class ViT(Settings):
    """Shape of a Vision Transformer that the run trains itself."""

    hidden_size: PositiveInt = 64
    """ξ_h, size of a token's vector; a multiple of ``heads``."""
    layers: PositiveInt = 6
    """Transformer layers."""
    heads: PositiveInt = 4
    """Attention heads of each layer."""
    neurons: PositiveInt = 256
    """ξ_f, neurons of each layer's MLP."""
    patch_size: PositiveInt = 2
    """Side of a patch in pixels."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ViT:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}"
            )
        return self


Pooling = Literal["first", "mean", "last", "first_mean", "attention"]
"""One vector for an input: its first token, its tokens' mean, its last one, first and mean, or what
the family's own attention makes of all tokens."""


class Reference(Settings):
    """The reference model θ0: a checkpoint, or a ViT that is trained on the public data."""

    checkpoint: Path | str | None = None
    """Folder (always, after ``.`` or ``/``), or Hugging Face hub name; none trains ``model``."""
    revision: Annotated[str, Field(pattern=r"^[\w.][\w./-]{0,199}$")] | None = None
    """Commit, branch or tag of a checkpoint on the hub; none is the hub's default."""
    pooling: Literal["auto", "first", "mean", "last", "first_mean", "attention"] = "auto"
    """One vector from all tokens. ``auto``: a sentence encoder's own file says how, else public
    validation data choose; if these have no labels, its family's own way is taken. ``attention``
    is for SigLIP."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Learning rate of a checkpoint's layer, as a share of the rate of the layer after it."""
    model: ViT = ViT()
    """Shape of the ViT; used without a checkpoint."""
    training: Training = Training(epochs=30)
    """Training on the public data; a checkpoint stays untouched unless this wins on validation. It
    is never trained without labels."""
    recipe: Literal["labels", "contrastive"] = "labels"
    """Fine-tuning of a checkpoint: on its classifier's loss, or, where a class has few samples, on
    pairs of samples of one class or two (SetFit)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a label that is spread over all classes when a checkpoint is fine-tuned."""
    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pixels by which random crops of training images move at most; 0 crops nothing."""
    flip: bool = False
    """Train on mirror images too, each with probability ½."""

    @field_validator("checkpoint")
    @classmethod
    def _as_path(cls, value: Any) -> Any:
        return Path(value) if str(value)[:1] in (".", "/") else value

    @model_validator(mode="after")
    def _contrast_needs_a_checkpoint(self) -> Reference:
        if self.recipe == "contrastive" and self.checkpoint is None:
            raise ValueError("recipe: contrastive fine-tunes a `checkpoint`, and there is none")
        return self

    @model_validator(mode="after")
    def _revision_is_of_the_hub(self) -> Reference:
        if self.revision is not None and not isinstance(self.checkpoint, str):
            raise ValueError("revision is for a `checkpoint` on the hub; a folder has only one")
        return self


LogitsLoss = Literal["mse", "soft_cross_entropy"]


class Distillation(Settings):
    """Eq. 9, one entry for each of the two steps: width, then width and depth.

    ``states`` are the hidden states of Eq. 9. ``features`` are hidden states and pooled vectors
    relative to their variance, without labels; logits join where the reference's classifier was
    trained. In ``recovery`` a backbone need not share its weights with others any longer.
    """

    training: Training = Training(epochs=8, learning_rate=5e-4)
    """Training in each of the two steps."""
    recovery: Training | None = None
    """Training of a chosen backbone alone, from the whole one; none leaves it out."""
    random_subnetworks: Annotated[int, Field(ge=0)] = 1
    """Random students of each batch, besides the largest and the smallest."""
    match: Literal["auto", "states", "features"] = "auto"
    """Target beside logits; ``auto``: ``features`` of a checkpoint, ``states`` of an own ViT."""
    logits_loss: LogitsLoss = "mse"
    """Loss of the logits: Eq. 9's ``mse``, or cross-entropy with the teacher's probabilities."""
    logits_weight: tuple[float, float] = (1.0, 1.0)
    """λ1, weight of the logits' loss in the first and the second step."""
    embeddings_weight: tuple[float, float] = (0.1, 1.0)
    """λ2, weight of the embeddings' loss in the first and the second step."""

    @property
    def epochs_in_all(self) -> int:
        """Passes over the public data that a chosen backbone has behind it."""
        return 2 * self.training.epochs + (self.recovery.epochs if self.recovery else 0)


class Backbone(Settings):
    """The candidates δ(θ0, w, d), and the training that makes them elastic."""

    widths: Annotated[list[Width], Field(min_length=1)] = [0.25, 0.5, 0.75, 1.0]
    """Candidate widths w: shares of each layer's heads and neurons."""
    hidden: Annotated[list[Width], Field(min_length=1)] = [1.0]
    """Candidate shares of the hidden size, the third part of the width; with 1 alone it stays."""
    depths: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 3, 4, 5, 6]
    """Candidate depths d: numbers of layers, at most the reference's."""
    vocabulary: PositiveInt | None = None
    """Tokens that text models keep: those of the public texts first; none keeps all."""
    precisions: Precisions = ("int8", "float32")
    """Candidate precisions of the weights; a device gets none that its runtime lacks."""
    allocation: Literal["uniform", "global"] = "uniform"
    """``uniform``: all layers have one width; ``global``: one ranking of importance sets each."""
    importance: str = "auto"
    """A unit's importance is its effect on the loss (``labels``), or on pooled ``features``, which
    needs no labels; ``auto``: labels where the public data have some."""
    importance_samples: PositiveInt = 256
    """Public training samples on which importance is measured."""
    distillation: Distillation = Distillation()
    """Distillation that trains the candidates."""
    first_pass: Annotated[int, Field(ge=0)] = 512
    """Public validation samples on which a grid of more than 100 candidates is judged first; those
    that may be on the front are then judged on all. 0 judges every candidate on all."""


class Selection(Settings):
    """The choice of a candidate (Eq. 10-13).

    Devices of a cluster that get the same backbone share a header search and personalise together.
    """

    matching: Literal["cluster", "device"] = "cluster"
    """One backbone for each cluster (the paper), or for each device by its own limits."""
    performance_window: PositiveFloat = 0.1
    """γ_p, the loss that may be given up for less energy and size."""
    rule: Rule = "nearest"
    """Distance to the ideal point: in the objectives (``nearest``), or in grid coordinates."""
    finalists: PositiveInt = 3
    """Shapes, beside the whole one, that get a share of ``backbone.distillation.recovery`` before
    one of them is chosen; the best gets the rest. 1 chooses before recovery."""
