"""Fig. 13: a second data set. (a) light-weight models, (b) headers at several depths."""

from typing import Any

from matplotlib.figure import Figure

from acme_research.frame.bench import Bench
from acme_research.frame.parallel import of_each_seed
from acme_research.frame.probe import Places, on_public
from acme_research.frame.story import Findings, Story
from acme_research.stories import contest, fig7b


def measure(bench: Bench) -> dict[str, Any]:
    return {"models": contest.measure(bench), "headers": fig7b.measure(bench)}


def find(rows: list[dict[str, Any]]) -> Findings:
    models = contest.find([row["models"] for row in rows])
    headers = fig7b.find([row["headers"] for row in rows])
    return Findings(
        f"(a) {models.headline}; (b) {headers.headline}",
        {"models": models.numbers, "headers": headers.numbers},
        [*models.goals, *headers.goals],
    )


def probe(bench: Bench) -> Places | None:
    models = contest.of_limits(bench)
    return models and {**models, **on_public(bench)}


def draw(figure: Figure, result: dict[str, Any]) -> None:
    halves: Any = figure.subfigures(1, 2, width_ratios=[2, 1])
    left, right = halves
    contest.draw(left, {**result, "numbers": result["numbers"]["models"]})
    fig7b.draw(right, {**result, "numbers": result["numbers"]["headers"]})


STORY = Story(
    "fig13",
    "a second data set: models of the same size, and headers",
    "Stanford Cars, under 25 M parameters: +3.94 points over light-weight models; headers +14.43 "
    "points on average over model sizes",
    measure,
    find,
    draw,
    probe,
    (*contest.STAGES, of_each_seed(fig7b.measure)),
)
