"""Data from known answers: a program makes them, and each is checked before it is kept.

Answers come first (a solver, or numbers that were drawn), then the question and the reasoning
between them are written: the paper's reverse synthetic data, by a program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line
from acme_fleet.runs.atomic import replacing
from acme_fleet.seeding import derive_seed
from acme_fleet.stratos.checkers import Reply, judge_of
from acme_fleet.stratos.questions import Question, normalised
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.user_process import UserProcess

_TRIES = 20
"""Questions that are made at most, for each that is wanted."""
_KEYS = ("question", "answer", "reply")


@dataclass(frozen=True)
class Made:
    """Data that a program made.

    Attributes:
        rows: question, answer and reply, by the task's keys.
        repeated: made again. held_out: left out because they are among the held-out questions.
    """

    rows: list[dict[str, str]]
    repeated: int
    held_out: int


def make_data(
    request: Request,
    count: int,
    held_out: Sequence[Question],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """Questions from the task's program: none twice, none held out, each reply checked.

    Args:
        request: the task, whose seed decides all. count: questions that are wanted.
        held_out: questions to test on. progress: called with made and all.

    Raises:
        FleetError: if there is no program, it fails, the checker rejects a reply, or the program
            makes too few different questions.
    """
    if (program := request.program) is None:
        raise FleetError("program: is missing; it names the function that makes questions")
    kept = {normalised(question.text) for question in held_out}
    seen: set[str] = set()
    rows, repeated, left_out = list[dict[str, str]](), 0, 0
    of = program.file, program.function, program.seconds
    with (
        UserProcess.started("program", *of) as process,
        judge_of(request.checker) as judge,
    ):
        for number in range(_TRIES * count):
            if len(rows) == count:
                break
            seed = derive_seed(request.seed, "injection", number)
            made, text = _made(process.call([seed], f"with the seed {seed}"), process.name, seed)
            if (same := normalised(made.text)) in kept or same in seen:
                left_out += same in kept
                repeated += same in seen
                continue
            if not judge.accepts(Reply(made, text)):
                raise FleetError(
                    f"{process.name}: the checker rejects its own reply to "
                    f"{one_line(made.text, 60)!r} with the answer {one_line(made.answer, 60)!r}: "
                    f"{one_line(text, 100)!r}"
                )
            seen.add(same)
            values = made.text, made.answer, text
            rows.append(
                dict(
                    zip((request.data.question, request.data.answer, "reply"), values, strict=True)
                )
            )
            progress(len(rows), count)
    if len(rows) < count:
        raise FleetError(
            f"program: {len(rows)} different questions came of {_TRIES * count} tries, {count} are "
            f"wanted: {repeated} came again, {left_out} are held out; ask for fewer"
        )
    return Made(rows, repeated, left_out)


def _made(value: Any, name: str, seed: int) -> tuple[Question, str]:
    """A question and the reply to it, of texts that are not empty."""
    if not isinstance(value, dict) or set(value) != set(_KEYS):
        raise FleetError(
            f"{name}: it must return a dictionary of {', '.join(_KEYS)}, and returned "
            f"{one_line(repr(value), 100)} with the seed {seed}"
        )
    for key, told in value.items():
        known = (str, int, float) if key == "answer" else (str,)
        if not isinstance(told, known) or isinstance(told, bool) or not str(told).strip():
            raise FleetError(
                f"{name}: {key!r} is {one_line(repr(told), 60)} with the seed {seed}, no text"
            )
    place = f"{name}, seed {seed}"
    return Question(value["question"], str(value["answer"]), place), value["reply"]


def write_data(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Write JSON Lines.

    Raises:
        FleetError: if the file exists.
        WriteError: if it cannot be written.
    """
    if path.exists():
        raise FleetError(f"{path} exists already; it was not changed")
    with replacing(path) as file:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        file.write_text("".join(lines), encoding="utf-8")
