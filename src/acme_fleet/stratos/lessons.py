"""Texts that a student learns: the teacher's right replies, data from known answers, replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from acme_fleet.config.data import ABSENT
from acme_fleet.data.language import Item, LanguagePreprocessing, read_language
from acme_fleet.data.raw import Columns
from acme_fleet.data.samples import Samples, stratified_split
from acme_fleet.data.sources.files import require_columns
from acme_fleet.data.text import json_lines, json_object, text_of
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line
from acme_fleet.seeding import derive_seed
from acme_fleet.stratos.checkers import Reply, judge_of
from acme_fleet.stratos.questions import Question, check_leakage, normalised
from acme_fleet.stratos.replies import REPLY
from acme_fleet.stratos.request import Request

LEARNED = "learned"
"""Input that is 1 at tokens whose next one is learned, and 2 where the teacher's logits are too."""
KINDS = ("replies", "made", "replay")
"""Keys of ``learning`` that name texts, in the order of their numbers."""
_REPLIES, _MADE, _REPLAY = range(len(KINDS))


@dataclass(frozen=True)
class Text:
    """A prompt with its answer, or a text to replay; ``kind`` is a number of :data:`KINDS`."""

    kind: int
    item: Item
    prompt: str | None = None


@dataclass(frozen=True)
class Lessons:
    """Tokens to learn from.

    Attributes:
        train: with the input :data:`LEARNED`. taught: true if logits of any text are learned.
        validation: chooses the student. replayed: its replayed part; none without replay.
        counts: texts by kind, validation included.
    """

    train: Samples
    taught: bool
    validation: Samples
    replayed: Samples | None
    counts: dict[str, int]


def read_texts(request: Request, test: Sequence[Question]) -> list[Text]:
    """All texts of ``learning``; each reply is right by the task's checker.

    Args:
        request: the task. test: held-out questions.

    Raises:
        FleetError: if there are none, a line or a reply is wrong, a held-out question is among
            them, or there are too few texts to replay.
    """
    found: list[tuple[int, Reply]] = []
    paths = request.learning.replies, request.learning.made
    for kind, path in enumerate(paths):
        if path is not None:
            found += [
                (kind, _reply(request, line, place))
                for place, line in json_lines(path, f"learning.{KINDS[kind]}")
            ]
    if not found:
        raise FleetError(
            "learning: there is nothing to learn; name `replies`, from `acme distill keep`, or "
            "`made`, from `acme distill inject`"
        )
    check_leakage([reply.question for _, reply in found], test)
    _check_right(request, [reply for _, reply in found])
    prompts = [request.of_student.data.prompt_of(reply.question.text) for _, reply in found]
    texts = [
        Text(kind, {"prompt": prompt, "answer": reply.text}, prompt)
        for (kind, reply), prompt in zip(found, prompts, strict=True)
    ]
    return texts + _replayed(request, len(texts), test)


def check_on_policy(request: Request, *, logits: bool) -> None:
    """Refuse before any work what on-policy learning cannot be done with.

    Raises:
        FleetError: if the pair learns from answers, there are no questions that the teacher
            covers, or it would read another prompt than the student.
    """
    if request.learning.on_policy is None:
        return
    if not logits:
        raise FleetError("learning.on_policy: the pair has no vocabulary in common; leave it out")
    if request.learning.replies is None:
        raise FleetError(
            "learning.on_policy: it asks the questions of learning.replies, which the teacher "
            "covers, and there are none"
        )
    if request.data.student_prompt is not None:
        raise FleetError(
            "learning.on_policy: the teacher reads the student's prompt; leave out "
            "data.student_prompt"
        )


def _reply(request: Request, line: str, place: str) -> Reply:
    row, data = json_object(line, place), request.data
    require_columns([data.question, data.answer, REPLY], list(row), place)
    question = Question(text_of(row, data.question, place), str(row[data.answer]), place)
    return Reply(question, text_of(row, REPLY, place))


def _check_right(request: Request, replies: Sequence[Reply]) -> None:
    with judge_of(request.checker) as judge:
        wrong = [reply for reply in replies if not judge.accepts(reply)]
    if wrong:
        raise FleetError(
            f"learning: the checker rejects {len(wrong)} of {len(replies)} replies, the first in "
            f"{wrong[0].question.place}: {one_line(wrong[0].text, 60)!r}; `acme distill keep` "
            f"leaves such ones out"
        )


