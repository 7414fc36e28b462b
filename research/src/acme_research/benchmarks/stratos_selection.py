"""The plan's weighted pick against rules of one objective and the oracle, on measured values.

Candidates are students of one task, cut from one teacher to eight shapes and trained by ``acme
distill run``, on one machine: this one, one thread, whose speed the plan takes from a probe. The
plan knows a pilot's accuracy, on questions apart from those that decide the score, and predicts
latency, time and cost. All of them are then measured, in CPU seconds, and each choice is scored by
what was measured. The weights are the defaults of a task file. No other server was measured.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from acme_fleet.seeding import threads
from acme_fleet.selection.ideal import deployment_scores, oracle
from acme_fleet.stratos.calibration import write_calibration
from acme_fleet.stratos.checkers import right_replies
from acme_fleet.stratos.distill import distil
from acme_fleet.stratos.plan import OBJECTIVES, make_plan
from acme_fleet.stratos.probe import ON_PROCESSOR, probe
from acme_fleet.stratos.questions import read_questions
from acme_fleet.stratos.replies import read_replies
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.run_directory import DistillDirectory
from acme_fleet.stratos.serving import TorchGenerator, measure_latency
from acme_fleet.stratos.teacher import Writer
from acme_research.frame.bench import Bench, Options
from acme_research.frame.classroom import Classroom, Program
from acme_research.frame.intervals import mean_interval
from acme_research.frame.record import write_benchmark
from acme_research.frame.runs import parser_of

NEAR = 0.95
PILOT, FINAL, MADE = 150, 250, 800
CUTS = {"widths": [0.5, 1.0], "hidden": [0.5, 1.0], "depths": [1, 3]}
_CPU = torch.device("cpu")


def task_of(room: Classroom) -> Request:
    """Sums in words, data made from known answers, and all cuts as students."""
    program = Program("sums.py", "small_in_words")
    test, train = program.take(room.bench.seed, PILOT + FINAL, 50)
    work = {"training_questions": MADE, "epochs": 6, "prompt_tokens": 40, "answer_tokens": 10}
    request = room.task("sums", train, test, program, checker={"kind": "numeric"}, workload=work)
    learning = request.learning.model_copy(update={"made": room.made(request, MADE)})
    return request.model_copy(update={"learning": learning})


def measured(room: Classroom, request: Request, pair: str) -> dict[str, Any]:
    """Train the pair's student, and measure its accuracy, training and answers."""

    def work() -> dict[str, Any]:
        run = DistillDirectory(room.folder / "students" / pair.rpartition("/")[2])
        summary = distil(request, run.path, pair=pair, resume=run.exists(), clock=time.process_time)
        questions = read_questions(request.data).test
        replies, _ = read_replies(request, questions, run.answers("student"))
        right = {id(each) for each in right_replies(request.checker, replies)}
        marks = [id(each) in right for each in replies]
        writer = Writer(run.student, "student", _CPU)
        prompts = [writer.tokens(request.data.prompt_of(each.text)) for each in questions[:40]]
        ours, tokens = TorchGenerator(writer.model), request.workload.answer_tokens
        latency = measure_latency(ours, prompts, writer.end, tokens, time.process_time)
        return {
            "pilot": sum(marks[:PILOT]),
            "accuracy": sum(marks[PILOT:]) / FINAL,
            "latency": latency.p95_s,
            "training_time": summary.training_s,
            "parameters": summary.params,
        }

    return room.bench.piece(f"selection/{pair}", work)


def choices(room: Classroom) -> dict[str, Any]:
    """One seed: each rule's candidate, and its score on measured values."""
    request = task_of(room)
    plan = make_plan(request)
    names = [pair.name for pair in plan.possible]
    table = {name: measured(room, request, name) for name in names}
    content = yaml.safe_load(request.pairs.read_text())
    content["cuts"][0]["pilots"] = {
        name.partition(" → ")[2]: {"correct": told["pilot"], "asked": PILOT}
        for name, told in table.items()
    }
    piloted = request.pairs.with_name("piloted.yaml")
    piloted.write_text(yaml.safe_dump(content, sort_keys=False))
    plan = make_plan(request.model_copy(update={"pairs": piloted}))
    price, hours = plan.offers[0].price.amount, request.workload.serving_hours
    order = [pair.name for pair in plan.possible]
    told = [table[name] for name in order]
    columns = {key: np.array([each[key] for each in told]) for key in told[0]}
    spent = columns["training_time"]
    cost = spent / 3600 * price + hours * price
    found = np.column_stack([1 - columns["accuracy"], columns["latency"], spent, cost])
    weights = [getattr(request.weights, name) for name in OBJECTIVES]
    best, scores = oracle(found, weights)
    assert np.allclose(scores, deployment_scores(found, weights))
    (group,) = plan.groups
    rules = {"the plan": group.chosen.pair, "oracle": best}
    rules |= {name: choice.pair for name, choice in group.rivals.items()}
    return {
        "scores": {name: float(scores[number]) for name, number in rules.items()},
        "chosen": {name: order[number].rpartition("/")[2] for name, number in rules.items()},
        "measured": {name.rpartition("/")[2]: table[name] for name in order},
        "mean score": float(scores.mean()),
    }


def room_of(seed: int, out: Path) -> Classroom:
    """The smoke scale's teacher with all cuts, on this machine as a probe in CPU seconds saw it."""
    bench = Bench(Options("smoke", 1, None, out, out), seed, "stratos-words")
    bench.content.update({"cut": CUTS, "calibrated": True})
    path = out.resolve() / "calibration-cpu.yaml"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        settings = replace(ON_PROCESSOR, clock=time.process_time)
        write_calibration(probe(settings=settings), path)
    return Classroom(bench)


def main() -> None:
    options = parser_of(__doc__, "stratos_selection", seeds=3).parse_args()
    with threads(1):
        rows = [choices(room_of(seed, options.out)) for seed in range(options.seeds)]
    rivals = ("accuracy first", "latency first", "cost first")
    gains = {
        rival: [row["scores"]["the plan"] / row["scores"][rival] - 1 for row in rows]
        for rival in rivals
    }
    near = [row["scores"]["the plan"] / row["scores"]["oracle"] for row in rows]
    for name in rows[0]["scores"]:
        told = [f"{row['scores'][name]:.3f} ({row['chosen'][name]})" for row in rows]
        print(f"{name:<16} {'  '.join(told)}")
    nearest = min(rivals, key=lambda rival: float(np.mean(gains[rival])))
    told = mean_interval(gains[nearest])
    low, high = told["interval"] or (told["mean"], told["mean"])
    write_benchmark(
        "stratos_selection",
        told["mean"],
        (low, high),
        {
            "gain over each rule": gains,
            "share of the oracle's score": near,
            "goal of the share": NEAR,
            "seeds": rows,
        },
        seeds=list(range(options.seeds)),
        instead={"rival": nearest},
    )


if __name__ == "__main__":
    main()
