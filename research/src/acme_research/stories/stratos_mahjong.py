"""Stratos: a student learns what its teacher lacks, Mahjong's waits, and keeps what is replayed."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from acme_fleet.stratos.request import Request
from acme_research.frame.bench import Bench
from acme_research.frame.classroom import SHARED, Classroom, Program, told
from acme_research.frame.drawing import bars
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.story import Findings, Goal, Story

STUDENTS = ("injection and replay", "injection alone", "replay alone")


def measure(bench: Bench) -> dict[str, Any]:
    """Coverage of both tasks, and three students, on held-out questions of both."""
    room = Classroom(bench)
    hands, known = tasks(room)
    chosen = {name: room.covered(of) for name, of in (("hands", hands), ("known", known))}
    found = {
        "strategy": {name: vars(each) for name, each in chosen.items()},
        "students": {name: student(bench, name) for name in STUDENTS},
    }
    marks = {name: room.marks("teacher", of, room.teacher) for name, of in tasks_of(hands, known)}
    return found | {"teacher": {name: told(each) for name, each in marks.items()}}


def tasks(room: Classroom) -> tuple[Request, Request]:
    """Hands, which the teacher lacks, and the task that it knows."""
    counts, seed = room.settings["questions"], room.bench.seed
    found = []
    for name in ("hands", "known"):
        own = room.settings[name]
        program = Program(*own["program"])
        test, train = program.take(seed, counts["test"], counts["train"])
        found.append(room.task(name, train, test, program, **own["task"]))
    return found[0], found[1]


def tasks_of(hands: Request, known: Request) -> tuple[tuple[str, Request], tuple[str, Request]]:
    return ("hands", hands), ("known", known)


def student(bench: Bench, name: str) -> dict[str, Any]:
    """One student, trained and marked on both tasks; a piece of its own."""

    def work() -> dict[str, Any]:
        room = Classroom(bench)
        hands, known = tasks(room)
        counts = room.settings["questions"]
        learning: dict[str, Any] = {}
        if "injection" in name:
            learning["made"] = room.made(hands, counts["made"])
        if "and replay" in name:
            learning["replay"] = room.replay(known, counts["train"])
        request = hands
        if name == "replay alone":  # the known task is all that it learns
            request, learning["replies"] = known, room.kept(known, counts["train"])
        own = request.learning.model_copy(update=learning)
        summary = room.student(name, request.model_copy(update={"learning": own}))
        marks = {
            of: room.marks(name, each.of_student, room.weights(name))
            for of, each in tasks_of(hands, known)
        }
        return {
            "summary": summary.model_dump(mode="json"),
            "marks": {of: told(each) for of, each in marks.items()},
        }

    return bench.piece(f"students/{name}", work)


def find(rows: list[dict[str, Any]]) -> Findings:
    def shares(task: str, name: str) -> list[float]:
        places = [
            row["teacher"] if name == "teacher" else row["students"][name]["marks"] for row in rows
        ]
        return [place[task]["share"] for place in places]

    names = ("teacher", *STUDENTS)
    table = {
        task: {name: mean_interval(shares(task, name)) for name in names}
        for task in ("hands", "known")
    }
    ours, theirs = shares("hands", STUDENTS[0]), shares("hands", "teacher")
    lost = paired(shares("known", STUDENTS[2]), shares("known", STUDENTS[0]))
    forgot = paired(shares("known", STUDENTS[2]), shares("known", STUDENTS[1]))
    ours_mean, taught = table["hands"][STUDENTS[0]], table["hands"]["teacher"]
    strategies = sorted({row["strategy"]["hands"]["strategy"] for row in rows})
    headline = (
        f"held-out hands, % exact: teacher {text(taught)}, student {text(ours_mean)}; strategy by "
        f"coverage: {', '.join(strategies)}; the covered task, %: teacher "
        f"{text(table['known']['teacher'])}, student of it alone "
        f"{text(table['known'][STUDENTS[2]])}, with injection and replay "
        f"{text(table['known'][STUDENTS[0]])}, without replay "
        f"{text(table['known'][STUDENTS[1]])}"
    )
    goals = [
        Goal(
            f"on held-out hands the student has at least four times its teacher's accuracy, and at "
            f"least 50 %: {text(ours_mean)} against {text(taught)} %",
            ours_mean["mean"],
            min(ours) >= 0.5 and all(a >= 4 * b for a, b in zip(ours, theirs, strict=True)),
        ),
        Goal(
            f"replay keeps the covered task within 2 points: {text(lost)} points are lost, "
            f"{text(forgot)} without it",
            lost["mean"],
            lost["mean"] <= 0.02,
        ),
    ]
    return Findings(headline, {**table, "lost with replay": lost, "lost without": forgot}, goals)


def draw(figure: Figure, result: dict[str, Any]) -> None:
    titles = {"hands": "held-out hands", "known": "the covered task"}
    for axes, task in zip(figure.subplots(1, 2, sharey=True), titles, strict=True):
        bars(axes, result["numbers"][task], f"{titles[task]}, % right")
        axes.set_ylim(0, 100)


STORY = Story(
    "stratos-mahjong",
    "which tiles complete a Mahjong hand: a student against its own teacher",
    "Stratos (AAAI 2026): on a rare Mahjong task the student has four times the accuracy of its "
    "GPT-4o teacher (abstract; another teacher and task than here)",
    measure,
    find,
    draw,
    stages=SHARED,
    teacher=True,
)
