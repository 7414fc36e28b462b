"""Stratos: word problems, of which the teacher knows something: imitate it, or inject answers."""

import json
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from acme_fleet.stratos.request import Request
from acme_research.frame.bench import Bench
from acme_research.frame.classroom import SHARED, Classroom, Program, Row, shares
from acme_research.frame.drawing import bars
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.story import Findings, Goal, Story

STUDENTS = ("alignment", "injection")


def _asdiv(row: dict[str, Any]) -> Row:
    question = f"{row['body']} {row['question']}".strip()
    return {"question": question, "answer": row["answer"].partition(" (")[0]}


def _svamp(row: dict[str, Any]) -> Row:
    question = f"{row['Body'].rstrip('.')}. {row['Question']}"
    return {"question": question, "answer": f"{row['Answer']:g}"}


def _gsm8k(row: dict[str, Any]) -> Row:
    return {"question": row["question"], "answer": row["answer"].rpartition("#### ")[2]}


SETS: dict[str, tuple[str, Callable[[dict[str, Any]], Row]]] = {
    "ASDiv": ("math_eval/asdiv.jsonl", _asdiv),
    "SVAMP": ("math_eval/svamp.jsonl", _svamp),
    "GSM8K": ("gsm8k/test.jsonl", _gsm8k),
}


def measure(bench: Bench) -> dict[str, Any]:
    """The teacher's coverage of made problems, and two students on held-out ones."""
    room = Classroom(bench)
    request, others = tasks(room)
    chosen = room.covered(request)
    found = {name: student(bench, name) for name in STUDENTS}
    marks = room.marked("teacher", others, room.teacher)
    return {"coverage": vars(chosen), "teacher": marks, "students": found}


def tasks(room: Classroom) -> tuple[Request, dict[str, Request]]:
    """The task to learn, whose problems a program makes, and sets to test on."""
    counts, own = room.settings["questions"], room.settings["problems"]
    program = Program(*own["program"])
    test, train = program.take(room.bench.seed, counts["test"], counts["train"])
    request = room.task("made", train, test, program)
    others = {"made": request}
    for name in own.get("sets", ()):
        file, read = SETS[name]
        rows = [json.loads(line) for line in (room.bench.data_folder / file).open()]
        asked = _drawn([read(row) for row in rows], counts["test"], room)
        others[name] = room.task(name, train, asked, program)
    return request, others


def _drawn(rows: list[Row], count: int, room: Classroom) -> list[Row]:
    """So many problems with a number as the answer, one of each text."""
    known = {row["question"]: row for row in rows if any(map(str.isdigit, row["answer"]))}
    once = list(known.values())
    order = room.bench.random("held-out problems").permutation(len(once))[:count]
    return [once[number] for number in sorted(order.tolist())]


def student(bench: Bench, name: str) -> dict[str, Any]:
    """One student, trained on as many problems as the other if the teacher is right so often."""

    def work() -> dict[str, Any]:
        room = Classroom(bench)
        request, others = tasks(room)
        count = room.settings["questions"]["learned"]
        if name == "alignment":
            summary = room.taught(name, request, replies=room.kept(request, count))
        else:
            summary = room.taught(name, request, made=room.made(request, count))
        marks = room.marked(name, others, room.weights(name))
        return {"summary": summary.model_dump(mode="json"), "marks": marks}

    return bench.piece(f"students/{name}", work)


def find(rows: list[dict[str, Any]]) -> Findings:
    sets = list(rows[0]["teacher"])
    names = ("teacher", *STUDENTS)
    table = {of: {n: mean_interval(shares(rows, n, of)) for n in names} for of in sets}
    first, second = (
        [sum(shares(rows, name, of)[i] for of in sets) / len(sets) for i in range(len(rows))]
        for name in STUDENTS
    )
    gain = paired(first, second)
    coverage = mean_interval([row["coverage"]["right"] / row["coverage"]["asked"] for row in rows])
    parts = [
        f"{of}: {', '.join(f'{name} {text(told)}' for name, told in columns.items())}"
        for of, columns in table.items()
    ]
    headline = (
        f"the teacher covers {text(coverage)} % of made problems; held-out problems, %: "
        f"{'; '.join(parts)}; alignment − injection {text(gain)} points"
    )
    goal = Goal(
        f"where the teacher knows something, alignment is better than injection: {text(gain)} "
        f"points",
        gain["mean"],
        gain["mean"] > 0,
    )
    return Findings(
        headline, {**table, "alignment - injection": gain, "coverage": coverage}, [goal]
    )


def draw(figure: Figure, result: dict[str, Any]) -> None:
    sets = [name for name in result["numbers"] if name in ("made", *SETS)]
    (places,) = figure.subplots(1, len(sets), sharey=True, squeeze=False)
    for axes, name in zip(places, sets, strict=True):
        bars(axes, result["numbers"][name], f"{name}, % right")


STORY = Story(
    "stratos-words",
    "word problems of which the teacher knows something: alignment against injection",
    "Stratos (AAAI 2026): GSM8K and AIME for generalisation (abstract, no figures read)",
    measure,
    find,
    draw,
    stages=SHARED,
    teacher=True,
)
