"""ω: the weights that all headers of a space share while they are searched (Eq. 15)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from acme_fleet.edge.search_space import SearchSpace
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.header.module import Header, Pool, answering_as, initial_tensors


class SharedWeights:
    """One tensor for every place and operation, whichever header it serves."""

    def __init__(
        self, space: SearchSpace, classifier: Mapping[str, Tensor], generator: torch.Generator
    ) -> None:
        """Draw ω; at first every header answers as ``classifier`` does on the pooled vector."""
        drawn = initial_tensors(space.shared_shapes(), generator)
        self.tensors = answering_as(drawn, classifier)
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)
        self._skeletons: Pool = {}

    def child(self, plan: HeaderPlan) -> Callable[..., Tensor]:
        """The header of this plan, running on ω itself."""
        with torch.device("meta"):
            skeleton = Header(plan, self._skeletons)
        own = {name: self.tensors[name] for name in plan.shapes()}

        def run(**features: Tensor) -> Tensor:
            return functional_call(skeleton, own, (), features)

        return run
