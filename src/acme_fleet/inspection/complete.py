"""Let a device's shipped language model go on with a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError
from acme_fleet.inspection.predict import device_folder
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.families import most_tokens
from acme_fleet.models.shipped import read_description, read_preprocessing
from acme_fleet.training.answers import prompted


@dataclass(frozen=True)
class Completion:
    """A prompt, and what the model writes behind it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class TestedText(Completion):
    """The same of a test sample, with what follows the prompt in the data."""

    expected: str


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

    @property
    def chats(self) -> bool:
        """True if there is a chat template."""
        return self.preprocessing.chat_template is not None

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
            yield Completion(prompt, self._behind(torch.tensor(tokens), most))

    def answer(self, text: str, most: int, chat: bool) -> str:
        """The most probable text behind one prompt; see :meth:`complete`."""
        return next(self.complete([text], most, chat=chat)).text

    def tested(self, samples: Samples) -> Iterator[TestedText]:
        """Each sample's prompt, the answer in the data, and the model's, of as many tokens at most.

        A plain text has no prompt: its first half stands for one.
        """
        text = self.preprocessing.text
        for number in range(len(samples)):
            one = samples[number : number + 1]
            real = one.inputs["input_ids"][0][one.inputs["attention_mask"][0] != 0]
            half = len(real) // 2
            (prompt, answer), *_ = [*prompted(one), (real[:half], real[half:])]
            written = self._behind(prompt, len(answer))
            yield TestedText(self._lines(prompt.tolist()), written, text(answer.tolist()))

    def _lines(self, numbers: list[int]) -> str:
        """The text of tokens, with a line between what special ones separate, as in a chat."""
        text = self.preprocessing.text
        groups = groupby(numbers, key=lambda number: text([number]) == "")
        return "\n".join(text(list(part)).strip() for special, part in groups if not special)

    def _behind(self, tokens: Int[Tensor, " prompt"], most: int) -> str:
        written = self.model.most_probable([tokens], most, self.preprocessing.pad_id)[0]
        return self.preprocessing.text(written.tolist())


def tested_texts(folder: Path, samples: Samples, count: int) -> list[TestedText]:
    """The first test samples of a device with what its model, in this folder, writes."""
    writer = Writer.open(folder, None)
    return [] if writer is None else list(writer.tested(samples[:count]))
