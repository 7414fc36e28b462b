"""The frame of a story: its scales and seeds, finished pieces on disk, the result file.

A story says what one seed measures, how seeds are summed up, and how that is drawn. Everything
that took time is a piece: a JSON file in ``--out`` that is not computed again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from acme_fleet.failures import explain
from acme_fleet.training.precision import training_device
from acme_research.frame.bench import SCALES, Bench, Options
from acme_research.frame.parallel import Stage, make_pieces, of_each_seed, shared_by_seeds
from acme_research.frame.places import RESULTS
from acme_research.frame.probe import Places, probe_over_seeds
from acme_research.frame.record import origin, write_record

Row = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A goal, and the result against it."""

    text: str
    value: float
    met: bool
    tried: str = ""


@dataclass(frozen=True)
class Findings:
    """The result over all seeds.

    Attributes:
        headline: one line for the table of results.
        numbers: means with intervals, for people and for the picture.
        goals: those that this story decides.
    """

    headline: str
    numbers: dict[str, Any]
    goals: Sequence[Goal] = ()


@dataclass(frozen=True)
class Story:
    """One table or figure of the paper.

    Attributes:
        paper: what the paper shows there, with the authors' recovered figures where there are.
        measure: one seed's figures, as JSON has them.
        find: of all seeds' figures, in their order.
        draw: the picture of a finished result.
        summary: what the story compares, in a line.
        probe: the first rival of every run, see :mod:`.probe`, beside the story's accuracies. It
            gives none for runs of before it was measured; a story without it shows no accuracy of
            a model of ours.
        teacher: true if it is of a language model, and ``--checkpoint`` its teacher's folder.
        stages: pieces that ``measure`` reads, where ``--jobs`` processes can make them before;
            the first makes what all seeds share, :func:`.shared_by_seeds`.
    """

    name: str
    summary: str
    paper: str
    measure: Callable[[Bench], Row]
    find: Callable[[list[Row]], Findings]
    draw: Callable[[Figure, dict[str, Any]], None]
    probe: Callable[[Bench], Places | None] | None = None
    stages: Sequence[Stage] = (shared_by_seeds,)
    teacher: bool = False


# --- running a story --------------------------------------------------------------------------


def main(story: Story, arguments: Sequence[str] | None = None) -> None:
    """The command line of a story."""
    options = _options(story, arguments)
    torch.set_num_threads(options.threads)
    try:
        result = run(story, options)
    except Exception as error:  # noqa: BLE001
        raise SystemExit(explain(error)) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is finished", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"{story.name}, {options.scale}: {result['headline']}")


def run(story: Story, options: Options) -> dict[str, Any]:
    """Measure what is not on disk yet, write the result, its picture and the README's line."""
    from acme_research.frame.page import write_page

    training_device(options.device, "--device")
    start = time.perf_counter()
    row = partial(_row, story)
    benches = [Bench(options, seed, story.name) for seed in range(options.seeds)]
    missing = [bench for bench in benches if not bench.has(_row_of(bench))]
    if options.jobs > 1 and missing:
        make_pieces([*story.stages, of_each_seed(row)], missing)
    rows = [row(bench) for bench in benches]
    findings = story.find(rows)
    probes = [_probe(story, bench) for bench in benches] if story.probe else []
    result = {
        "name": story.name,
        "scale": options.scale,
        "summary": story.summary,
        "paper": story.paper,
        "headline": findings.headline,
        "goals": [vars(goal) for goal in findings.goals],
        "numbers": findings.numbers,
        "probe": probe_over_seeds(probes),
        "settings": benches[0].settings(),
        "seeds": rows,
        "seconds of this call": round(time.perf_counter() - start, 1),
        **origin(),
    }
    path = options.results / f"{story.name}-{options.scale}.json"
    write_record(path, result)
    picture(story, result, path.with_suffix(".svg"))
    if options.results == RESULTS:
        write_page()
    return result


def _row(story: Story, bench: Bench) -> Row:
    def work() -> Row:
        row = story.measure(bench)
        _probe(story, bench)
        print(f"{bench.story}, {bench.options.scale}: seed {bench.seed} done", flush=True)
        return row

    return bench.piece(_row_of(bench), work)


def _probe(story: Story, bench: Bench) -> Places | None:
    measure = story.probe
    return measure and bench.piece(f"probes/{bench.story}", lambda: measure(bench))


def _row_of(bench: Bench) -> str:
    return f"stories/{bench.story}"


def picture(story: Story, result: dict[str, Any], path: Path) -> None:
    """Draw a result; the same result gives the same file."""
    with mpl.rc_context({"svg.hashsalt": story.name, "font.size": 9, "axes.axisbelow": True}):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        story.draw(figure, result)
        figure.suptitle(f"{story.name}, {result['scale']}: {story.summary}", fontsize=9)
        figure.savefig(path, metadata={"Date": None})
    # matplotlib ends path data with blanks
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _options(story: Story, arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=story.summary)
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="the folder with the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="pieces")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON and picture")
    parser.add_argument(
        "--checkpoint",
        help="a ViT that is there already, google/vit-base-patch16-224 say: the reference; of "
        "Stratos' stories the folder of the scale's teacher",
    )
    parser.add_argument("--references", type=Path, help="the folder with real checkpoints")
    parser.add_argument("--device", default="cpu", help="cpu or cuda: where models are trained")
    parser.add_argument("--threads", type=int, default=1, help="of each job")
    parser.add_argument("--jobs", type=int, help="processes; as many as there are CPU cores")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.scale == "smoke" and options.data:
        parser.error("--data is for the other scales; smoke makes its own")
    if options.checkpoint and options.results == RESULTS and not story.teacher:
        parser.error("--checkpoint needs --results: the clone's own are of the scales' references")
    if options.jobs is None:
        cores = joblib.cpu_count() if options.device == "cpu" else 1  # a GPU is not shared
        options = replace(options, jobs=max(1, cores // max(1, options.threads)))
    for name in ("seeds", "threads", "jobs"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} is {value}; it must be 1 or more")
    return options
