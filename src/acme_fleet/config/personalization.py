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
from acme_fleet.config.training import Fraction, Training


class Privacy(Settings):
    """Protections of a device's messages before they leave it; all off by default.

    Feature samples are projected to ``sketch_dim`` numbers, sent with ``sketch_bits`` each.
    ``feature_noise`` and ``importance_noise`` are noise multipliers of Gaussian mechanisms,
    standard deviation ÷ sensitivity; the report states their ε at ``delta``. ``feature_clip`` is
    the longest that a feature may then be, in √hidden. With ``masking`` importance sets are sent
    as masked shares: the edge server adds them up and reads none of them.
    """

    sketch_dim: PositiveInt | None = None
    sketch_bits: Literal[8, 16] = 16
    feature_noise: PositiveFloat | None = None
    feature_clip: PositiveFloat = 1.0
    importance_noise: PositiveFloat | None = None
    delta: Fraction = 1e-5
    masking: bool = False


Mix = Literal["importance", "weights", "both"]


class Personalization(Settings):
    """Algorithm 2: rounds between an edge server and its devices.

    Devices train as ``local`` says in each round, and once more after the last, then for
    ``last_epochs`` where they are given.
    ``mix`` says what similar devices share: the importance of neurons (the paper), the header's
    weights, or both. With ``classifier: holders`` the classifier's rows of a device's own classes
    are mixed over the devices that train on them: these tell the edge server which classes they
    hold. With ``similarity: none`` all devices of a cluster listen to each other alike, and no
    feature leaves a device. Of a device that misses a round its last set counts for the others,
    ``stale_decay`` times as much for each round since; with 0 it does not.
    """

    rounds: PositiveInt = 3
    local: Training = Training(epochs=10, batch_size=32, learning_rate=2e-3)
    last_epochs: PositiveInt | None = None
    prune_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    feature_samples: PositiveInt = 32
    mix: Mix = "importance"
    classifier: Literal["everyone", "holders"] = "everyone"
    similarity: Literal["debiased", "literal", "none"] = "debiased"
    temperature: PositiveFloat = 0.1
    timeout_s: PositiveFloat = 3600.0
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    stale_decay: Annotated[float, Field(ge=0, le=1)] = 0.5
    privacy: Privacy = Privacy()

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
        return self.mix != "importance"

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
