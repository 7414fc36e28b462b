"""Every way to find a header gets the same data, room and training; on images and on text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from acme_fleet.config.header import Header, Search
from acme_fleet.cost.size import file_size, parameter_count, shapes_of
from acme_fleet.data.samples import Samples
from acme_fleet.edge import comparison
from acme_fleet.edge.comparison import STRATEGIES, Contest, gains
from acme_fleet.edge.search import split_shared_data
from acme_fleet.messages.header_plan import BY_HAND, HeaderPlan
from acme_fleet.models.backbone.elastic import as_elastic
from acme_fleet.models.features import feature_maps
from acme_fleet.models.header.by_hand import HAND_MADE
from acme_fleet.tasks.base import Evaluation
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate

SPACE = Header(blocks=2, cells=1, channels=6)
SETTINGS = Search.model_validate(
    {
        "strategy": "random",
        "steps": 2,
        "children_per_step": 3,
        "weight_updates_per_step": 1,
        "batch_size": 16,
        "backbone_learning_rate": 0,
        "final_samples": 4,
        "fine_tuning": {"epochs": 3, "batch_size": 16},
    }
)
ANY_SIZE = 2**40


def draw(name: str = "") -> torch.Generator:
    return torch.Generator().manual_seed(sum(map(ord, name)))


def silent(*_: object) -> None:
    pass


@pytest.fixture
def make_contest(
    plain_backbone: Callable[..., PreTrainedModel],
    make_inputs: Callable[..., dict[str, Tensor]],
    make_samples: Callable[..., Samples],
) -> Callable[..., tuple[PreTrainedModel, Contest]]:
    """A family's backbone and its contest: images of four classes, or texts that tell nothing."""

    def text(family: str) -> Samples:
        labels = torch.arange(48) % 4
        return Samples(make_inputs(family, 48), labels, torch.ones(48, dtype=torch.int64))

    def make(family: str = "vit", limit: int = ANY_SIZE) -> tuple[PreTrainedModel, Contest]:
        backbone = as_elastic(plain_backbone(family, layers=2)).requires_grad_(False)
        samples = make_samples(48) if family == "vit" else text(family)
        data = split_shared_data(samples, draw("split"))
        hidden = backbone.config.hidden_size
        classifier = {"weight": torch.zeros(4, hidden), "bias": torch.zeros(4)}
        return backbone, Contest.of(
            CLASSIFICATION, backbone, classifier, SPACE, SETTINGS, data, limit
        )

    return make


@pytest.mark.parametrize(("family", "axes"), [("vit", 2), ("bert", 1), ("llama", 1)])
def test_search_on_images_and_on_text(make_contest, family: str, axes: int):
    backbone, contest = make_contest(family)
    header, rewards, contender = contest.search("evolution", backbone, draw(), silent)
    assert header.plan.axes == axes
    assert len(rewards) == 2
    _, choice = contest.features(backbone)
    assert contender.choice == evaluate(CLASSIFICATION, header, choice)
    assert contender.params == parameter_count(shapes_of(header))
    assert contender.params == sum(p.numel() for p in header.parameters())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_stands_in_padded_places_does_not_matter(
    plain_backbone: Callable[..., PreTrainedModel], family: str
):
    backbone = as_elastic(plain_backbone(family, layers=2))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    words = torch.randint(1, 30, (2, 7), generator=draw())
    other = words.where(mask == 1, 29 - words)
    assert not torch.equal(words, other)
    maps, same = (
        feature_maps(backbone, {"input_ids": ids, "attention_mask": mask}) for ids in (words, other)
    )
    for name, values in maps.items():
        torch.testing.assert_close(same[name], values)
    assert not maps["last"][0, :, 4:].any()
    assert maps["last"][1].abs().sum(dim=0).all()


def test_backbone_and_header_fit_the_limit_together(make_contest):
    backbone, contest = make_contest()
    shapes = shapes_of(backbone, "backbone.")
    plans = [contest.space.smallest(), contest.space.plan([0, 1, 2, 2, 1, 0, 2, 2])]
    sizes = [
        file_size(shapes | {f"header.{name}": shape for name, shape in plan.shapes().items()})
        for plan in plans
    ]
    assert sizes[0] < sizes[1]
    for limit, fitting in ((sizes[0] - 1, 0), (sizes[0], 1), (sizes[1] - 1, 1), (sizes[1], 2)):
        _, limited = make_contest(limit=limit)
        assert sum(map(limited.fits, plans)) == fitting


