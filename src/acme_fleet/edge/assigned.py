"""One group's backbone and the work on it: each thing is made when it is first needed, and once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.datasets import Preprocessing
from acme_fleet.data.samples import Samples
from acme_fleet.edge.comparison import Contest
from acme_fleet.edge.search import split_shared_data
from acme_fleet.messages.base import check_shapes
from acme_fleet.messages.cloud_edge import BackboneAssignment
from acme_fleet.messages.edge_device import HeaderAssignment
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.features import feature_samples, feature_sizes, judging
from acme_fleet.models.shipped import sent_preprocessing
from acme_fleet.models.storage import backbone_from
from acme_fleet.tasks.base import Task

Shared = Callable[[Sequence[str], Preprocessing], Samples]
"""Reads an edge server's data, given the class names and preprocessing that come with a model."""

_FEW = 256  # of the edge server's data, to know how long a feature is


class Assigned:
    """A backbone that the cloud server has sent for a group of devices.

    A frozen backbone (``search.backbone_learning_rate`` 0) is built once, and serves every search
    and rival. One that searches train is built once too, and each search trains a copy.
    """

    def __init__(
        self,
        message: BackboneAssignment,
        settings: Fleet,
        task: Task,
        shared: Shared,
        draw: Callable[[str], torch.Generator],
        limit_bytes: int,
    ) -> None:
        """Take an assignment; nothing is built yet.

        Args:
            message: from the cloud server.
            settings: the fleet's.
            task: of the fleet.
            shared: reads the edge server's data.
            draw: the group's generators by purpose.
            limit_bytes: storage of its smallest device.
        """
        self.message = message
        self._settings = settings
        self._task = task
        self._shared = shared
        self._draw = draw
        self._limit_bytes = limit_bytes

    @cached_property
    def data(self) -> Samples:
        """The edge server's own data, read as the assigned model takes them."""
        rule = sent_preprocessing(self.message.preprocessing)
        return self._shared(self.message.class_names, rule)

    @cached_property
    def _backbone(self) -> PreTrainedModel:
        """The backbone as it came; it is never trained."""
        return backbone_from(self.message.config, self.message.backbone)

    @property
    def _frozen(self) -> bool:
        return not self._settings.search.backbone_learning_rate

    def check_classifier(self) -> None:
        """Refuse a classifier that does not fit the backbone and the classes.

        Raises:
            ProtocolError: naming the tensor.
        """
        sizes = feature_sizes(self._backbone.config)
        classes = self._task.header_outputs(self.message.class_names, sizes.hidden)
        pooled = sizes.pooled or sizes.hidden
        shapes = {"weight": (classes, pooled), "bias": (classes,)}
        check_shapes(self.message.classifier, shapes, "the classifier")

    def to_search(self) -> PreTrainedModel:
        """The backbone as it came, for a search that may train it."""
        return self._backbone if self._frozen else copy.deepcopy(self._backbone)

    def with_weights(self, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
        """The backbone with the weights that a search has ended with."""
        backbone = self.to_search()
        if not self._frozen:
            backbone.load_state_dict(tensors)
        return backbone

    @cached_property
    def contest(self) -> Contest:
        """The data, size and training of every contender."""
        return Contest.of(
            judging(self._task, self._backbone),
            self._backbone,
            self.message.classifier,
            self._settings.header,
            self._settings.search,
            split_shared_data(self.data, self._draw("split")),
            self._limit_bytes,
            self._settings.personalization.feature_budget,
        )


@dataclass(frozen=True)
class CoarseModel:
    """The coarse model of a group.

    Attributes:
        message: as the devices get it.
        plan: its header's, validated.
        assigned: the backbone that it was made from.
    """

    message: HeaderAssignment
    plan: HeaderPlan
    assigned: Assigned

    @cached_property
    def backbone(self) -> PreTrainedModel:
        """Its backbone, as the search has left it."""
        return self.assigned.with_weights(self.message.backbone)

    @property
    def longest_feature(self) -> float:
        """L2 norm of the longest feature of the edge server's own data."""
        own = feature_samples(self.backbone, self.assigned.data[:_FEW]).inputs["pooled"]
        return float(own.double().norm(dim=1).max())
