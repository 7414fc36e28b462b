"""Results as numbers: messages bring them to the cloud, and the run's summary holds the same."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from acme_fleet.config.devices import Name

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Count = Annotated[int, Field(ge=0, le=2**53)]
PositiveCount = Annotated[int, Field(ge=1, le=2**53)]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LanguageResult(_Result):
    """A language model on the device's own test texts: loss per token, answers generated right.

    ``loss_coarse`` and ``exact_coarse`` are those of the model as received, ``loss_linear`` that of
    a linear change of the hidden states. Without prompts in the data there are no ``answers``.
    ``loss_lora`` is that of a LoRA of ``lora_params`` numbers on the backbone as received, where
    the fleet asks for one. Seconds and tokens a second are those of ``generate`` with its cache,
    one text at a time; ``peak_bytes`` are the model's and what writing adds, in PyTorch, where the
    system tells.
    """

    tokens: PositiveCount
    loss_coarse: Amount
    loss: Amount
    loss_linear: Amount
    answers: Count = 0
    exact_coarse: Share | None = None
    exact: Share | None = None
    loss_lora: Amount | None = None
    lora_params: Count = 0
    first_token_s: Amount
    tokens_per_s: Amount
    peak_bytes: Count | None = None


class DeviceResult(_Result):
    """A device's model at the end, and how well it works on the device's own full test set.

    ``accuracy_coarse`` is that of the model as received, ``accuracy_linear`` that of a linear
    header trained on the same data. Of a language model these are shares of tokens.
    """

    name: Name
    size_bytes: PositiveCount
    params: PositiveCount
    accuracy_coarse: Share
    accuracy: Share
    accuracy_linear: Share
    test_samples: PositiveCount
    latency_s: Amount
    neurons_coarse: Count
    neurons: Count
    raw_data_bytes: Count
    language: LanguageResult | None = None


class HeaderContender(_Result):
    """A header that an edge server tried, fine-tuned, on its own samples for the final choice.

    ``evaluated`` counts the architectures that were tried on the way.
    """

    name: Name
    params: PositiveCount
    accuracy: Share
    loss: Amount
    evaluated: Count
