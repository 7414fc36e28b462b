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
    policy = torch.optim.Adam(controller.parameters(), lr=settings.controller_learning_rate)
    joint = settings.backbone_learning_rate > 0
    backbone.requires_grad_(joint)
    weights = torch.optim.AdamW(
        [
            {"params": list(shared.tensors.values()), "lr": settings.learning_rate},
            {"params": list(backbone.parameters()), "lr": settings.backbone_learning_rate},
        ][: 1 + joint]
    )
    training = data.weights if joint else feature_samples(backbone, data.weights)
    reward_data = feature_samples(backbone, data.reward)
    batches = _endless(training, settings.batch_size, generator)
    rewards: list[float] = []
    baseline: float | None = None
    for step in range(settings.steps):
        for _ in range(settings.weight_updates_per_step):
            batch = next(batches)
            features = feature_maps(backbone, batch.inputs) if joint else batch.inputs
            with torch.no_grad():
                proposals = propose(controller, settings.children_per_step, space, fits, generator)
            plans = [space.plan(d) for d in proposals.decisions.tolist()]
            losses = [F.cross_entropy(shared.child(p)(**features), batch.labels) for p in plans]
            torch.stack(losses).mean().backward()  # Eq. 15
            nn.utils.clip_grad_norm_([p for g in weights.param_groups for p in g["params"]], 1.0)
            weights.step()
            weights.zero_grad()
        if joint:
            reward_data = feature_samples(backbone, data.reward)
        proposals = propose(controller, settings.children_per_step, space, fits, generator)
        accuracies = [
            evaluate(shared.child(space.plan(d)), reward_data).accuracy
            for d in proposals.decisions.tolist()
        ]
        baseline = accuracies[0] if baseline is None else baseline
        loss = reinforce_loss(
            proposals, torch.tensor(accuracies), baseline, settings.entropy_weight
        )
        policy.zero_grad()
        loss.backward()
        policy.step()
        mean = sum(accuracies) / len(accuracies)
        baseline = _BASELINE_DECAY * baseline + (1 - _BASELINE_DECAY) * mean
        rewards.append(mean)
        progress(step + 1, settings.steps)
    backbone.requires_grad_(False)
    choice_data = feature_samples(backbone, data.choice)
    plan, evaluation = _choose(controller, shared, space, fits, choice_data, settings, generator)
    return SearchResult(plan, build_header(plan, shared.tensors), evaluation, rewards)


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
