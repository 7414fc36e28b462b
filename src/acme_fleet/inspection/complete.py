"""Let a device's shipped language model go on with a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.errors import FleetError
from acme_fleet.inspection.predict import device_folder
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.families import most_tokens
from acme_fleet.models.shipped import read_description, read_preprocessing


@dataclass(frozen=True)
class Completion:
    """A prompt, and what the model writes behind it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Writer:
    """A shipped language model with its tokenizer."""

    model: AcmeForCausalLM
    preprocessing: LanguagePreprocessing

    @staticmethod
    def open(place: Path, device: str | None) -> Writer | None:
        """The language model of a device; none where the device has another model.

        Args:
            place: a run directory, or a device's folder.
            device: its name, which a run directory needs.

        Raises:
            RunError: if there is no finished model, or it is damaged.
        """
        folder = device_folder(place, device)
        if not read_description(folder).writes:
            return None
        preprocessing = read_preprocessing(folder)
        assert isinstance(preprocessing, LanguagePreprocessing)  # by the description
        return Writer(AcmeForCausalLM.from_pretrained(folder), preprocessing)

    def complete(
        self, prompts: Iterable[str], most: int, *, chat: bool = False
    ) -> Iterator[Completion]:
        """The most probable continuation of each prompt, token by token.

        Args:
            prompts: texts.
            most: new tokens, if the model does not end before.
            chat: take each as what a user says, by the checkpoint's chat template.

        Raises:
            FleetError: if a prompt has no token or too many, or there is no chat template.
        """
        room = most_tokens(self.model.backbone.config)
        for prompt in prompts:
            tokens = self.preprocessing.asked(prompt) if chat else self.preprocessing.prompt(prompt)
            if len(tokens) + most > room:
                raise FleetError(
                    f"the prompt has {len(tokens)} tokens; with {most} new ones that is more than "
                    f"the {room} that the model takes"
                )
            pad = self.preprocessing.pad_id
            written = self.model.most_probable([torch.tensor(tokens)], most, pad)[0]
            yield Completion(prompt, self.preprocessing.text(written.tolist()))
