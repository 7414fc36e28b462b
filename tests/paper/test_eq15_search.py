"""Eq. 15: the controller learns what pays, and ω learns from the mean over children."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from acme_fleet.config.header import Search
from acme_fleet.cost.size import parameter_count
from acme_fleet.data.samples import Samples
from acme_fleet.edge import search
from acme_fleet.edge.controller import Controller, Proposals, reinforce_loss
from acme_fleet.edge.search import SearchData, SearchResult, search_header, split_shared_data
from acme_fleet.edge.search_space import SearchSpace, choices
from acme_fleet.edge.shared_weights import SharedWeights
from acme_fleet.edge.strategies import (
    Evolution,
    RandomSearch,
    ReinforcedController,
    Strategy,
    make_strategy,
)
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.features import feature_samples
from acme_fleet.models.header.module import build_header
from acme_fleet.models.storage import clone_state
from acme_fleet.runs.notes import Progress
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate

SPACE = SearchSpace(blocks=1, cells=1, channels=4, hidden=16, classes=4, axes=2)
FROZEN = Search(
    strategy="controller",
    steps=3,
    children_per_step=3,
    weight_updates_per_step=2,
    batch_size=16,
    backbone_learning_rate=0,
    final_samples=4,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def anything(plan: HeaderPlan) -> bool:
    return True


def opinionated(options: list[int], seed: int = 0) -> Controller:
    """A controller whose probabilities are far from uniform."""
    controller = Controller(options, seeded(seed), hidden=8)
    for parameter in controller.parameters():
        parameter.data.mul_(15)
    return controller


# --- the policy -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[2], [2, 3, 2], [2, 2, 3, 3]])
def test_probabilities_of_all_sequences_sum_to_one(options: list[int]) -> None:
    everything = torch.tensor(list(itertools.product(*(range(n) for n in options))))
    probability = opinionated(options).judge(everything).log_probability.exp()
    assert probability.std() > 0.02
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0))


def test_draws_follow_the_probabilities_that_are_told() -> None:
    options, draws = [2, 3, 2], 4000
    controller = opinionated(options)
    everything = torch.tensor(list(itertools.product(*(range(n) for n in options))))
    expected = controller.judge(everything).log_probability.exp()
    drawn = controller.propose(draws, seeded())
    same = (drawn.decisions[:, None] == everything).all(dim=2)
    frequency = same.double().mean(dim=0)
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((frequency - expected).abs() < 5 * deviation).all()
    judged = controller.judge(drawn.decisions)
    torch.testing.assert_close(drawn.log_probability, judged.log_probability)
    torch.testing.assert_close(drawn.predicted_accuracy, judged.predicted_accuracy)


def test_entropy_of_a_uniform_policy_is_the_mean_of_the_logarithms() -> None:
    options = [2, 3, 7]
    controller = Controller(options, seeded())
    for choice in controller.choices:
        nn.init.zeros_(choice.weight)
        nn.init.zeros_(choice.bias)
    expected = torch.tensor(options).log().mean().expand(5)
    torch.testing.assert_close(controller.propose(5, seeded()).entropy, expected)


def test_entropy_of_any_policy_by_enumeration() -> None:
    controller = opinionated([4])
    probability = controller.judge(torch.arange(4)[:, None]).log_probability.exp()
    assert probability.std() > 0.02
    expected = -(probability * probability.log()).sum()
    torch.testing.assert_close(controller.propose(3, seeded()).entropy, expected.expand(3))


@pytest.mark.parametrize("step", range(4))
def test_predicted_accuracy_depends_on_every_decision(step: int) -> None:
    """The last one too: candidates that differ in one operation only must be told apart."""
    pair = torch.zeros(2, 4, dtype=torch.int64)
    pair[1, step] = 1
    one, other = opinionated([2, 2, 7, 7]).judge(pair).predicted_accuracy.tolist()
    assert abs(one - other) > 1e-3


def test_a_choice_depends_on_the_choices_before_it() -> None:
    controller = opinionated([3, 4])
    joint = controller.judge(torch.tensor(list(itertools.product(range(3), range(4)))))
    given_first = joint.log_probability.unflatten(0, (3, 4)).softmax(dim=1)
    assert (given_first[0] - given_first[1]).abs().max() > 0.05


# --- REINFORCE --------------------------------------------------------------------------------


def test_loss_by_hand() -> None:
    log_probability = torch.tensor([-1.0, -3.0], requires_grad=True)
    entropy = torch.tensor([0.5, 0.7], requires_grad=True)
    proposals = Proposals(
        torch.zeros(2, 4, dtype=torch.int64), log_probability, entropy, torch.tensor([0.25, 0.5])
    )
    loss = reinforce_loss(proposals, torch.tensor([0.75, 0.5]), 0.6, 0.1)
    policy = -((0.75 - 0.6) * -1.0 + (0.5 - 0.6) * -3.0) / 2
    assert loss.item() == pytest.approx(policy - 0.1 * 0.6 + (0.5**2 + 0) / 2, rel=1e-4)
    loss.backward()
    # A good child (.75 > .6) becomes likelier, a bad one less likely; entropy is worth something.
    assert log_probability.grad is not None
    assert entropy.grad is not None
    torch.testing.assert_close(log_probability.grad, torch.tensor([-0.075, 0.05]))
    torch.testing.assert_close(entropy.grad, torch.tensor([-0.05, -0.05]))


@pytest.mark.parametrize("arm", [0, 1])
def test_two_armed_bandit_is_learned(arm: int) -> None:
    controller, random = Controller([2, 2], seeded()), seeded(1)
    policy = torch.optim.Adam(controller.parameters(), lr=2e-2)
    baseline = 0.5
    for _ in range(60):
        proposals = controller.propose(4, random)
        rewards = (proposals.decisions[:, 0] == arm).float()
        policy.zero_grad()
        reinforce_loss(proposals, rewards, baseline, entropy_weight=0.0).backward()
        policy.step()
        baseline = 0.9 * baseline + 0.1 * rewards.mean().item()
    drawn = controller.propose(200, random)
    assert (drawn.decisions[:, 0] == arm).float().mean() > 0.95
    # The predictor has learned the reward of the arm that is pulled.
    assert drawn.predicted_accuracy.mean() > 0.8


def test_entropy_keeps_the_policy_open() -> None:
    """With rewards that say nothing, the entropy's weight alone moves the policy to uniform."""
    controller = opinionated([3, 3])
    policy = torch.optim.Adam(controller.parameters(), lr=2e-2)
    before = controller.propose(64, seeded()).entropy.mean()
    for _ in range(40):
        proposals = controller.propose(8, seeded(1))
        policy.zero_grad()
        reinforce_loss(proposals, torch.full((8,), 0.5), 0.5, entropy_weight=1.0).backward()
        policy.step()
    after = controller.propose(64, seeded()).entropy.mean()
    assert after > before + 0.05


