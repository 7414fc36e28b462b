"""Algorithm 2 for ``personalisation.py``: what a method mixes, by which weights, how often."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from acme_fleet.config.personalization import Personalization, Privacy
from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples, Splits, join
from acme_fleet.device.refinement import HeaderState, LocalTraining, Trained, prune_header
from acme_fleet.messages.edge_device import OpenUpdate, RoundStart
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.personalization.base import Own
from acme_fleet.personalization.rules import AnyRule, rule_of
from acme_fleet.personalization.weights import HeadersRule
from acme_fleet.privacy.protection import Protection
from acme_fleet.seeding import generator
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit
from acme_research.ablations.personalisation_fleets import COARSE, World
from acme_research.ablations.personalisation_similarity import listening
from acme_research.ablations.personalisation_training import Local, train_all

LOCAL = Training(epochs=10, batch_size=16, learning_rate=2e-3)
ROUNDS = 3
UNUSED = Protection("device", Privacy(), 0, Path("unused"))  # open rules have no keys


@dataclass(frozen=True)
class Method:
    """A method's mixed parts and its weights. All methods train for 40 epochs in all.

    Attributes:
        weights: see ``listening``.
        mix, classifier, temperature, prune_share, feature_samples, rounds: as in a fleet file.
        learning_rate, epochs: of a round; ``last_epochs`` after the last one.
        last: a round's training keeps the last epoch, and not the best by validation.
        pull, own_classes: see ``Local``; ``last_pull`` is that of the training after all rounds.
        poison: the first device uploads its header times this, of which the edge server takes at
            most ``contained`` median lengths.
        pooled: start from a header that all private data have trained together.
        body_only: the classifier is not mixed (FedPer).
        blend: a device chooses, by its validation split, between what it got and what it had
            (``own``) or FedAvg's mixture (``federated``), in quarters.
        blend_last: it so chooses between what it had before and after the last training.
    """

    weights: str
    mix: str = "importance"
    temperature: float = 0.1
    prune_share: float = 0.1
    learning_rate: float = LOCAL.learning_rate
    feature_samples: int = 32
    poison: float = 1.0
    contained: float = 2.0
    pooled: bool = False
    rounds: int = ROUNDS
    epochs: int = LOCAL.epochs
    last_epochs: int = LOCAL.epochs
    last: bool = False
    pull: float = 0.0
    last_pull: float = 0.0
    own_classes: bool = False
    classifier: str = "everyone"
    body_only: bool = False
    blend: str = ""
    blend_last: bool = False


def seven(method: Method, **changes: Any) -> Method:
    """More and shorter rounds, which end with about as many neurons."""
    shorter = {"rounds": 7, "epochs": 4, "last_epochs": 12, "prune_share": 0.05, "last": True}
    return replace(method, **{**shorter, **changes})


FEDAVG = Method("federated", "both")
OURS = Method("debiased", "both")
MATCHED = Method("matched", "both", feature_samples=100)
FAST = 4e-3
METHODS = {
    "Alone": Method("alone"),
    "Avg": Method("average"),
    "JS": Method("js"),
    "ACME as printed": Method("literal", temperature=1.0),
    "ACME debiased": Method("debiased"),
    "FedAvg": FEDAVG,
    "weights, as printed": Method("literal", "both", temperature=1.0),
    "weights, JS": Method("js", "both"),
    "weights, debiased": OURS,
    "Pooled": Method("alone", pooled=True),
    "FedAvg, seven rounds": seven(FEDAVG, learning_rate=FAST),
    "weights, matched, seven rounds": seven(MATCHED, learning_rate=FAST),
    "FedAvg, rows by class": seven(FEDAVG, learning_rate=FAST, classifier="holders"),
}
ABLATIONS = {
    **{f"temperature {t:g}": replace(OURS, temperature=t) for t in (0.03, 0.3, 1.0)},
    **{f"feature samples {n}": replace(OURS, feature_samples=n) for n in (16, 100)},
    **{f"prune share {share:g}": replace(OURS, prune_share=share) for share in (0.0, 0.25)},
    "weights, own importance": replace(OURS, mix="weights"),
    "100 feature samples, temperature 0.03": replace(OURS, feature_samples=100, temperature=0.03),
}
LAST = replace(FEDAVG, last=True)
EXPLORED = {
    "FedAvg, last epochs": LAST,
    "Alone, last epochs": replace(METHODS["Alone"], last=True),
    "Alone, seven rounds": seven(METHODS["Alone"], last=False),
    "last epochs, learning rate 0.004": replace(LAST, learning_rate=FAST),
    "seven rounds, learning rate 0.002": seven(FEDAVG),
    "weights, debiased, last epochs": replace(OURS, last=True),
    "weights, debiased, seven rounds": seven(OURS),
    "100 feature samples, seven rounds": seven(OURS, feature_samples=100),
    "debiased, rows by class": seven(OURS, learning_rate=FAST, classifier="holders"),
    "rows by class, nine rounds": seven(
        FEDAVG, learning_rate=FAST, classifier="holders", rounds=9, last_epochs=4, prune_share=0.04
    ),
    "oracle, last epochs": Method("oracle", "both", last=True),
    "oracle, seven rounds": seven(Method("oracle", "both")),
    "transport with labels": Method("labels", "both", last=True),
    **{f"last epochs, pull {mu:g}": replace(LAST, pull=mu) for mu in (0.1, 1.0)},
    "last epochs, pull 0.1 at the end": replace(LAST, last_pull=0.1),
    "last epochs, own classifier": replace(LAST, body_only=True),
    "last epochs, softmax over own classes": replace(LAST, own_classes=True),
    "seven rounds, softmax over own classes": seven(FEDAVG, own_classes=True),
    "last epochs, blend with own": replace(LAST, blend="own"),
    "debiased, last epochs, blend with FedAvg": replace(OURS, last=True, blend="federated"),
    "last epochs, blend at the end": replace(LAST, blend_last=True),
}
POISONED = {
    "times 1000": replace(OURS, poison=1000.0),
    "times 1000, not contained": replace(OURS, poison=1000.0, contained=float("inf")),
    "times -1": replace(OURS, poison=-1.0),
}
BY_CLASS = METHODS["FedAvg, rows by class"]
POISONED_BY_CLASS = {
    "rows by class, times 1000": replace(BY_CLASS, poison=1000.0),
    "rows by class, times -1": replace(BY_CLASS, poison=-1.0),
}


def similarity(method: Method, world: World) -> np.ndarray:
    return listening(method.weights, world, method.feature_samples, method.temperature)


First = dict[Any, list[Trained]]


def train(
    headers: list[Header], world: World, method: Method, number: int, first: First
) -> list[Trained]:
    """The training of a round; what all methods of a seed have in common is done once."""
    final = number == method.rounds
    epochs = method.last_epochs if final else method.epochs
    local = Local(
        LOCAL.model_copy(update={"learning_rate": method.learning_rate, "epochs": epochs}),
        last=method.last and not final,
        pull=method.last_pull if final else method.pull,
        own_classes=method.own_classes and not final,
    )
    key = (epochs, method.learning_rate, local.last, local.pull, local.own_classes)
    common = number == 0 and not method.pooled
    if common and key in first:
        return first[key]
    work = [
        LocalTraining(header, data, generator(world.seed, device, number))
        for device, (header, data) in enumerate(zip(headers, world.private, strict=True))
    ]
    trained = train_all(work, local)
    if common:
        first[key] = trained
    return trained


def personalise(
    method: Method,
    world: World,
    first: First,
    sent: Callable[[ImportanceSet], ImportanceSet] = lambda own: own,
) -> dict[str, Any]:
    """All rounds; accuracies of the guarded and of the last header, by device.

    ``sent`` makes an importance set what a device sends of it.
    """
    weights = similarity(method, world)
    begin = pooled_header(world) if method.pooled else world.coarse
    states = [received(begin, data) for data in world.private]
    for number in range(method.rounds):
        trained = train([state.current for state in states], world, method, number, first)
        states = advance(states, [header for header, _ in trained], world)
        sets = [sent(importance) for _, importance in trained]
        exchange = Exchange(method, world, number, [state.current for state in states], sets)
        if exchange.mixes_headers:
            states = advance(states, mixtures(exchange, weights), world)
        smaller = [
            prune_header(state.current, importance, method.prune_share)
            for state, importance in zip(states, exchange.importance(weights), strict=True)
        ]
        states = advance(states, smaller, world)
    before = [state.current for state in states]
    trained = train(before, world, method, method.rounds, first)
    last = [header for header, _ in trained]
    if method.blend_last:
        last = blended(before, last, world)
    return measure(advance(states, last, world), world, weights)


class Exchange:
    """The messages of a round, by the product's rule; the first device may poison its header."""

    def __init__(
        self,
        method: Method,
        world: World,
        number: int,
        headers: list[Header],
        sets: list[ImportanceSet],
    ) -> None:
        settings = Personalization.model_validate(
            {"mix": method.mix, "classifier": method.classifier}
        )
        self.method, self.world, self.headers = method, world, headers
        self.rule: AnyRule = rule_of(settings)
        self.mixes_headers = isinstance(self.rule, HeadersRule)
        if isinstance(self.rule, HeadersRule):
            self.rule.longest = method.contained
        self.start = RoundStart(round=number)
        own = zip(headers, sets, world.private, strict=True)
        self.uploads = {
            str(i): self.rule.upload(self.start, Own(header, found, classes_of(data), UNUSED))
            for i, (header, found, data) in enumerate(own)
        }
        if method.poison != 1:
            whole = self.uploads["0"].header
            poisoned = {name: method.poison * tensor for name, tensor in whole.items()}
            self.uploads["0"] = self.uploads["0"].model_copy(update={"header": poisoned})

    def updates(self, weights: np.ndarray) -> list[OpenUpdate]:
        """The update of each device."""
        coarse = self.world.coarse
        mixed = self.rule.mix(self.uploads, coarse.plan, coarse.state_dict(), weights)
        return [self.rule.update(self.start, part) for part in mixed.parts.values()]

    def importance(self, weights: np.ndarray) -> list[ImportanceSet]:
        """Mixed importance sets, by device."""
        plan = self.world.coarse.plan
        found = [self.rule.received(update, plan, UNUSED) for update in self.updates(weights)]
        return [importance for importance in found if importance is not None]  # open sets are read

    def mixed(self, weights: np.ndarray) -> list[Header]:
        """Mixed headers, by device."""
        pairs = zip(self.updates(weights), self.headers, strict=True)
        found = [self.rule.received_header(update, header.plan) for update, header in pairs]
        return [header for header in found if header is not None]