def _replayed(request: Request, others: int, test: Sequence[Question]) -> list[Text]:
    """Texts drawn from ``learning.replay`` by the seed."""
    learning = request.learning
    if learning.replay is None:
        return []
    read = read_language([learning.replay], Columns("text", "label"), "learning.replay")
    items: list[Item] = read.items.tolist()
    share = learning.replay_share
    wanted = max(1, round(others * share / (1 - share)))
    if len(items) < wanted:
        raise FleetError(
            f"learning.replay_share: {share:g} beside {others} texts is {wanted} texts, "
            f"{learning.replay} has {len(items)}; lower it, or give more"
        )
    order = np.random.default_rng(derive_seed(request.seed, "replay")).permutation(len(items))
    drawn = [items[number] for number in sorted(order[:wanted].tolist())]
    held_out = {normalised(question.text) for question in test}
    for asked in (request, request.of_student):
        held_out |= {normalised(asked.data.prompt_of(question.text)) for question in test}
    for item in drawn:
        if leaked := [text for text in _asked(item) if normalised(text) in held_out]:
            raise FleetError(
                f"learning.replay: {learning.replay} asks a held-out question: "
                f"{one_line(leaked[0], 60)!r}; remove it"
            )
    return [Text(_REPLAY, item) for item in drawn]


def _asked(item: Item) -> list[str]:
    messages = item.get("messages", [])
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return [item[key] for key in ("prompt", "text") if key in item] + asked


def lessons_of(
    request: Request,
    texts: Sequence[Text],
    preprocessing: LanguagePreprocessing,
    context: int,
    *,
    logits: bool,
) -> Lessons:
    """Texts as tokens, and a part of each kind for validation.

    Args:
        request: the task, whose seed splits. texts: at least two.
        preprocessing: the student's. context: most tokens that teacher and student take.
        logits: mark what the teacher covers, see :func:`_speaks_for`; replayed texts always.

    Raises:
        FleetError: if a text is too long or has a token that the model does not know, or there
            are too few.
    """
    if len(texts) < 2:
        raise FleetError("learning: one text cannot be learned and validated on; give more")
    items = [_written(text, chat=preprocessing.chat_template is not None) for text in texts]
    longest = max(map(preprocessing.length, items))
    if longest > context:
        raise FleetError(
            f"learning: a text has {longest} tokens, the models take {context}; shorten it"
        )
    inputs, labels = preprocessing.model_copy(update={"max_tokens": longest}).learned(items)
    kinds = np.array([text.kind for text in texts])
    samples = Samples(inputs, labels, torch.ones(len(items), dtype=torch.int64))
    random = np.random.default_rng(derive_seed(request.seed, "validation"))
    left, taken = stratified_split(kinds, request.learning.validation, random)
    learned, held = samples[torch.from_numpy(left)], samples[torch.from_numpy(taken)]
    marks = (learned.labels != ABSENT).long()
    if logits:
        known = [_REPLAY] + [_REPLIES] * _speaks_for(request, kinds)
        covered = torch.from_numpy(np.isin(kinds[left], known))[:, None]
        marks *= 1 + covered.long()
    learned = learned.with_inputs({**learned.inputs, LEARNED: marks})
    again = torch.from_numpy(np.flatnonzero(kinds[taken] == _REPLAY))
    counts = {name: int((kinds == number).sum()) for number, name in enumerate(KINDS)}
    taught = bool((marks == 2).any())
    return Lessons(learned, taught, held, held[again] if len(again) else None, counts)


def _speaks_for(request: Request, kinds: Int64[np.ndarray, " texts"]) -> bool:
    """True if logits of the teacher's replies are learned.

    Not where the student reads another prompt, and not beside made data: the teacher is wrong so
    often then that its probabilities, unlike its checked replies, would be learned as well.
    """
    return request.data.student_prompt is None and _MADE not in kinds


def _written(text: Text, *, chat: bool) -> Item:
    """Questions as a user's message where the checkpoint has a chat template, as when asked."""
    if text.prompt is None or not chat:
        return text.item
    messages = [("user", text.prompt), ("assistant", text.item["answer"])]
    return {"messages": [{"role": role, "content": content} for role, content in messages]}
