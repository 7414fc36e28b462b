"""One set of backbone weights, run at any width and depth without copying it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from acme_fleet.cost.variant import Variant
from acme_fleet.models.backbone.elastic import (
    Architecture,
    architecture,
    build,
    elastic_config,
    extract,
    reorder,
    reorder_head,
    subnetwork,
    tensors_of,
)
from acme_fleet.models.backbone.precision import rounded
from acme_fleet.models.backbone.uneven_widths import Importance, UnitParams, global_architecture
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import (
    Activations,
    Classifier,
    LanguageModel,
    activations,
    language_weight,
    moved,
)
from acme_fleet.models.storage import with_prefix


@dataclass(frozen=True)
class Run:
    """One forward pass of a sub-network; a language model has logits for each token."""

    activations: Activations
    logits: Float[Tensor, "batch scores *tokens"]


def reorder_classifier(
    model: Classifier,
    head_importance: Float[Tensor, "layers heads"],
    neuron_importance: Float[Tensor, "layers neurons"],
    channel_importance: Float[Tensor, " hidden"] | None = None,
) -> Classifier:
    """The same function with all units in order, see :func:`reorder`; the model is not changed."""
    importance = head_importance, neuron_importance, channel_importance
    head = model.head
    if channel_importance is not None:
        head = reorder_head(head, channel_importance)
    return model.with_backbone(reorder(model.backbone, *importance), head)


class _Probe(nn.Module):
    """A module whose output is a backbone's activations."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: dict[str, Shaped[Tensor, "batch ..."]]) -> Activations:
        return activations(self.backbone, inputs)


class ElasticClassifier:
    """A reordered reference of which any prefix is a model.

    Training a sub-network trains the shared weights; the skeletons hold shapes only.
    """

    def __init__(self, classifier: Classifier, importance: Importance | None = None) -> None:
        """With ``importance`` the layers of a sub-network may differ in width."""
        self.classifier = classifier
        self.sizes = dimensions(classifier.backbone.config)
        self.importance = importance
        self._shapes: dict[Variant, Architecture] = {}
        self._skeletons: dict[Architecture, _Probe] = {}

    def shape(self, variant: Variant) -> Architecture:
        """δ(θ0, w, d): uniform, or of the same size by one ranking over all layers."""
        if variant not in self._shapes:
            shape = architecture(self.sizes, variant.width, variant.depth, variant.hidden)
            if self.importance is not None:
                params = UnitParams.of(self.classifier.backbone, shape.hidden)
                shape = global_architecture(shape, self.importance, params)
            self._shapes[variant] = replace(shape, precision=variant.precision)
        return self._shapes[variant]

    @property
    def whole(self) -> Variant:
        """All of it."""
        return Variant.whole(self.sizes.layers)

    def tensor_shapes(self, arch: Architecture) -> dict[str, tuple[int, ...]]:
        """Shapes of the sub-network's weights; nothing is built."""
        backbone = self.classifier.backbone
        shapes = {name: value.to("meta") for name, value in backbone.state_dict().items()}
        views = subnetwork(shapes, backbone.config, arch)
        return {name: tuple(view.shape) for name, view in views.items()}

    def skeleton(self, arch: Architecture) -> PreTrainedModel:
        """The sub-network's module without weights."""
        if arch not in self._skeletons:
            config = elastic_config(self.classifier.backbone.config, arch)
            self._skeletons[arch] = _Probe(build(config))
        return self._skeletons[arch].backbone

    def tensors(self, arch: Architecture) -> dict[str, Tensor]:
        """Views of the shared weights that form a sub-network; rounded ones are copies."""
        backbone = self.classifier.backbone
        views = subnetwork(tensors_of(backbone), backbone.config, arch)
        if arch.precision == "float32":
            return views
        buffers = dict(backbone.named_buffers())  # no file holds them: they are not rounded
        weights = {name: view for name, view in views.items() if name not in buffers}
        return views | rounded(weights, arch.precision)

    def run(
        self,
        arch: Architecture,
        inputs: dict[str, Shaped[Tensor, "batch ..."]],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Run:
        """Run a sub-network on the shared weights.

        Args:
            arch: which one.
            inputs: they are moved to where the weights are.
            tensors: its weights as they are now, for many batches; see :meth:`tensors`.
        """
        self.skeleton(arch)
        tensors = self.tensors(arch) if tensors is None else tensors
        place = self.classifier.backbone.device
        observed: Activations = functional_call(
            self._skeletons[arch], with_prefix("backbone", tensors), (moved(inputs, place),)
        )
        if isinstance(self.classifier, LanguageModel):
            weight = tensors[language_weight(self.classifier.backbone.config)]
            return Run(observed, F.linear(observed.final, weight).transpose(1, 2))
        head = self.classifier.head
        weight = head.weight if arch.hidden is None else self._columns(arch.hidden)
        return Run(observed, F.linear(observed.pooled, weight, head.bias))

    def _columns(self, hidden: int) -> Float[Tensor, "classes pooled"]:
        """Columns for the kept channels; a pooled vector is one or two hidden states in a row."""
        weight = self.classifier.head.weight
        return weight.unflatten(1, (-1, self.sizes.hidden))[..., :hidden].flatten(1)

    def frozen_copy(self) -> ElasticClassifier:
        """The same weights, never to change: a teacher."""
        classifier = copy.deepcopy(self.classifier)
        return ElasticClassifier(classifier.requires_grad_(False).eval(), self.importance)

    def extract_head(self, arch: Architecture) -> nn.Linear:
        """A copy of the classifier for a sub-network's pooled vectors.

        Of a language model, whose head stays, it is what headers add at first: nothing.
        """
        if isinstance(self.classifier, LanguageModel):
            hidden = arch.hidden or self.sizes.hidden
            none = nn.Linear(hidden, hidden).requires_grad_(False)
            for parameter in none.parameters():
                parameter.zero_()
            return none
        head = copy.deepcopy(self.classifier.head)
        if arch.hidden is not None:
            weight = self._columns(arch.hidden).detach().clone()
            head.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
            head.in_features = weight.shape[1]
        return head

    def extract(self, arch: Architecture) -> PreTrainedModel:
        """A physically small backbone with copies of a sub-network's weights."""
        return extract(self.classifier.backbone, arch)