def classes_of(data: Splits) -> Callable[[], list[int]]:
    return lambda: data.train.labels.unique().tolist()


def mixtures(exchange: Exchange, weights: np.ndarray) -> list[Header]:
    """The header that each device goes on with."""
    method, world, own = exchange.method, exchange.world, exchange.headers
    found = exchange.mixed(weights)
    if method.body_only:
        found = [
            build_header(header.plan, mixed.state_dict() | _classifier(header.state_dict()))
            for header, mixed in zip(own, found, strict=True)
        ]
    if method.blend == "own":
        return blended(own, found, world)
    if method.blend == "federated":
        plain = similarity(replace(method, weights="federated"), world)
        return blended(exchange.mixed(plain), found, world)
    return found


def _classifier(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in tensors.items() if name.startswith("classifier.")}


def blended(one: list[Header], other: list[Header], world: World) -> list[Header]:
    return [
        best_between(a, b, data.validation)
        for a, b, data in zip(one, other, world.private, strict=True)
    ]


def best_between(one: Header, other: Header, validation: Samples) -> Header:
    """Of one + share·(other - one) the best by validation; nearest to the other at a tie."""
    a, b = one.state_dict(), other.state_dict()
    found = [
        build_header(one.plan, {name: a[name] + share * (b[name] - a[name]) for name in a})
        for share in (1.0, 0.75, 0.5, 0.25, 0.0)
    ]
    results = [evaluate(CLASSIFICATION, header, validation) for header in found]
    return found[max(range(5), key=lambda i: (results[i].score, -results[i].loss, -i))]