# --- what is proposed -------------------------------------------------------------------------


def small(plan: HeaderPlan) -> bool:
    return parameter_count(plan.shapes()) <= 450


STRATEGIES = ("random", "evolution", "controller")


def strategy_of(
    name: str, fits: Callable[[HeaderPlan], bool] = anything, seed: int = 0, **changes: Any
) -> Strategy:
    settings = FROZEN.model_copy(update={"strategy": name, "population": 6, **changes})
    return make_strategy(settings, SPACE, fits, seeded(seed))


@pytest.mark.parametrize("name", STRATEGIES)
def test_children_over_the_budget_are_never_proposed(name: str) -> None:
    free = strategy_of(name).propose(200)
    assert 0 < sum(small(SPACE.plan(d)) for d in free) < 150  # most of what is drawn is too large
    strategy = strategy_of(name, small)
    for _ in range(4):
        children = strategy.propose(60)
        assert len(children) == 60
        assert all(small(SPACE.plan(d)) for d in children)
        strategy.learn(children, [d[0] / 2 for d in children])
    assert len(set(children)) > 10
    finalists = strategy.finalists(5)
    assert len(set(finalists)) == len(finalists) == 5
    assert all(small(SPACE.plan(d)) for d in finalists)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_smallest_header_stands_in_when_nothing_else_fits(name: str) -> None:
    smallest = SPACE.smallest()
    strategy = strategy_of(name, lambda plan: plan == smallest)
    assert [SPACE.plan(d) for d in strategy.propose(3)] == [smallest] * 3


