"""Size and operations of a reference: what limits, epochs and latencies of a new fleet go by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

_LEAST_GRID, _MOST_GRID = 4, 16  # patches along a side, for models that take any size


@dataclass(frozen=True)
class Shape:
    """The shape of a Transformer and of one sample.

    Attributes:
        layers, hidden, neurons: of the model.
        tokens: of one sample.
        channels, side, patch: of an image as the model takes it, and the side of its patches, in
            pixels; 0 of texts.
        gated: a layer's MLP has three matrices, not two.
        vocabulary: tokens that a text model knows; 0 of images.
    """

    layers: int
    hidden: int
    neurons: int
    tokens: int
    channels: int = 0
    side: int = 0
    patch: int = 0
    gated: bool = False
    vocabulary: int = 0

    @property
    def layer_flops(self) -> float:
        """Operations of one layer at full width on one sample, a product and a sum each."""
        attention = 4 * self.hidden**2 + 2 * self.tokens * self.hidden
        mlp = (3 if self.gated else 2) * self.hidden * self.neurons
        return 2.0 * self.tokens * (attention + mlp)

    @property
    def embedding_flops(self) -> float:
        """Operations before the first layer, on one sample; the words of a text are looked up."""
        return 2.0 * self.tokens * self.channels * self.patch**2 * self.hidden


# Of checkpoints on the hub, which need not be downloaded to write a file that names them.
KNOWN = {
    "sentence-transformers/all-MiniLM-L6-v2": Shape(6, 384, 1536, 0, vocabulary=30_522),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 576, 1536, 0, gated=True, vocabulary=49_152),
}


def shape_of_images(checkpoint: str | Path, usual_side: int) -> tuple[Shape, int | None]:
    """The shape of an image model, and the size for its images where the model leaves a choice.

    Args:
        checkpoint: a folder, or a name on the hub, which is downloaded.
        usual_side: of the images, in pixels; a model that takes any size gets about this.

    Raises:
        FleetError: if it cannot be read, or is no image model of a known family.
    """
    from acme_fleet.data.checkpoint_images import read_normalization
    from acme_fleet.models.backbone.checkpoints import check_kind
    from acme_fleet.models.families import dimensions, family_of

    config = check_kind(checkpoint, images=True).config
    family, size = family_of(config), dimensions(config)
    rule, chosen = read_normalization(checkpoint), None
    side = rule.result[0] if rule and rule.result else config.image_size
    if family.resampled:
        patch = config.patch_size
        side = chosen = patch * min(max(_LEAST_GRID, -(-usual_side // patch)), _MOST_GRID)
    shape = Shape(
        layers=size.layers,
        hidden=size.hidden,
        neurons=size.neurons,
        tokens=(side // config.patch_size) ** 2 + family.prefix_tokens,
        channels=config.num_channels,
        side=side,
        patch=config.patch_size,
    )
    return shape, chosen


def shape_of_texts(checkpoint: str | Path, tokens: int) -> Shape:
    """The shape of a text model for texts of so many tokens.

    Args:
        checkpoint: a folder, or a name on the hub, which is downloaded unless it is in
            :data:`KNOWN` and there is no such folder.
        tokens: of a text.

    Raises:
        FleetError: if it cannot be read, or is no text model of a known family.
    """
    if is_known(checkpoint):
        return replace(KNOWN[str(checkpoint)], tokens=tokens)
    from acme_fleet.models.backbone.checkpoints import check_kind
    from acme_fleet.models.families import dimensions, family_of

    config = check_kind(checkpoint, images=False).config
    family, size = family_of(config), dimensions(config)
    return Shape(
        layers=size.layers,
        hidden=size.hidden,
        neurons=size.neurons,
        tokens=tokens,
        gated=len(family.neurons_in) == 2,
        vocabulary=config.vocab_size,
    )


def is_known(checkpoint: str | Path) -> bool:
    """True of a name on the hub whose shape is known without a download."""
    return str(checkpoint) in KNOWN and not Path(checkpoint).exists()