def pooled_header(world: World) -> Header:
    """The coarse header trained on all private data in one place."""
    header = build_header(world.coarse.plan, world.coarse.state_dict())
    fit(
        CLASSIFICATION,
        header,
        join([data.train for data in world.private]),
        COARSE,
        generator(world.seed, "pooled"),
        validation=join([data.validation for data in world.private]),
    )
    return header.eval()


def received(coarse: Header, data: Splits) -> HeaderState:
    """A device's state when a header arrives, without a regression of its own."""
    return HeaderState(coarse, coarse, evaluate(CLASSIFICATION, coarse, data.validation))


def advance(states: list[HeaderState], headers: list[Header], world: World) -> list[HeaderState]:
    return [
        state.with_current(CLASSIFICATION, header, data.validation)
        for state, header, data in zip(states, headers, world.private, strict=True)
    ]


def measure(states: list[HeaderState], world: World, weights: np.ndarray) -> dict[str, Any]:
    """``either`` is a guard that looks at the last state and the coarse header alone."""
    best = [state.best for state in states]
    either = [
        received(world.coarse, data)
        .with_current(CLASSIFICATION, state.current, data.validation)
        .best
        for state, data in zip(states, world.private, strict=True)
    ]
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)
    test = [data.test for data in world.private]
    spare = {}
    if min(map(len, world.spare)) >= 100:
        spare = {"spare": tested(best, world.spare), "spare either": tested(either, world.spare)}
    return {
        "test": tested(best, test),
        "unguarded": tested([state.current for state in states], test),
        "either": tested(either, test),
        "validation": [state.best_evaluation.score for state in states],
        "neurons": [header.plan.neurons for header in best],
        "peers": float(np.exp(entropy).mean()),
        **spare,
    }


def tested(headers: list[Header], samples: list[Samples]) -> list[float]:
    return [evaluate(CLASSIFICATION, h, own).score for h, own in zip(headers, samples, strict=True)]
