"""Memory that a run's largest part needs on this machine: the cloud's training."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.elastic import Lesson, sandwich, step_of, teach
from acme_fleet.inspection.plan import Examined
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.features import Classifier
from acme_fleet.tasks.registry import task_of
from acme_fleet.training.loop import Optimization
from acme_fleet.training.memory import resident_bytes

_COPIES = 3  # of the reference, beside a step's teacher and student: trained, ordered, wide
_STEPS = 2  # the first makes the moments, the second has them


class _Living(TorchDispatchMode):
    """Bytes of all storages that operations have made and that are still there."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for model in models:
            for tensor in (*model.parameters(), *model.buffers()):
                self._count(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: weakref.ref[torch.UntypedStorage]) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def expected_memory(fleet: Fleet, seen: Examined) -> int:
    """Bytes of this process while the cloud trains: what it has now, the models, and a step.

    Where the system does not tell what it has, libraries and data are not counted.
    """
    weights = sum(each.nbytes for each in seen.reference.parameters())
    step = step_bytes(fleet, seen.reference, seen.world.public.train)
    return round(resident_bytes() or 0) + _COPIES * weights + step


def step_bytes(fleet: Fleet, reference: Classifier, public: Samples) -> int:
    """Bytes of all tensors of a step of Eq. 9 at its peak, counted on shapes alone.

    Both models, gradients, moments of AdamW and what the backward pass needs, in float32, for a
    batch of the longest texts. Attention's matrices count, though most machines never keep them.

    Args:
        fleet: with its settings.
        reference: θ0; only its shape is looked at.
        public: the training samples.
    """
    settings = fleet.backbone.distillation
    student, training = ElasticClassifier(_shape_of(reference)), settings.training
    teacher = student.frozen_copy()
    widths, depths = [min(fleet.backbone.widths), 1.0], [student.sizes.layers]
    step = step_of(settings, 0, widths, depths, Lesson("features", logits=True))
    students = sandwich(step, torch.Generator())
    for model in (student, teacher):
        for variant in students:
            model.skeleton(model.shape(variant))  # has no weights in training either
    together = math.ceil(min(training.batch_size, len(public)) / training.parts)
    work = task_of(fleet.task), teacher, student, step, _longest(public, together), students
    with _Living((student.classifier, teacher.classifier)) as living:
        optimization = Optimization(student.classifier.parameters(), training, _STEPS)
        for _ in range(_STEPS):
            teach(*work)
            optimization.step()
    return living.most


def _shape_of(model: Classifier) -> Classifier:
    """A copy without numbers."""
    of: dict[int, Tensor] = {id(p): nn.Parameter(p.to("meta")) for p in model.parameters()}
    of |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, of).requires_grad_(True)


def _longest(samples: Samples, count: int) -> dict[str, Tensor]:
    """A batch as large as any, without numbers."""
    mask = samples.inputs.get("attention_mask")
    if mask is None:
        sizes = {name: values.shape[1:] for name, values in samples.inputs.items()}
    else:
        longest = int((mask != 0).sum(dim=1).max())
        sizes = {name: (longest,) for name in samples.inputs if name != "attention_mask"}
    return {
        name: torch.empty((count, *size), dtype=samples.inputs[name].dtype, device="meta")
        for name, size in sizes.items()
    }
