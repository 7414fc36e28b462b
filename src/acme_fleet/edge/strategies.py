"""Strategies that propose headers: chance, evolution, and the paper's controller.

Each draws from the headers that fit, is told how they fared on the shared weights, and at the end
names those that deserve a closer look. The search around them is the same for all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from acme_fleet.config.header import Search
from acme_fleet.edge.controller import Controller, Proposals, reinforce_loss
from acme_fleet.edge.search_space import SearchSpace, choices, decisions_of
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.storage import with_prefix, without_prefix
from acme_fleet.training.loop import optimizer_tensors, restore_optimizer

_BASELINE_DECAY = 0.9
_PROPOSALS_PER_FINALIST = 4
_DRAWS = 50

Decisions = tuple[int, ...]
"""4B of them describe a header, see :func:`acme_fleet.edge.search_space.choices`."""

Fits = Callable[[HeaderPlan], bool]


@runtime_checkable
class Strategy(Protocol):
    """The interface between a search and a strategy that proposes headers."""

    def propose(self, children: int) -> list[Decisions]:
        """So many headers that fit."""
        ...

    def learn(self, children: Sequence[Decisions], rewards: Sequence[float]) -> None:
        """Take the validation accuracy of some children into account."""
        ...

    def finalists(self, count: int) -> list[Decisions]:
        """At most so many different headers, the most promising first."""
        ...

    def describe(self) -> str:
        """The strategy's progress in a few words."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that decides what it does next, but the generator: tensors, and a document."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        ...


def make_strategy(
    settings: Search, space: SearchSpace, fits: Fits, generator: torch.Generator
) -> Strategy:
    """The strategy that the settings name."""
    fitting = Fitting(space, fits)
    match settings.strategy:
        case "random":
            return RandomSearch(fitting, generator)
        case "evolution":
            return Evolution(fitting, settings, generator)
        case "controller":
            return ReinforcedController(fitting, settings, generator)


class Fitting:
    """The headers of a space that are within the budget; no other is ever built."""

    def __init__(self, space: SearchSpace, fits: Fits) -> None:
        self.space = space
        self.options = choices(space.blocks, space.more)
        self._fits = fits
        self._known: dict[Decisions, bool] = {}

    def fits(self, decisions: Decisions) -> bool:
        """True if a header is within the budget."""
        if decisions not in self._known:
            self._known[decisions] = self._fits(self.space.plan(decisions))
        return self._known[decisions]

    def draw(self, source: Callable[[], Iterable[Decisions]], count: int) -> list[Decisions]:
        """Ask ``source`` until ``count`` of what it says fit.

        The smallest header stands in for those that are still missing after many draws.
        """
        found: list[Decisions] = []
        for _ in range(_DRAWS):
            found += filter(self.fits, source())
            if len(found) >= count:
                return found[:count]
        smallest = tuple(decisions_of(self.space.smallest().genotype, self.space.more))
        return found + [smallest] * (count - len(found))

    def uniform(self, generator: torch.Generator) -> Decisions:
        """Any header, each with the same probability, whether it fits or not."""
        return tuple(int(torch.randint(n, (), generator=generator)) for n in self.options)


