"""Stratos: a student learns what its teacher lacks, Mahjong's waits, and keeps what is replayed."""

from typing import Any

from matplotlib.figure import Figure

from acme_fleet.stratos.request import Request
from acme_research.frame.bench import Bench
from acme_research.frame.classroom import SHARED, Classroom, Program, shares
from acme_research.frame.drawing import bars
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.story import Findings, Goal, Story

STUDENTS = ("injection and replay", "injection alone", "replay alone")


def measure(bench: Bench) -> dict[str, Any]:
    """Coverage of both tasks, and three students, on held-out questions of both."""
    room = Classroom(bench)
    both = tasks(room)
    return {
        "strategy": {name: vars(room.covered(of)) for name, of in both.items()},
        "students": {name: student(bench, name) for name in STUDENTS},
        "teacher": room.marked("teacher", both, room.teacher),
    }


def tasks(room: Classroom) -> dict[str, Request]:
    """Hands, which the teacher lacks, and the task that it knows."""
    counts, found = room.settings["questions"], {}
    for name in ("hands", "known"):
        own = room.settings[name]
        program = Program(*own["program"])
        test, train = program.take(room.bench.seed, counts["test"], counts["train"])
        found[name] = room.task(name, train, test, program, **own["task"])
    return found


def student(bench: Bench, name: str) -> dict[str, Any]:
    """One student, trained and marked on both tasks; a piece of its own."""

    def work() -> dict[str, Any]:
        room = Classroom(bench)
        both, counts = tasks(room), room.settings["questions"]
        request, learning = both["hands"], {}
        if "injection" in name:
            learning["made"] = room.made(request, counts["made"])
        if "and replay" in name:
            learning["replay"] = room.replay(both["known"], counts["train"])
        if name == "replay alone":  # the known task is all that it learns
            request = both["known"]
            learning["replies"] = room.kept(request, counts["train"])
        summary = room.taught(name, request, **learning)
        asked = {of: each.of_student for of, each in both.items()}
        marks = room.marked(name, asked, room.weights(name))
        return {"summary": summary.model_dump(mode="json"), "marks": marks}

    return bench.piece(f"students/{name}", work)


def find(rows: list[dict[str, Any]]) -> Findings:
    names = ("teacher", *STUDENTS)
    both = ("hands", "known")
    table = {task: {n: mean_interval(shares(rows, n, task)) for n in names} for task in both}
    ours, theirs = shares(rows, STUDENTS[0], "hands"), shares(rows, "teacher", "hands")
    lost, forgot = (
        paired(shares(rows, STUDENTS[2], "known"), shares(rows, name, "known"))
        for name in STUDENTS[:2]
    )
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
