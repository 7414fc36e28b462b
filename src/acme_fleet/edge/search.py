"""The search for a header: shared weights and a controller, trained in turn (Eq. 15)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from acme_fleet.data.samples import Samples
from acme_fleet.edge.controller import Controller, Proposals, reinforce_loss
from acme_fleet.edge.search_space import SearchSpace, choices, decisions_of
from acme_fleet.fleet import Search
from acme_fleet.models.features import feature_maps, feature_samples
from acme_fleet.models.header import Header, build_header, initial_tensors
from acme_fleet.models.header_plan import HeaderPlan
from acme_fleet.models.training import Evaluation, evaluate

_BASELINE_DECAY = 0.9
_PROPOSALS_PER_FINALIST = 4
_DRAWS = 50

Fits = Callable[[HeaderPlan], bool]


@dataclass(frozen=True)
class SearchData:
    """The edge's shared data, cut in three: ω's training, reward, final choice."""

    weights: Samples
    reward: Samples
    choice: Samples


def split_shared_data(samples: Samples, generator: torch.Generator) -> SearchData:
    """Half for the shared weights, a quarter each for the reward and the final choice."""
    order = torch.randperm(len(samples), generator=generator)
    quarter = len(samples) // 4
    reward, choice, weights = order.split([quarter, quarter, len(samples) - 2 * quarter])
    return SearchData(samples[weights], samples[reward], samples[choice])


class SharedWeights:
    """ω: one tensor for every place and operation, whichever header it serves."""

    def __init__(
        self, space: SearchSpace, classifier: Mapping[str, Tensor], generator: torch.Generator
    ) -> None:
        """Draw ω; the columns of the pooled token start as θ0^H, ``classifier``."""
        self.tensors = initial_tensors(space.shared_shapes(), generator)
        for part, value in classifier.items():
            self.tensors[f"classifier.pooled.{part}"] = value.clone()
        for tensor in self.tensors.values():
            tensor.requires_grad_(True)

    def child(self, plan: HeaderPlan) -> Callable[..., Tensor]:
        """The header of this plan, running on ω itself."""
        with torch.device("meta"):
            skeleton = Header(plan)
        own = {name: self.tensors[name] for name in plan.shapes()}

        def run(**features: Tensor) -> Tensor:
            return functional_call(skeleton, own, (), features)

        return run


@dataclass(frozen=True)
class SearchResult:
    """The chosen header with its weights, how it fared, and the rewards seen on the way."""

    plan: HeaderPlan
    header: Header
    choice: Evaluation
    rewards: list[float]


def search_header(
    backbone: PreTrainedModel,
    classifier: Mapping[str, Tensor],
    space: SearchSpace,
    fits: Fits,
    data: SearchData,
    settings: Search,
    generator: torch.Generator,
    progress: Callable[[int, int], None],
) -> SearchResult:
    """Search a header for a backbone. The backbone is trained along, in place.

    Args:
        backbone: θ^B_s, small, as it came from the cloud.
        classifier: θ0^H, ``weight`` and ``bias``.
        space: the headers that may be proposed.
        fits: whether a header and this backbone are within the storage limit; children that do
            not fit are never built.
        data: three disjoint parts of the edge's shared data.
        settings: the budget. A backbone learning rate of 0 freezes the backbone, and its
            features are then computed once.
        generator: decides the run.
        progress: called with finished and total steps.
    """
    shared = SharedWeights(space, classifier, generator)
    controller = Controller(choices(space.blocks), generator)
    search = _Search(backbone, shared, controller, space, fits, settings, generator)
    training = data.weights if search.joint else feature_samples(backbone, data.weights)
    reward_data = feature_samples(backbone, data.reward)
    batches = _endless(training, settings.batch_size, generator)
    rewards: list[float] = []
    for step in range(settings.steps):
        for _ in range(settings.weight_updates_per_step):
            search.update_weights(next(batches))
        if search.joint:
            reward_data = feature_samples(backbone, data.reward)
        rewards.append(search.update_controller(reward_data))
        progress(step + 1, settings.steps)
    backbone.requires_grad_(False)
    choice = feature_samples(backbone, data.choice)
    plan, evaluation = _choose(controller, shared, space, fits, choice, settings, generator)
    return SearchResult(plan, build_header(plan, shared.tensors), evaluation, rewards)


class _Search:
    """The two sets of parameters that are learned in turn: ω (and θ^B), and the controller."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        shared: SharedWeights,
        controller: Controller,
        space: SearchSpace,
        fits: Fits,
        settings: Search,
        generator: torch.Generator,
    ) -> None:
        self.backbone, self.shared, self.controller = backbone, shared, controller
        self.space, self.fits, self.settings, self.generator = space, fits, settings, generator
        self.joint = settings.backbone_learning_rate > 0
        self.baseline: float | None = None
        backbone.requires_grad_(self.joint)
        groups = [{"params": list(shared.tensors.values()), "lr": settings.learning_rate}]
        if self.joint:
            rate = settings.backbone_learning_rate
            groups.append({"params": list(backbone.parameters()), "lr": rate})
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.weights = torch.optim.AdamW(groups)
        self.policy = torch.optim.Adam(
            controller.parameters(), lr=settings.controller_learning_rate
        )

    def update_weights(self, batch: Samples) -> None:
        """One step on ω with the policy fixed: the mean loss of M sampled children (Eq. 15)."""
        features = feature_maps(self.backbone, batch.inputs) if self.joint else batch.inputs
        losses = [
            F.cross_entropy(self.shared.child(plan)(**features), batch.labels)
            for plan in self._plans(self._propose())
        ]
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.weights.step()
        self.weights.zero_grad()

    def update_controller(self, reward_data: Samples) -> float:
        """One REINFORCE step with ω fixed; returns the children's mean reward."""
        proposals = self._propose()
        rewards = [
            evaluate(self.shared.child(plan), reward_data).accuracy
            for plan in self._plans(proposals)
        ]
        mean = sum(rewards) / len(rewards)
        baseline = mean if self.baseline is None else self.baseline
        loss = reinforce_loss(
            proposals, torch.tensor(rewards), baseline, self.settings.entropy_weight
        )
        self.policy.zero_grad()
        loss.backward()
        self.policy.step()
        self.baseline = _BASELINE_DECAY * baseline + (1 - _BASELINE_DECAY) * mean
        return mean

    def _propose(self) -> Proposals:
        children = self.settings.children_per_step
        return propose(self.controller, children, self.space, self.fits, self.generator)

    def _plans(self, proposals: Proposals) -> list[HeaderPlan]:
        return [self.space.plan(decisions) for decisions in proposals.decisions.tolist()]


