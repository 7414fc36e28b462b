"""Processes that share the work of a training: each computes parts of every batch.

``torchrun`` starts them, one for each GPU. All have the same weights, and take the same steps: the
gradients of their parts add up to that of the batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from acme_fleet.errors import FleetError

_PATIENCE = timedelta(days=30)  # others wait while the first one does all that is not training

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The place of a process among those that train together; the first one is the run."""

    rank: int = 0
    size: int = 1

    def own(self, parts: Sequence[T]) -> Sequence[T]:
        """The parts of a batch that this process computes; it may have none."""
        return parts[self.rank :: self.size]

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sums over all processes, in place; a parameter that nobody used has no gradient."""
        if self.size == 1:
            return
        place = parameters[0].device
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        used = self.total(used.to(place)).bool().tolist()
        known = [p for p, mine in zip(parameters, used, strict=True) if mine]
        each = [torch.zeros_like(p) if p.grad is None else p.grad for p in known]
        flat = self.total(torch.cat([gradient.flatten() for gradient in each]))
        for parameter, part in zip(known, flat.split([p.numel() for p in known]), strict=True):
            parameter.grad = part.view_as(parameter)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            value = value.contiguous()
            distributed.all_reduce(value)
        return value

    def told(self, value: T | None = None) -> T:
        """The ``value`` of the first process, by every process."""
        box = [value]
        if self.size > 1:
            distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # pyright: ignore[reportReturnType]


ALONE = Group()


@contextmanager
def joined(accelerator: str) -> Iterator[Group]:
    """The group that ``torchrun`` has started, each process with a GPU of its own.

    As the first one leaves it without an error, the others are told None.

    Args:
        accelerator: where the cloud trains, ``cpu`` or ``cuda``.

    Raises:
        FleetError: if there are more processes than GPUs.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    if accelerator == "cuda":
        place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= count:
            raise FleetError(
                f"torchrun --nproc-per-node: there are more processes than GPUs, {count} here"
            )
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    group = Group(distributed.get_rank(), distributed.get_world_size())
    yield group  # torchrun ends the others where one fails: no word could reach them in a step
    if group.rank == 0:
        group.told(None)
    distributed.barrier()
    distributed.destroy_process_group()
