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


class DeviceResult(_Result):
    """A device's model at the end, and how well it works on the device's own full test set.

    ``accuracy_coarse`` is that of the model as received, ``accuracy_linear`` that of a linear
    header trained on the same data.
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


class HeaderContender(_Result):
    """A header that an edge server tried, fine-tuned, on its own samples for the final choice.

    ``evaluated`` counts the architectures that were tried on the way.
    """

    name: Name
    params: PositiveCount
    accuracy: Share
    loss: Amount
    evaluated: Count
