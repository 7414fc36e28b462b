"""ONNX Runtime for ``acme profile``: models of any shape, at every precision, as artifacts run."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from acme_fleet.config.devices import Precision
from acme_fleet.deploy.graph import export_module, shorten
from acme_fleet.deploy.onnx_format import MINIMUM
from acme_fleet.deploy.rounded import with_whole_numbers
from acme_fleet.models.features import CustomizedModel
from acme_fleet.profiling.fit import Runtime
from acme_fleet.profiling.measure import Pass
from acme_fleet_runtime.runner import PROGRAM, start


class _Answer(nn.Module):
    """A model with one input and one output: logits, or a backbone's last states."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, values: Tensor) -> Tensor:
        """Of pixels or tokens."""
        outputs = self.model(**{self.name: values})
        return outputs if isinstance(outputs, Tensor) else outputs.last_hidden_state


def _load(model: nn.Module, inputs: Mapping[str, Tensor], precision: Precision) -> Pass:
    ((name, values),) = inputs.items()
    changed = copy.deepcopy(model).eval()
    with_whole_numbers(
        changed.backbone if isinstance(changed, CustomizedModel) else changed, precision
    )
    graph = export_module(_Answer(changed, name), {name: values}, {}, ["answer"])
    shorten(graph)  # as in an artifact; ONNX Runtime takes some exporters' names for its own
    session = start(graph.SerializeToString(), MINIMUM, torch.get_num_threads())
    feed = {name: values.numpy()}
    return lambda: session.run(None, feed)


ONNX_RUNTIME = Runtime(PROGRAM, _load, ("float16", "int8", "int4"))
