"""Settings of phase 2-2, Algorithm 2: rounds, mixing and privacy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from acme_fleet.config.base import Settings
from acme_fleet.config.devices import ByteSize
from acme_fleet.config.training import Fraction, Training


class Privacy(Settings):
    """Protections of a device's messages before they leave it; all off by default."""

    sketch_dim: PositiveInt | None = None
    """Numbers to which each feature vector is projected; none sends the vectors whole."""
    sketch_bits: Literal[8, 16] = 16
    """Bits of each number of the features sent."""
    feature_noise: PositiveFloat | None = None
    """Noise multiplier (standard deviation ÷ sensitivity) of the features; none adds no noise."""
    feature_clip: PositiveFloat = 1.0
    """Longest feature vector before noise is added, in √hidden."""
    importance_noise: PositiveFloat | None = None
    """Noise multiplier of the importance sets; none adds no noise."""
    delta: Fraction = 1e-5
    """δ at which the report states the ε of the noise."""
    masking: bool = False
    """Send importance sets as masked shares: the edge server adds them up and reads none."""


class Personalization(Settings):
    """Algorithm 2: rounds between an edge server and its devices."""

    rounds: PositiveInt = 3
    """Rounds; a device trains once more after the last."""
    local: Training = Training(epochs=10, batch_size=32, learning_rate=2e-3)
    """Training of a device's header in each round, and after the last."""
    last_epochs: PositiveInt | None = None
    """Epochs of the training after the last round; none: those of ``local``."""
    prune_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a header's neurons that is pruned after each round; 0 prunes none."""
    feature_samples: PositiveInt = 32
    """Samples of which a device sends features, at most."""
    lora_rank: PositiveInt | None = None
    """Rank of LoRA on queries and values of the last two layers: a rival of a language model's
    header, trained as long and reported beside it; none trains none."""
    rivals: bool = False
    """Also train every device's header without its neighbours, and by FedAvg, from the coarse
    header on, as long and unpruned, and report both; where all data are on one machine."""
    feature_budget: ByteSize = 2**30
    """Bytes of the features of texts that a language model's edge server or device keeps; where
    they are more, they are computed anew for each batch."""
    mix: str = "importance"
    """Parts that similar devices mix: neurons' importance (the paper), header weights, or both."""
    classifier: Literal["everyone", "holders"] = "everyone"
    """Devices that mix a class's row of the classifier; ``holders`` train on it, and tell so."""
    similarity: str = "debiased"
    """Distances of Eq. 19, ``debiased`` or as printed; ``none``: equal weights, no feature sent."""
    temperature: PositiveFloat = 0.1
    """τ of the softmax (Eq. 20): a smaller one favours similar devices more; 1 is the paper's."""
    robust: Literal["none", "trimmed_mean", "median", "krum"] = "none"
    """Aggregation against devices that lie within every bound; headers' updates are shortened to
    twice the median anyway."""
    robust_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.3
    """Share of a group's devices that may lie, for ``robust``."""
    timeout_s: PositiveFloat = 3600.0
    """Seconds that the edge server waits for a device's reply."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the devices asked that must reply for the edge server to go on."""
    stale_decay: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Factor, per missed round, on the last set of a device that is missing; 0 leaves it out."""
    privacy: Privacy = Privacy()
    """Protections of a device's messages."""

    @property
    def rows_sent(self) -> int:
        """The most rows of features that a device sends."""
        return 0 if self.similarity == "none" else self.feature_samples

    def training(self, number: int) -> Training:
        """Of round ``number``; that after the last round is the final one."""
        last = self.last_epochs if number == self.rounds else None
        return self.local.model_copy(update={"epochs": last}) if last else self.local

    @property
    def training_in_all(self) -> Training:
        """With all epochs that a header is trained for on a device."""
        epochs = sum(self.training(number).epochs for number in range(self.rounds + 1))
        return self.local.model_copy(update={"epochs": epochs})

    @property
    def mixes_weights(self) -> bool:
        """True if headers' weights leave the devices."""
        return self.mix in ("weights", "both")

    def mixes_after(self, number: int) -> bool:
        """True if headers' weights are mixed after training ``number``; never after the last."""
        return self.mixes_weights and number < self.rounds

    @model_validator(mode="after")
    def _consistent(self) -> Personalization:
        if self.privacy.masking and self.mixes_weights:
            raise ValueError(
                f"privacy.masking hides importance sets alone, and mix: {self.mix} would send the "
                f"header's weights unmasked; set mix: importance, without classifier: holders"
            )
        if self.privacy.masking and self.robust != "none":
            raise ValueError(
                f"robust: {self.robust} compares what devices send, and privacy.masking hides it; "
                f"leave one of them out"
            )
        for name in ("sketch_dim", "feature_noise"):
            if self.similarity == "none" and getattr(self.privacy, name) is not None:
                raise ValueError(
                    f"privacy.{name} protects feature samples, and similarity: none sends none; "
                    f"leave privacy.{name} out"
                )
        if self.classifier == "holders" and not self.mixes_weights:
            raise ValueError(
                "classifier: holders says how the header's weights are mixed, and mix: importance "
                "mixes none; set mix: both or mix: weights"
            )
        return self