def test_rivals_have_the_same_budget(make_contest):
    backbone, contest = make_contest()
    header, _, ours = contest.search("random", backbone, draw(), silent)
    told: list[tuple[int, int, str]] = []
    room = ours.params + 1000  # where the narrowest of each kind fits
    rivals = contest.rivals(
        lambda: make_contest()[0], backbone, room, draw, lambda *step: told.append(step)
    )
    assert [rival.name for rival in rivals] == ["evolution", "controller", *HAND_MADE]
    for rival in rivals[:2]:
        assert rival.evaluated == ours.evaluated == 2 * 3 + 4
    for rival in rivals[2:]:
        assert rival.evaluated == 0
        assert rival.params <= room
    assert all(done < total for done, total, _ in told)
    assert {note.split()[0] for *_, note in told} == {"evolution", "controller"}
    assert header.plan.kept == {}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fresh_start_is_near_the_reference_and_shared_is_not(make_contest, strategy: str):
    """Without fine-tuning steps of any size, what differs is where the header starts."""
    backbone, contest = make_contest()
    still = contest.settings.fine_tuning.model_copy(update={"learning_rate": 1e-12})
    starts = {}
    for origin in ("fresh", "shared"):
        settings = contest.settings.model_copy(
            update={"fine_tune_from": origin, "fine_tuning": still}
        )
        header, *_ = replace(contest, settings=settings).search(strategy, backbone, draw(), silent)
        found = header.state_dict()["classifier.pooled.weight"] - contest.classifier["weight"]
        starts[origin] = found.abs().max()
    assert starts["fresh"] < 1e-6
    assert starts["shared"] > 1e-4


def telling(count: int, seed: int) -> Samples:
    """Features of which each says the class, in noise."""
    noise = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    means = torch.nn.functional.one_hot(labels, 16).float()
    maps = means[:, :, None, None] + torch.randn(count, 16, 4, 4, generator=noise)
    pooled = means + 0.3 * torch.randn(count, 16, generator=noise)
    inputs = {"last": maps, "penultimate": maps.flip(0), "pooled": pooled}
    return Samples(inputs, labels, torch.ones(count, dtype=torch.int64))


def test_hand_made_headers_and_the_linear_one_learn(make_contest, monkeypatch: pytest.MonkeyPatch):
    known, choice, unseen = telling(64, 0), telling(32, 1), telling(64, 2)
    monkeypatch.setattr(Contest, "features", lambda *_: (known, choice))
    backbone, contest = make_contest()
    quick = contest.settings.fine_tuning.model_copy(update={"epochs": 10, "learning_rate": 1e-2})
    contest = replace(contest, settings=contest.settings.model_copy(update={"fine_tuning": quick}))
    tried = [contest.linear(backbone, draw())]
    for kind in HAND_MADE:
        made = contest.by_hand(kind, backbone, 3_000, draw(kind))
        assert made is not None
        tried.append(made)
    for header, told in tried:
        assert told.choice == evaluate(CLASSIFICATION, header, choice)
        assert told.params == sum(p.numel() for p in header.parameters())
        assert evaluate(CLASSIFICATION, header, unseen).score > 0.6, told  # .25 by chance
    assert contest.by_hand("cnn", backbone, 10, draw()) is None


def test_a_gain_is_more_than_a_standard_error_of_the_linear_header():
    linear = Evaluation(losses=20.0, hits=18.0, count=25)  # .72, standard error .0898
    assert not gains(replace(linear, hits=20.0), linear)
    assert gains(replace(linear, hits=21.0), linear)
    assert not gains(replace(linear, hits=10.0), linear)
    perfect = replace(linear, hits=25.0)
    assert not gains(perfect, perfect)


@pytest.mark.parametrize("useful", [False, True])
def test_a_search_runs_only_where_headers_by_hand_gain(
    make_contest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, useful: bool
):
    backbone, contest = make_contest()
    monkeypatch.setattr(comparison, "gains", lambda *_: useful)
    tensors, told = contest.coarse(backbone, draw, silent, tmp_path / "state")
    ours, linear, *others = told["contenders"]
    assert linear["name"] == "linear"
    assert {ours["name"], *(one["name"] for one in others)} == {*BY_HAND, *["random"] * useful}
    assert bool(told["rewards"]) is useful
    best = max([ours, *others], key=lambda one: (one["choice"]["accuracy"], -one["choice"]["loss"]))
    assert best == ours
    plan = HeaderPlan.model_validate(told["plan"])
    if not ours["evaluated"]:
        assert plan == contest.space.by_hand()[ours["name"]]
    assert ours["params"] == parameter_count(plan.shapes())
    assert {name for name in tensors if name.startswith("header.")} == {
        f"header.{name}" for name in plan.shapes()
    }


@pytest.mark.parametrize("change", [{"when": "always"}, {"backbone_learning_rate": 1e-3}], ids=str)
def test_a_search_that_is_asked_for_needs_no_headers_by_hand(make_contest, change):
    backbone, contest = make_contest()
    contest = replace(contest, settings=contest.settings.model_copy(update=change))
    assert contest.tried_by_hand(backbone, draw) == []


def test_the_smallest_header_by_hand_stands_in_for_those_that_do_not_fit(make_contest):
    backbone, contest = make_contest()
    smallest = contest.space.smallest()
    contest = replace(contest, fits=lambda plan: plan == smallest)
    assert [told.name for _, told in contest.tried_by_hand(backbone, draw)] == ["smallest"]
