"""A role in a process of its own that stays: torch and the backbone are loaded once.

Flower starts a process for every message; that one has no torch and asks here, over a local socket.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from acme_fleet.errors import AcmeError, RunError
from acme_fleet.links.base import Handler
from acme_fleet.links.news import MOST_EVENTS, MOST_STAGES
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages.base import Message
from acme_fleet.network.flower.channel import listen
from acme_fleet.network.flower.frames import Header, receive_frame, send_frame
from acme_fleet.outside import reason
from acme_fleet.runs.events import FigureEvent
from acme_fleet.runs.journal import Journal, Observer, read_events
from acme_fleet.runs.sealed import if_sound, read_sealed, write_sealed

_LONGEST_WAIT_S = 300.0


class Question(BaseModel):
    """The header of a question, beside the payload."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    run: str = Field(pattern=r"^[0-9a-f]{32}$")
    fleet: str = Field(pattern=r"^[0-9a-f]{64}$")
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    wait: float = Field(ge=0, le=_LONGEST_WAIT_S)
    told: int = Field(ge=0)


class Board(Observer):
    """The stages that are under way; an observer of the journal."""

    def __init__(self) -> None:
        self._stages: dict[tuple[str, str], dict[str, Any]] = {}
        self._lock = threading.Lock()

    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        """See :class:`acme_fleet.runs.journal.Observer`."""
        told = {"actor": actor, "name": name, "done": done, "total": total, "note": note}
        with self._lock:
            self._stages[actor, name] = told

    def latest(self) -> list[dict[str, Any]]:
        """The latest event of each stage; finished ones are reported once."""
        with self._lock:
            stages = list(self._stages.values())
            self._stages = {k: s for k, s in self._stages.items() if s["done"] < s["total"]}
        return stages[-MOST_STAGES:]


@dataclass
class HostedRun:
    """A role's part in one run.

    Attributes:
        handler: the role.
        journal: of the role, and of the link to its peers.
        events: the journal's file.
        board: the journal's observer.
        replies: where answers are kept, so that nothing is computed twice; None for a role that
            asks others, which goes on from its own state.
    """

    handler: Handler
    journal: Journal
    events: Path
    board: Board
    replies: Path | None
    jobs: dict[str, Future[bytes]] = field(default_factory=dict)

    def news(self, told: int) -> dict[str, Any]:
        """The events after the first so many; figures stay here."""
        passed = [e for e in read_events(self.events) if not isinstance(e, FigureEvent)]
        events = passed[told : told + MOST_EVENTS]
        records = [event.record() for event in events]
        return {"told": told + len(events), "events": records, "stages": self.board.latest()}


class RoleHost:
    """Answers questions on a local socket, one at a time; the same question is answered once.

    Args:
        path: of the socket.
        fleet: the fingerprint of the fleet that this host was set up for.
        accepts: the messages that the role answers.
        open_run: makes the role for a run.
    """

    def __init__(
        self,
        path: Path,
        fleet: str,
        accepts: Sequence[type[Message]],
        open_run: Callable[[str], HostedRun],
    ) -> None:
        self._fleet = fleet
        self._accepts = list(accepts)
        self._open_run = open_run
        self._runs: dict[str, HostedRun] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="role")
        self._listener = listen(path)

    def serve(self) -> None:
        """Answer until :meth:`close`."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Stop listening; work that is under way stops at its next event."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for run in self._runs.values():
            run.journal.cancel()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _connection(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            try:
                header, payload = receive_frame(connection)
                answer = self.answer(header, payload)
            except (AcmeError, ValidationError) as error:
                answer = {"error": f"a malformed question was refused: {reason(error)}"}, b""
            send_frame(connection, *answer)

    def answer(self, header: Header, payload: bytes) -> tuple[Header, bytes]:
        """Answer one question, or say how it stands.

        Raises:
            ValidationError: if the header is malformed.
        """
        question = Question.model_validate(header)
        if question.fleet != self._fleet:
            return {"error": "its fleet file or seed differs from that of who asks"}, b""
        with self._lock:
            try:
                job, run = self._job(question, payload)
            except (RunError, OSError) as error:
                return {"error": str(error), "passing": True}, b""
        if job is None:
            return {"unknown": True}, b""
        try:
            answer = job.result(timeout=question.wait)
        except FutureTimeout:
            return {"pending": True, "news": run.news(question.told)}, b""
        except BaseException as error:  # noqa: BLE001  whatever the role raised is its answer
            run.jobs.pop(question.key, None)
            return _told(error), b""
        return {"news": run.news(question.told)}, answer

    def _job(self, question: Question, payload: bytes) -> tuple[Future[bytes] | None, HostedRun]:
        """The work on a question: under way, done earlier, or to be begun; None if unknown."""
        if question.run not in self._runs:
            for other in self._runs.values():
                other.journal.cancel()  # a host works for one run, the latest
            self._runs = {question.run: self._open_run(question.run)}
        run = self._runs[question.run]
        if question.key not in run.jobs and payload:
            if hashlib.sha256(payload).hexdigest() != question.key:
                raise RunError("a message was damaged on its way")
            run.jobs = {question.key: self._worker.submit(self._work, run, question.key, payload)}
        return run.jobs.get(question.key), run

    def _work(self, run: HostedRun, key: str, payload: bytes) -> bytes:
        kept = run.replies / f"{key}.safetensors" if run.replies else None
        if kept is not None and (stored := if_sound(kept, read_sealed)) is not None:
            return stored
        answer = encode(run.handler.handle(decode(payload, self._accepts)))
        if kept is not None:
            write_sealed(kept, answer)
        return answer


def _told(error: BaseException) -> Header:
    """Why there is no answer. Trouble with the disk passes when there is room again."""
    if isinstance(error, OSError | RunError | SafetensorError | KeyboardInterrupt):
        return {"error": f"{error or 'stopped'}", "passing": True}
    if not isinstance(error, AcmeError | ValidationError):
        traceback.print_exception(error)
        return {"error": f"its process failed: {type(error).__name__}: {error}"}
    return {"error": str(error)}