class RandomSearch:
    """Proposes at random; its finalists are those with the highest reward seen."""

    def __init__(self, fitting: Fitting, generator: torch.Generator) -> None:
        self._fitting, self._generator = fitting, generator
        self._rewards: dict[Decisions, float] = {}

    def propose(self, children: int) -> list[Decisions]:
        """See :class:`Strategy`."""
        draw = self._fitting.uniform
        return self._fitting.draw(
            lambda: [draw(self._generator) for _ in range(children)], children
        )

    def learn(self, children: Sequence[Decisions], rewards: Sequence[float]) -> None:
        """Remember; a header that is seen again has its newer reward, on better weights."""
        self._rewards.update(zip(children, rewards, strict=True))

    def finalists(self, count: int) -> list[Decisions]:
        """See :class:`Strategy`."""
        if not self._rewards:
            return list(dict.fromkeys(self.propose(count)))
        return sorted(self._rewards, key=lambda d: -self._rewards[d])[:count]

    def describe(self) -> str:
        """See :class:`Strategy`."""
        return f"{len(self._rewards)} headers seen"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See :class:`Strategy`."""
        return {}, {"rewards": [[list(d), r] for d, r in self._rewards.items()]}

    def restore(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """See :class:`Strategy`."""
        self._rewards = {tuple(decisions): reward for decisions, reward in document["rewards"]}


class Evolution(RandomSearch):
    """Regularised evolution (Real et al., 2019): tournaments, one mutation, the oldest dies.

    Until the population is full it proposes at random.
    """

    def __init__(self, fitting: Fitting, settings: Search, generator: torch.Generator) -> None:
        super().__init__(fitting, generator)
        self._tournament = settings.tournament
        self._population: deque[tuple[Decisions, float]] = deque(maxlen=settings.population)

    def propose(self, children: int) -> list[Decisions]:
        """See :class:`Strategy`."""
        if len(self._population) < (self._population.maxlen or 0):
            return super().propose(children)
        return self._fitting.draw(lambda: [self._child() for _ in range(children)], children)

    def learn(self, children: Sequence[Decisions], rewards: Sequence[float]) -> None:
        """See :class:`Strategy`."""
        super().learn(children, rewards)
        self._population.extend(zip(children, rewards, strict=True))

    def describe(self) -> str:
        """See :class:`Strategy`."""
        return f"population of {len(self._population)}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See :class:`Strategy`."""
        tensors, document = super().state()
        population = [[list(decisions), reward] for decisions, reward in self._population]
        return tensors, {**document, "population": population}

    def restore(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """See :class:`Strategy`."""
        super().restore(tensors, document)
        self._population.extend((tuple(d), reward) for d, reward in document["population"])

    def _child(self) -> Decisions:
        """The best of a few, with one decision changed to something else."""
        order = torch.randperm(len(self._population), generator=self._generator)
        drawn = [self._population[int(i)] for i in order[: self._tournament]]
        child = list(max(drawn, key=lambda member: member[1])[0])
        place = int(torch.randint(len(child), (), generator=self._generator))
        options = self._fitting.options[place]
        step = 1 + int(torch.randint(options - 1, (), generator=self._generator))
        child[place] = (child[place] + step) % options
        return tuple(child)


class ReinforcedController:
    """The paper's: an LSTM trained by REINFORCE against a moving average of earlier rewards."""

    def __init__(self, fitting: Fitting, settings: Search, generator: torch.Generator) -> None:
        self._fitting, self._generator = fitting, generator
        self._entropy_weight = settings.entropy_weight
        self.controller = Controller(fitting.options, generator)
        self._optimizer = torch.optim.Adam(
            self.controller.parameters(), lr=settings.controller_learning_rate
        )
        self._baseline: float | None = None
        self._entropy = 0.0

    def propose(self, children: int) -> list[Decisions]:
        """See :class:`Strategy`."""
        return self._fitting.draw(lambda: self._drawn(children), children)

    def learn(self, children: Sequence[Decisions], rewards: Sequence[float]) -> None:
        """One REINFORCE step; the predictor learns the rewards too."""
        proposals = self._judge(children)
        mean = sum(rewards) / len(rewards)
        baseline = mean if self._baseline is None else self._baseline
        loss = reinforce_loss(proposals, torch.tensor(rewards), baseline, self._entropy_weight)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._baseline = _BASELINE_DECAY * baseline + (1 - _BASELINE_DECAY) * mean
        self._entropy = float(proposals.entropy.detach().mean())

    @torch.no_grad()
    def finalists(self, count: int) -> list[Decisions]:
        """Of several times as many proposals, those whose predicted accuracy is highest."""
        drawn = list(dict.fromkeys(self.propose(count * _PROPOSALS_PER_FINALIST)))
        predicted = self._judge(drawn).predicted_accuracy
        order = predicted.argsort(descending=True, stable=True)
        return [drawn[i] for i in order[:count].tolist()]

    def describe(self) -> str:
        """See :class:`Strategy`."""
        return f"baseline {self._baseline or 0:.3f}, entropy {self._entropy:.2f}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See :class:`Strategy`."""
        tensors = with_prefix("controller", self.controller.state_dict())
        tensors |= with_prefix("optimizer", optimizer_tensors(self._optimizer))
        return tensors, {"baseline": self._baseline, "entropy": self._entropy}

    def restore(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """See :class:`Strategy`."""
        self.controller.load_state_dict(without_prefix("controller", tensors))
        restore_optimizer(self._optimizer, without_prefix("optimizer", tensors))
        self._baseline, self._entropy = document["baseline"], document["entropy"]

    @torch.no_grad()
    def _drawn(self, children: int) -> list[Decisions]:
        drawn = self.controller.propose(children, self._generator).decisions
        return [tuple(decisions) for decisions in drawn.tolist()]

    def _judge(self, children: Sequence[Decisions]) -> Proposals:
        return self.controller.judge(torch.tensor(children))
