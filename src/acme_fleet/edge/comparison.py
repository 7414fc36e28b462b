"""The search against its rivals: all ways to find a header, with equal data, size and training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from acme_fleet.config.header import Header as HeaderSpace
from acme_fleet.config.header import Search, StrategyName
from acme_fleet.cost.size import parameter_count, shapes_of, stored_model, stored_size
from acme_fleet.data.samples import Samples, join
from acme_fleet.edge.search import SearchData, SearchResult, search_header
from acme_fleet.edge.search_space import SearchSpace
from acme_fleet.edge.shared_weights import SharedWeights
from acme_fleet.edge.strategies import Fits
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.features import feature_samples, feature_sizes
from acme_fleet.models.header.by_hand import HAND_MADE, HandMade, hand_made
from acme_fleet.models.header.module import (
    Header,
    LinearHeader,
    build_header,
    linear_header,
)
from acme_fleet.models.probe import refit
from acme_fleet.models.storage import clone_state, with_prefix
from acme_fleet.runs.notes import Progress
from acme_fleet.tasks.base import Evaluation, Task
from acme_fleet.training.evaluation import evaluate, first_best
from acme_fleet.training.loop import Diverged, diverging, fit
from acme_fleet.training.start import changed

STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)


@dataclass(frozen=True)
class Contender:
    """A header after fine-tuning.

    Attributes:
        name: a strategy's or a hand-made header's.
        params: of the header alone.
        choice: on the samples for the final choice, which also chose the epoch.
        evaluated: architectures that were tried on the way.
    """

    name: str
    params: int
    choice: Evaluation
    evaluated: int = 0

    def document(self) -> dict[str, Any]:
        """Plain values, as :class:`~acme_fleet.edge.stored.StoredContender` has them."""
        choice = {"loss": self.choice.loss, "accuracy": self.choice.score}
        return {**vars(self), "choice": choice}


def gains(header: Evaluation, linear: Evaluation) -> bool:
    """True if a header is better than the linear one by more than a standard error of its reward.

    Where the best header made by hand is not, a search has nothing to gain that its few samples
    could tell.
    """
    reward = linear.reward
    return header.reward - reward > math.sqrt(reward * (1 - reward) / linear.count)


def best_first(tried: list[tuple[Header, Contender]]) -> list[tuple[Header, Contender]]:
    """The best header on the samples for the choice, of equals the first, then the others."""
    best = 0
    for place, (_, told) in enumerate(tried):
        if told.choice.better_than(tried[best][1].choice):
            best = place
    return [*tried[best : best + 1], *tried[:best], *tried[best + 1 :]]


@dataclass(frozen=True)
class Contest:
    """The data, size and training that all contenders share.

    Attributes:
        task: its loss trains, its evaluations compare.
        classifier: θ0^H, ``weight`` and ``bias``.
        space, fits: the headers that may be proposed, see :func:`search_header`.
        data: the edge's shared data in three parts, or a frozen backbone's features of them;
            fine-tuning is on the first two.
        settings: the budget of a search, and of the fine-tuning.
    """

    task: Task
    classifier: Mapping[str, Tensor]
    space: SearchSpace
    fits: Fits
    data: SearchData
    settings: Search

    @staticmethod
    def of(
        task: Task,
        backbone: PreTrainedModel,
        classifier: Mapping[str, Tensor],
        header: HeaderSpace,
        settings: Search,
        data: SearchData,
        limit_bytes: int,
        most_bytes: int | None = None,
    ) -> Contest:
        """The contest of a cluster: backbone and header together must fit its smallest device."""
        space = SearchSpace(
            blocks=header.blocks,
            cells=header.cells,
            channels=header.channels,
            more=header.more_operations,
            classes=len(classifier["weight"]),
            **feature_sizes(backbone.config)._asdict(),
        )
        shapes, precision = shapes_of(backbone), backbone.config.precision

        def fits(plan: HeaderPlan) -> bool:
            return stored_size(stored_model(shapes, plan.shapes(), precision)) <= limit_bytes

        if not settings.backbone_learning_rate:  # then its features serve everything that follows
            parts = (data.weights, data.reward, data.choice)
            data = SearchData(
                *(feature_samples(backbone, part, most_bytes=most_bytes) for part in parts)
            )
        contest = Contest(task, classifier, space, fits, data, settings)
        return replace(contest, classifier=contest.start(backbone))

    def start(self, backbone: PreTrainedModel) -> Mapping[str, Tensor]:
        """The first answers of headers: θ0^H, a change of it, or the probe on the edge's data.

        The best on the samples for the choice.
        """
        if self.task.probe is None:
            return self.classifier
        known, choice = self.features(backbone)
        sent = LinearHeader(self.classifier)
        starts = [self.classifier, *changed(self.task, sent, self.classifier, known)]
        starts.append(refit(self.task.probe, self.classifier, known, choice))
        best, _ = first_best(self.task, [LinearHeader(linear) for linear in starts], choice)
        return starts[best]

    def search(
        self,
        strategy: StrategyName,
        backbone: PreTrainedModel,
        generator: torch.Generator,
        progress: Progress,
        state: Path | None = None,
    ) -> tuple[Header, list[float], Contender]:
        """Search with a strategy, then fine-tune what it chose; the backbone is trained in place.

        Returns:
            The header, the rewards on the way, and how the header fares.
        """
        result = self.proposal(strategy, backbone, generator, progress, state)
        header = result.header
        if self.settings.fine_tune_from == "fresh":
            header = self.fresh(result.plan, generator)
        choice = self.fine_tune(header, *self.features(backbone), generator)
        params = parameter_count(result.plan.shapes())
        return header, result.rewards, Contender(strategy, params, choice, result.evaluated)

    def proposal(
        self,
        strategy: StrategyName,
        backbone: PreTrainedModel,
        generator: torch.Generator,
        progress: Progress,
        state: Path | None = None,
    ) -> SearchResult:
        """The header that a strategy chooses, not fine-tuned, see :func:`search_header`."""
        settings = self.settings.model_copy(update={"strategy": strategy})
        with diverging("the header search", "search.learning_rate"):
            return search_header(
                self.task,
                backbone,
                self.classifier,
                self.space,
                self.fits,
                self.data,
                settings,
                generator,
                progress,
                state,
            )

    def fresh(self, plan: HeaderPlan, generator: torch.Generator) -> Header:
        """An untrained header that starts near the reference's classifier."""
        fresh = SharedWeights(self.space, self.classifier, generator)
        return build_header(plan, fresh.tensors)

    def features(self, backbone: PreTrainedModel) -> tuple[Samples, Samples]:
        """Of a frozen backbone: to fine-tune headers on, and to choose the epoch."""
        known = join([self.data.weights, self.data.reward])
        return feature_samples(backbone, known), feature_samples(backbone, self.data.choice)

    def fine_tune(
        self, header: nn.Module, known: Samples, choice: Samples, generator: torch.Generator
    ) -> Evaluation:
        """Train a header on features, in place; the best epoch on ``choice`` is kept."""
        with diverging("fine-tuning a header", "search.fine_tuning.learning_rate"):
            training = self.settings.fine_tuning
            fit(self.task, header, known, training, generator, validation=choice)
        return evaluate(self.task, header, choice)

    def linear(
        self, backbone: PreTrainedModel, generator: torch.Generator
    ) -> tuple[LinearHeader, Contender]:
        """The plain linear header, fine-tuned."""
        header = linear_header(self.classifier, causal=self.space.causal)
        choice = self.fine_tune(header, *self.features(backbone), generator)
        return header, Contender("linear", parameter_count(shapes_of(header)), choice)

    def by_hand(
        self, kind: HandMade, backbone: PreTrainedModel, params: int, generator: torch.Generator
    ) -> tuple[nn.Module, Contender] | None:
        """A hand-made header of at most ``params`` parameters, fine-tuned; none if too few."""
        known, choice = self.features(backbone)
        maps = tuple(known.inputs["last"].shape[1:])
        header = hand_made(kind, self.classifier, maps, params, generator)
        if header is None:
            return None
        result = self.fine_tune(header, known, choice, generator)
        return header, Contender(kind, parameter_count(shapes_of(header)), result)

    def coarse(
        self,
        backbone: PreTrainedModel,
        draw: Callable[[str], torch.Generator],
        progress: Progress,
        state: Path,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The header that the devices get, and beside it a linear one on the same backbone.

        Args:
            backbone: trained in place.
            draw: a generator by name.
            progress, state: see :func:`search_header`.

        Returns:
            The tensors ``header.*`` and ``linear.*``, and what is told of them: ``plan``,
            ``rewards``, ``contenders``.
        """
        tried, rewards = self.tried_by_hand(backbone, draw), list[float]()
        linear, plain = self.linear(backbone, draw("linear"))
        if not tried or gains(tried[0][1].choice, plain.choice):
            strategy = self.settings.strategy
            searched = self.search(strategy, backbone, draw(strategy), progress, state)
            header, rewards, found = searched
            tried = best_first([(header, found), *tried])
            if self.settings.backbone_learning_rate:  # the backbone is another one now
                linear, plain = self.linear(backbone, draw("linear"))
        header = tried[0][0]
        tensors = with_prefix("header", clone_state(header))
        tensors |= with_prefix("linear", clone_state(linear.linear))
        ours, *others = (told.document() for _, told in tried)
        contenders = [ours, plain.document(), *others]
        plan = header.plan.model_dump(mode="json")
        return tensors, {"plan": plan, "rewards": rewards, "contenders": contenders}

    def tried_by_hand(
        self, backbone: PreTrainedModel, draw: Callable[[str], torch.Generator]
    ) -> list[tuple[Header, Contender]]:
        """Headers of the space made by hand that fit, fine-tuned; the best one first.

        There are none where a search runs in any case.
        """
        if self.settings.when == "always" or self.settings.backbone_learning_rate:
            return []
        tried = []
        for name, plan in self.space.by_hand().items():
            if self.fits(plan):
                header = self.fresh(plan, draw(name))
                choice = self.fine_tune(header, *self.features(backbone), draw(f"tune {name}"))
                tried.append((header, Contender(name, parameter_count(plan.shapes()), choice)))
        return best_first(tried)

    def rivals(
        self,
        fresh: Callable[[], PreTrainedModel],
        coarse: PreTrainedModel,
        params: int,
        draw: Callable[[str], torch.Generator],
        progress: Progress,
        *,
        searched: bool = True,
    ) -> list[Contender]:
        """All that the searched header is compared with, but the linear one.

        A rival whose training diverges is left out.

        Args:
            fresh: makes the backbone as it came from the cloud, for each other strategy anew.
            coarse: the backbone that the chosen search ended with, for the hand-made headers.
            params: those of the searched header.
            draw: a generator for each rival by name.
            progress: see :func:`search_header`.
            searched: false leaves out the other strategies.
        """
        found: list[Contender] = []
        others: list[StrategyName] = [
            name for name in STRATEGIES if searched and name != self.settings.strategy
        ]

        for number, name in enumerate(others):

            def tell(
                done: int, total: int, note: str = "", _: float | None = None, number: int = number
            ) -> None:
                progress(number, len(others) + 1, f"{others[number]} {done}/{total}: {note}")

            with suppress(Diverged):
                found.append(self.search(name, fresh(), draw(name), tell)[-1])
        for kind in () if self.space.causal else HAND_MADE:  # these read the pooled vector
            with suppress(Diverged):
                made = self.by_hand(kind, coarse, params, draw(kind))
                found += [made[1]] if made else []
        return found
