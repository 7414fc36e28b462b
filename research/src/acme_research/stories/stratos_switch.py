"""Stratos: the strategy by measured coverage against both by hand, on tasks from known to rare."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from acme_fleet.stratos.request import Request
from acme_research.frame.bench import Bench
from acme_research.frame.classroom import SHARED, Classroom, Program
from acme_research.frame.drawing import line
from acme_research.frame.intervals import mean_interval, paired, text
from acme_research.frame.story import Findings, Goal, Story

BY_HAND = ("alignment", "injection")
_NOISE = 0.02  # of an accuracy: what is still called equal


def measure(bench: Bench) -> dict[str, Any]:
    """Each task's coverage, and its students by the strategies: both, and the one chosen by it."""
    return {name: task(bench, name) for name in bench.content["tasks"]}


def task(bench: Bench, name: str) -> dict[str, Any]:
    """One task; each of its students is a piece."""
    room = Classroom(bench)
    request = request_of(room, name)
    covered = room.covered(request)
    found = {way: student(bench, name, way) for way in BY_HAND}
    if covered.strategy not in found:
        found[covered.strategy] = student(bench, name, covered.strategy)
    marks = room.marked("teacher", {name: request}, room.teacher)
    return {"coverage": vars(covered), "teacher": marks[name], "students": found}


def request_of(room: Classroom, name: str) -> Request:
    """The task's labelled questions."""
    own, counts = room.settings["tasks"][name], room.settings["questions"]
    program = Program(*own["program"])
    test, train = program.take(room.bench.seed, counts["test"], counts["train"])
    return room.task(name, train, test, program, **own.get("task", {}))


def student(bench: Bench, name: str, way: str) -> dict[str, Any]:
    """One student from as many texts as the others, if the teacher is right so often.

    Alignment takes right replies, injection made texts; both together take half of the texts from
    right replies, and the rest is made. Where too few replies are right, alignment leaves the
    student as it began.
    """

    def work() -> dict[str, Any]:
        room = Classroom(bench)
        request = request_of(room, name)
        count = room.settings["questions"]["learned"]
        learning: dict[str, Path | None] = {}
        if way != "injection":
            learning["replies"] = room.kept(request, count if way == "alignment" else count // 2)
        if way != "alignment":
            replies = learning.get("replies")
            right = len(replies.read_text().splitlines()) if replies else 0
            learning["made"] = room.made(request, count - right)
        if not any(learning.values()):
            return {"right": 0, "asked": 0, "share": start_of(bench, name), "learned": 0}
        summary = room.taught(f"{name}-{way}", request, **learning)
        marks = summary.student
        told = {"right": marks.right, "asked": marks.asked, "share": marks.right / marks.asked}
        told |= {"learned": sum(summary.texts.values()), "seconds": summary.training_s}
        return told | {"start": summary.start.right / summary.start.asked}

    return bench.piece(f"students/{name}/{way}", work)


def start_of(bench: Bench, name: str) -> float:
    """Accuracy of a task's student before training, which injection's run has marked."""
    return student(bench, name, "injection")["start"]


def find(rows: list[dict[str, Any]]) -> Findings:
    names = sorted(rows[0], key=lambda name: -sum(_coverage(row[name]) for row in rows))
    numbers: dict[str, Any] = {}
    parts, lost = [], {}
    for name in names:
        own = [row[name] for row in rows]
        shares = {way: [each["students"][way]["share"] for each in own] for way in BY_HAND}
        switch = [each["students"][each["coverage"]["strategy"]]["share"] for each in own]
        better = max(shares.values(), key=sum)
        lost[name] = paired(better, switch)
        numbers[name] = {
            "coverage": mean_interval([_coverage(each) for each in own]),
            "strategies": [each["coverage"]["strategy"] for each in own],
            **{way: mean_interval(values) for way, values in shares.items()},
            "switch": mean_interval(switch),
            "lost against the better": lost[name],
        }
        parts.append(
            f"{name} ({text(numbers[name]['coverage'], 0)} % covered, "
            f"{'/'.join(sorted({*numbers[name]['strategies']}))}): "
            f"{text(numbers[name]['switch'])} against {text(numbers[name]['alignment'])} by "
            f"alignment and {text(numbers[name]['injection'])} by injection"
        )
    worst = max(lost, key=lambda name: lost[name]["mean"])
    goal = Goal(
        f"the strategy by coverage is equal to the better of both by hand on every task, within "
        f"{100 * _NOISE:g} points: at most {text(lost[worst])} are lost, on {worst}",
        lost[worst]["mean"],
        lost[worst]["mean"] <= _NOISE,
    )
    return Findings(f"accuracy of students, %: {'; '.join(parts)}", numbers, [goal])


def _coverage(of_task: dict[str, Any]) -> float:
    return of_task["coverage"]["right"] / of_task["coverage"]["asked"]


def draw(figure: Figure, result: dict[str, Any]) -> None:
    axes, numbers = figure.subplots(), result["numbers"]
    x = [100 * told["coverage"]["mean"] for told in numbers.values()]
    for way in (*BY_HAND, "switch"):
        line(axes, x, [told[way] for told in numbers.values()], way)
    axes.set_xlabel("questions that the teacher answers right, %")
    axes.set_ylabel("accuracy of the student, %")
    axes.legend()


STORY = Story(
    "stratos-switch",
    "alignment, injection or both: chosen by measured coverage, against each by hand",
    "Stratos (AAAI 2026): the strategy follows the task's complexity and the teacher's coverage "
    "(abstract, no figures read)",
    measure,
    find,
    draw,
    stages=SHARED,
    teacher=True,
)