def propose(
    controller: Controller,
    children: int,
    space: SearchSpace,
    fits: Fits,
    generator: torch.Generator,
) -> Proposals:
    """Draw children until enough of them fit; the smallest header stands in for those missing."""
    fitting: list[Tensor] = []
    for _ in range(_DRAWS):
        with torch.no_grad():
            drawn = controller.propose(children, generator).decisions
        fitting += [d for d in drawn if fits(space.plan(d.tolist()))]
        if len(fitting) >= children:
            break
    smallest = torch.tensor(decisions_of(space.smallest().genotype))
    fitting += [smallest] * (children - len(fitting))
    return controller.judge(torch.stack(fitting[:children]))


@torch.no_grad()
def _choose(
    controller: Controller,
    shared: SharedWeights,
    space: SearchSpace,
    fits: Fits,
    choice: Samples,
    settings: Search,
    generator: torch.Generator,
) -> tuple[HeaderPlan, Evaluation]:
    """Rank many proposals by predicted accuracy, evaluate the first, take the best."""
    count = settings.final_samples * _PROPOSALS_PER_FINALIST
    proposals = propose(controller, count, space, fits, generator)
    order = proposals.predicted_accuracy.argsort(descending=True, stable=True)
    distinct = dict.fromkeys(tuple(d) for d in proposals.decisions[order].tolist())
    best: tuple[HeaderPlan, Evaluation] | None = None
    for decisions in list(distinct)[: settings.final_samples]:
        plan = space.plan(decisions)
        result = evaluate(shared.child(plan), choice)
        if best is None or result.better_than(best[1]):
            best = plan, result
    assert best is not None
    return best


def _endless(samples: Samples, batch_size: int, generator: torch.Generator) -> Iterator[Samples]:
    while True:
        yield from samples.batches(batch_size, generator)