def test_random_proposals_are_uniform() -> None:
    drawn = torch.tensor(strategy_of("random").propose(4000))
    for column, options in zip(drawn.T, choices(1), strict=True):
        shares = torch.bincount(column, minlength=options) / len(column)
        deviation = (1 / options * (1 - 1 / options) / len(column)) ** 0.5
        assert (shares - 1 / options).abs().max() < 5 * deviation


def test_finalists_are_those_with_the_highest_latest_reward() -> None:
    strategy = strategy_of("random")
    one, two, three = (0, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0)
    strategy.learn([one, two, three], [0.9, 0.5, 0.7])
    strategy.learn([one], [0.1])  # on better weights it turned out to be worse
    assert strategy.finalists(2) == [three, two]


def test_evolution_changes_one_decision_of_a_good_parent() -> None:
    strategy = strategy_of("evolution", population=4, tournament=4)
    members = [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 2), (1, 0, 3, 3)]
    strategy.learn(members, [0.1, 0.2, 0.9, 0.3])
    children = strategy.propose(300)
    for child in children:  # a tournament of all four has one winner
        assert sum(a != b for a, b in zip(child, members[2], strict=True)) == 1
    assert len(set(children)) == sum(n - 1 for n in choices(1))
    # Regularised: the best dies of age, and its children are no longer proposed.
    strategy.learn([(1, 1, 6, 6), *members[:2], members[3]], [0.4, 0.1, 0.2, 0.3])
    later = strategy.propose(50)
    assert all(sum(a != b for a, b in zip(c, (1, 1, 6, 6), strict=True)) == 1 for c in later)


def test_evolution_is_random_until_its_population_is_full() -> None:
    evolution, chance = strategy_of("evolution", population=4), strategy_of("random")
    assert evolution.propose(20) == chance.propose(20)


@pytest.mark.parametrize("name", STRATEGIES)
def test_better_headers_are_found_where_there_is_something_to_learn(name: str) -> None:
    """The reward counts pools: evolution and controller must do better than chance."""

    def reward(decisions: tuple[int, ...]) -> float:
        return sum(operation >= 5 for operation in decisions[2:]) / 2

    strategy = strategy_of(name, population=16, controller_learning_rate=2e-2)
    means = []
    for _ in range(60):
        children = strategy.propose(4)
        rewards = [reward(child) for child in children]
        strategy.learn(children, rewards)
        means.append(sum(rewards) / 4)
    late = sum(means[-20:]) / 20
    assert (0.1 < late < 0.5) if name == "random" else late > 0.75
    assert reward(strategy.finalists(1)[0]) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_goes_on_from_its_state(name: str) -> None:
    def play(strategy: Strategy, turns: int) -> None:
        for _ in range(turns):
            children = strategy.propose(4)
            strategy.learn(children, [sum(child) / 20 for child in children])

    whole, stopped = strategy_of(name, seed=3), strategy_of(name, seed=3)
    for strategy in (whole, stopped):
        play(strategy, 4)
    tensors, document = stopped.state()
    generator = seeded()
    settings = FROZEN.model_copy(update={"strategy": name, "population": 6})
    again = make_strategy(settings, SPACE, anything, generator)
    again.restore(
        {key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(document))
    )
    generator.set_state(stopped._generator.get_state())  # type: ignore[attr-defined]
    play(whole, 3)
    play(again, 3)
    assert again.finalists(6) == whole.finalists(6)
    assert again.describe() == whole.describe()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("random", RandomSearch), ("evolution", Evolution), ("controller", ReinforcedController)],
)
def test_strategy_is_the_one_that_was_named(name: str, kind: type) -> None:
    assert type(strategy_of(name)) is kind


