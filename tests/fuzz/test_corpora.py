"""Every reader takes the committed corpora, and bytes near them, in bounded memory."""

from __future__ import annotations

import os
import random
import resource
import traceback
from pathlib import Path

import pytest
from targets import TARGETS

_CORPORA = Path(__file__).parent / "corpora"
_MORE_BYTES = 2**28
_NEAR = 40  # of each file, drawn at random
_JUNK = (
    b"",
    b"\x00",
    b"\xff" * 64,
    b"[" * 5000,
    b'{"a":' * 5000,
    b"- - - -" * 2000,
    bytes(range(256)),
)


def _near(content: bytes, draw: random.Random) -> bytes:
    """The content with a few bytes changed, cut out, repeated or put elsewhere."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(changed) + 1) for _ in range(2))
        match draw.randrange(4):
            case 0 if at < len(changed):
                changed[at] = draw.randrange(256)
            case 1:
                del changed[at : min(end, at + 40)]
            case 2:
                changed[at:at] = changed[at : min(end, at + 40)] * draw.randint(1, 30)
            case _:
                changed[at:at] = draw.randbytes(draw.randint(1, 8))
    return bytes(changed)


def _try_all(name: str) -> str | None:
    draw = random.Random(name)
    files = [path.read_bytes() for path in sorted((_CORPORA / name).iterdir())]
    near = [_near(content, draw) for content in files if content for _ in range(_NEAR)]
    for data in (*files, *_JUNK, *near):
        try:
            TARGETS[name](data)
        except BaseException:  # noqa: BLE001 - whatever it is, it is told with its input
            return f"{data[:300]!r}\n{traceback.format_exc()}"
    return None


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_in_bounded_memory(name: str, tmp_path: Path) -> None:
    """In a child that may map 256 MB more than it has when it begins."""
    corpus = sorted((_CORPORA / name).iterdir())
    assert corpus
    for path in corpus:
        TARGETS[name](path.read_bytes())  # here first: what it imports is no part of the bound
    told = tmp_path / "told"
    child = os.fork()
    if child == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + _MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        found = _try_all(name)
        told.write_text(found or "")
        os._exit(1 if found else 0)
    _, status = os.waitpid(child, 0)
    text = told.read_text() if told.exists() else "it was killed"
    assert os.waitstatus_to_exitcode(status) == 0, text
