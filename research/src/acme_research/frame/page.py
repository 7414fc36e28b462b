"""``research/README.md``: written from the result files, so that it cannot drift from them."""

import json
from pathlib import Path
from typing import Any

from acme_research.frame.places import PAGE, RESULTS
from acme_research.stories import NAMES as STORIES

SCALES = ("full", "real", "small", "smoke")
ENOUGH_SEEDS = 3
NO_PROBE = ("fig9", "fig10", "stratos-mahjong", "stratos-words", "stratos-switch")
"""Stories in which no model is read by a logistic regression: they choose models, compare devices'
data, or let models write."""


_HOW = """\
`acme reproduce NAME --scale smoke|small|real|full` runs a story again; without a name
it lists them. `smoke` only shows that the stories run, `real` is on DINOv2-small.
Means over seeds with Student's 95 % interval, full test sets, choices on validation
data; every seed is in the file.
Beside every accuracy stands the probe, the rival that needs ten lines: the reference
untouched and whole (raw inputs without a checkpoint), and a logistic regression on it.
A rival's bytes and accuracy are of the file that it would ship, but those from scratch
have the accuracy of float32 weights where bytes are of int8; the probe's are of int8.
Results of before 27 November 2026 are of headers that did not start as a regression,
and of checkpoints that were fine-tuned always and pooled by their first token."""
_OTHERS = """\
## Other stories

`acme_research.ablations` has `personalisation`, `privacy_attacks` and `demo_gain`, which
[personalisation](../docs/personalisation.md), [privacy](../docs/privacy.md) and
[results](../docs/results.md) discuss.

Programs that measured decisions of long ago are no longer in the tree, their figures are in
`results/`: `git show 662380a:research/src/acme_research/ablations/NAME.py` shows
`backbone_ablations`, `recovery`, `header_search`, `device_matching`, `device_matching_runs`,
`privacy`, `candidate_tables` and what `personalisation_methods` tried, `…/benchmarks/NAME.py`
`header_reference` and `importance_forms`. They run in a clone of it."""


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The results of at least three seeds, in the stories' and the scales' order."""
    paths = [folder / f"{name}-{scale}.json" for name in STORIES for scale in SCALES]
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    return [result for result in found if len(result["seeds"]) >= ENOUGH_SEEDS]


def render(results: list[dict[str, Any]]) -> str:
    """The page."""
    measured = {r["name"] for r in results if r["scale"] != "smoke"}
    missing = [name for name in STORIES if name not in measured]
    goals = [(r, goal) for r in results if r["scale"] != "smoke" for goal in r["goals"]]
    missed = [f"- **{_where(r)}**: {_goal(g)}" for r, g in goals if not g["met"]]
    reached = [f"- {_where(r)}: {_goal(g)}" for r, g in goals if g["met"]]
    absent = f"- Measured at no scale but `smoke`: {', '.join(missing)}." if missing else ""
    parts = [
        "<!-- written by acme_research.frame.page from results/*.json -->",
        "# The paper's evaluation, redone",
        _HOW,
        "## Goals that are missed",
        "\n".join(filter(None, [*missed, absent])) or "None of those that were measured.",
        "## Goals that are reached",
        "\n".join(reached) or "None yet.",
        "## Results",
        *(_section(name, [r for r in results if r["name"] == name]) for name in STORIES),
        _OTHERS,
    ]
    return "\n\n".join(parts) + "\n"


def write_page() -> None:
    """Write the page anew."""
    PAGE.write_text(render(read_results()))


def _where(result: dict[str, Any]) -> str:
    return f"{result['name']}, {result['scale']}"


def _goal(goal: dict[str, Any]) -> str:
    tried = f" Tried: {goal['tried']}" if goal["tried"] and not goal["met"] else ""
    return f"{goal['text']}.{tried}"


def _section(name: str, results: list[dict[str, Any]]) -> str:
    if not results:
        return f"### {name}\n\nNo result of {ENOUGH_SEEDS} seeds yet."
    lines = [f"### {name}: {results[0]['summary']}", "", "| | |", "|---|---|"]
    lines.append(f"| the paper and its authors' code | {results[0]['paper']} |")
    for result in results:
        file = f"results/{name}-{result['scale']}"
        about = f"{len(result['seeds'])} seeds, {result['date'][:10]}, [figures]({file}.json)"
        lines.append(f"| here, {result['scale']} | {result['headline']} ({about}) |")
        if name not in NO_PROBE:
            probe = result.get("probe")
            told = probe["headline"] if probe else "not measured then"
            lines.append(f"| the probe, {result['scale']} | {told} |")
    picture = f"results/{name}-{results[0]['scale']}.svg"
    return "\n".join([*lines, "", f"![{name}]({picture})"])


if __name__ == "__main__":
    write_page()
