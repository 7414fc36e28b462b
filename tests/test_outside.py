"""Exceptions of libraries as one error, and foreign text on one line."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.errors import AcmeError, FleetError, RunError
from acme_fleet.outside import one_line, reading, reason


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOENT, "x"), KeyError("a"), RecursionError(), MemoryError(), Exception()],
)
def test_whatever_a_library_raises_becomes_one_error_with_the_place(error: Exception):
    with pytest.raises(RunError, match=r"^a/b\.json: .+") as told, reading("a/b.json", RunError):
        raise error
    assert told.value.__cause__ is error
    assert "\n" not in str(told.value)


def test_own_errors_and_interrupts_pass():
    for error in (FleetError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as told, reading("x", RunError):
            raise error
        assert told.value is error


def test_file_system_errors_are_in_plain_words():
    assert reason(OSError(errno.ENOSPC, "No space left")) == "the disk is full"
    assert reason(IsADirectoryError(errno.EISDIR, "x")) == "it is a folder"
    assert reason(KeyError("label")) == "KeyError 'label'"


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_one_line_is_short_and_printable(text: str, limit: int):
    shown = one_line(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert one_line(shown, limit) == shown


def test_one_line_keeps_plain_text_and_drops_forged_lines():
    assert one_line("größer als 3 MB") == "größer als 3 MB"
    assert one_line("a\nerror: b\x1b[2J") == "a error: b?[2J"
    assert one_line("x" * 50_000, 10) == "x" * 9 + "…"
    assert issubclass(FleetError, AcmeError)