# --- ω ----------------------------------------------------------------------------------------


def synthetic(count: int, seed: int) -> Samples:
    """The last map has the class as signs of two channels at one place; all else is noise."""
    generator = seeded(seed)
    labels = torch.randint(4, (count,), generator=generator)
    last = 0.1 * torch.randn(count, 16, 4, 4, generator=generator)
    rows, columns = torch.randint(4, (2, count), generator=generator)
    sample = torch.arange(count)
    for channel, sign in enumerate((1 - 2 * (labels // 2), 1 - 2 * (labels % 2))):
        last[sample, channel, rows, columns] += 8.0 * sign
    inputs = {
        "last": last,
        "penultimate": torch.randn(count, 16, 4, 4, generator=generator),
        "pooled": torch.randn(count, 16, generator=generator),
    }
    return Samples(inputs, labels, torch.ones(count, dtype=torch.int64))


CLASSIFIER = {"weight": torch.zeros(4, 16), "bias": torch.zeros(4)}


def test_child_runs_on_shared_weights_and_starts_from_the_classifier() -> None:
    classifier = {"weight": torch.rand(4, 16), "bias": torch.rand(4)}
    shared = SharedWeights(SPACE, classifier, seeded())
    assert {n: tuple(t.shape) for n, t in shared.tensors.items()} == SPACE.shared_shapes()
    assert torch.equal(shared.tensors["classifier.pooled.weight"], classifier["weight"])
    assert torch.equal(shared.tensors["classifier.pooled.bias"], classifier["bias"])
    plan, inputs = SPACE.plan([0, 1, 1, 4]), synthetic(5, 0).inputs
    before = shared.child(plan)(**inputs)
    torch.testing.assert_close(before, build_header(plan, shared.tensors)(**inputs))
    shared.tensors["classifier.pooled.bias"].data += 1.0
    torch.testing.assert_close(shared.child(plan)(**inputs), before + 1)


def test_gradient_of_shared_weights_is_the_mean_over_children(
    plain_backbone: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """∇ω = 1/M Σ ∇ L(m_i) (Eq. 15), each child's own gradient taken from a header of its own."""
    children = [(0, 1, 1, 4), (0, 1, 1, 3), (1, 0, 2, 0), (0, 1, 1, 4)]
    monkeypatch.setattr(RandomSearch, "propose", lambda *_: children)
    before: list[dict[str, Tensor]] = []
    after: list[list[Tensor | None]] = []

    class Recorded(SharedWeights):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            before.append({n: t.detach().clone() for n, t in self.tensors.items()})

    def record(parameters: list[Tensor], limit: float) -> None:
        after.append([None if p.grad is None else p.grad.clone() for p in parameters])

    data = SearchData(synthetic(12, 0), synthetic(4, 1), synthetic(4, 2))
    changes = {"steps": 1, "weight_updates_per_step": 1, "strategy": "random"}
    settings = FROZEN.model_copy(update=changes)
    monkeypatch.setattr(search, "SharedWeights", Recorded)
    monkeypatch.setattr(search, "feature_samples", lambda backbone, samples: samples)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", record)
    search_header(
        CLASSIFICATION,
        as_elastic(plain_backbone("vit", layers=1)),
        CLASSIFIER,
        SPACE,
        anything,
        data,
        settings,
        seeded(),
        lambda done, total, note, value=None: None,
    )
    omega, gradients = before[0], dict(zip(before[0], after[0], strict=True))

    expected = {name: torch.zeros_like(value) for name, value in omega.items()}
    for decisions in children:
        header = build_header(SPACE.plan(decisions), omega)
        F.cross_entropy(header(**data.weights.inputs), data.weights.labels).backward()
        for name, parameter in header.named_parameters():
            assert parameter.grad is not None
            expected[name] += parameter.grad / len(children)
    for name, value in expected.items():
        ours = gradients[name]
        if ours is None:
            assert not value.any()
        else:
            torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-6)


# --- the whole search -------------------------------------------------------------------------


def test_shared_data_is_cut_in_three_disjoint_parts(
    make_samples: Callable[..., Samples],
) -> None:
    data = split_shared_data(make_samples(41), seeded())
    assert (len(data.weights), len(data.reward), len(data.choice)) == (21, 10, 10)
    other = split_shared_data(make_samples(41), seeded(1))
    assert not torch.equal(other.reward.labels, data.reward.labels)
    images = torch.cat(
        [part.inputs["pixel_values"] for part in (data.weights, data.reward, data.choice)]
    )
    assert len(images.flatten(1).unique(dim=0)) == 41


def run_search(
    backbone: PreTrainedModel,
    samples: Samples,
    settings: Search,
    fits: Callable[[HeaderPlan], bool] = anything,
    seed: int = 0,
    state: Path | None = None,
) -> SearchResult:
    data = split_shared_data(samples, seeded(7))
    steps: list[tuple[int, int]] = []
    result = search_header(
        CLASSIFICATION,
        backbone,
        CLASSIFIER,
        SPACE,
        fits,
        data,
        settings,
        seeded(seed),
        lambda done, total, note, value=None: steps.append((done, total)),
        state,
    )
    assert steps[-1] == (settings.steps, settings.steps)
    assert len(result.rewards) == settings.steps
    assert result.evaluated > settings.steps * settings.children_per_step
    assert (
        evaluate(CLASSIFICATION, result.header, feature_samples(backbone, data.choice))
        == result.choice
    )
    return result


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_deterministic_by_seed(
    rate: float,
    plain_backbone: Callable[..., PreTrainedModel],
    make_samples: Callable[..., Samples],
) -> None:
    settings = FROZEN.model_copy(update={"backbone_learning_rate": rate})
    results, backbones = [], []
    for seed in (0, 0, 1):
        backbones.append(as_elastic(plain_backbone("vit", layers=1)))
        results.append(run_search(backbones[-1], make_samples(64), settings, seed=seed))
    first, again, other = (clone_state(result.header) for result in results)
    assert results[0].plan == results[1].plan
    assert results[0].rewards == results[1].rewards
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert results[0].plan != results[2].plan or any(
        not torch.equal(other[name], value) for name, value in first.items()
    )
    one, two = (clone_state(backbone) for backbone in backbones[:2])
    assert all(torch.equal(two[name], value) for name, value in one.items())


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_search_that_is_stopped_ends_as_if_it_had_not_been(
    rate: float,
    name: str,
    plain_backbone: Callable[..., PreTrainedModel],
    make_samples: Callable[..., Samples],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    changes = {"backbone_learning_rate": rate, "strategy": name, "steps": 5, "population": 6}
    settings, file = FROZEN.model_copy(update=changes), tmp_path / "search.safetensors"
    backbones = [as_elastic(plain_backbone("vit", layers=1)) for _ in range(2)]
    whole = run_search(backbones[0], make_samples(64), settings)
    monkeypatch.setattr(search, "_SAVE_EVERY_S", 0.0)

    def stop(done: int, total: int, note: str = "", value: float | None = None, /) -> None:
        assert "reward" in note
        if done == 4:  # three are on disk
            raise _Stopped

    def parts(progress: Progress) -> tuple[Any, ...]:
        data = split_shared_data(make_samples(64), seeded(7))
        return CLASSIFIER, SPACE, anything, data, settings, seeded(), progress, file

    with pytest.raises(_Stopped):
        search_header(CLASSIFICATION, as_elastic(plain_backbone("vit", layers=1)), *parts(stop))
    seen: list[int] = []
    again = search_header(
        CLASSIFICATION,
        backbones[1],
        *parts(lambda done, total, note, value=None: seen.append(done)),
    )
    assert seen[0] == 4
    assert again.plan == whole.plan
    assert again.rewards == whole.rewards
    assert again.evaluated == whole.evaluated
    ended = [clone_state(module) for module in (whole.header, again.header, *backbones)]
    for one, other in (ended[:2], ended[2:]):
        assert all(torch.equal(one[key], value) for key, value in other.items())


def test_time_limit_takes_the_best_so_far(
    plain_backbone: Callable[..., PreTrainedModel], make_samples: Callable[..., Samples]
) -> None:
    settings = FROZEN.model_copy(update={"steps": 10_000, "time_limit_s": 1e-6})
    data = split_shared_data(make_samples(64), seeded(7))
    told: list[tuple[int, int]] = []
    result = search_header(
        CLASSIFICATION,
        as_elastic(plain_backbone("vit", layers=1)),
        CLASSIFIER,
        SPACE,
        anything,
        data,
        settings,
        seeded(),
        lambda done, total, note, value=None: told.append((done, total)),
    )
    assert len(result.rewards) == 1
    assert told == [(1, 10_000), (10_000, 10_000)]


def test_backbone_trains_along_only_with_a_learning_rate_of_its_own(
    plain_backbone: Callable[..., PreTrainedModel], make_samples: Callable[..., Samples]
) -> None:
    for rate, moves in ((0.0, False), (1e-3, True)):
        backbone = as_elastic(plain_backbone("vit", layers=1))
        before = clone_state(backbone)
        settings = FROZEN.model_copy(update={"backbone_learning_rate": rate})
        run_search(backbone, make_samples(64), settings)
        same = [torch.equal(before[name], value) for name, value in clone_state(backbone).items()]
        assert all(same) != moves
        assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_no_child_over_the_budget_is_ever_built(
    plain_backbone: Callable[..., PreTrainedModel],
    make_samples: Callable[..., Samples],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[HeaderPlan] = []
    original = SharedWeights.child

    def child(self: SharedWeights, plan: HeaderPlan) -> Callable[..., Tensor]:
        built.append(plan)
        return original(self, plan)

    monkeypatch.setattr(SharedWeights, "child", child)
    backbone = as_elastic(plain_backbone("vit", layers=1))
    result = run_search(backbone, make_samples(64), FROZEN, fits=small)
    assert small(result.plan)
    assert len(built) > FROZEN.steps * 3 * 3
    assert all(map(small, built))


def test_finds_a_header_for_what_the_pooled_token_does_not_say(
    plain_backbone: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end on synthetic features; some headers do not read the map that matters."""
    monkeypatch.setattr(search, "feature_samples", lambda backbone, samples: samples)
    data = SearchData(synthetic(192, 0), synthetic(64, 1), synthetic(64, 2))
    settings = FROZEN.model_copy(
        update={"steps": 30, "learning_rate": 3e-2, "batch_size": 32, "final_samples": 12}
    )
    result = search_header(
        CLASSIFICATION,
        as_elastic(plain_backbone("vit", layers=1)),
        CLASSIFIER,
        SPACE,
        anything,
        data,
        settings,
        seeded(),
        lambda done, total, note, value=None: None,
    )
    assert result.choice.score > 0.7
    assert evaluate(CLASSIFICATION, result.header, synthetic(200, 3)).score > 0.6
    assert sum(result.rewards[-5:]) > sum(result.rewards[:5]) + 0.5
    assert 0 in result.plan.genotype.blocks[0].inputs
