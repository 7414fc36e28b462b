"""Prompts of a language model from arguments, files and standard input."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.prompts import read_prompts, shown


def test_prompts_keep_the_order_of_their_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "prompts.txt"
    file.write_text("turn the\n\nwhat is\n")
    assert read_prompts([file], ["as it is"], lines=True) == ["turn the", "what is", "as it is"]
    assert read_prompts([Path("what is")], [str(file)], lines=False) == ["what is", str(file)]
    assert read_prompts([Path("x" * 5000)], [], lines=False) == ["x" * 5000]
    for lines, given in ((False, ["a\nb"]), (True, ["a", "b"])):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a\nb\n")))
        assert read_prompts([Path("-")], [], lines=lines) == given


def test_a_file_is_no_prompt(tmp_path: Path):
    file = tmp_path / "digit.png"
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(FleetError, match=r"digit\.png is a file, .* --text takes these words"):
        read_prompts([file], [], lines=False)
    with pytest.raises(FleetError, match="is a folder, and a language model takes prompts"):
        read_prompts([tmp_path], [], lines=False)
    with pytest.raises(FleetError, match=r"digit\.png, line 1 as a text"):
        read_prompts([file], [], lines=True)
    with pytest.raises(FleetError, match=r"cannot read .* no such file"):
        read_prompts([tmp_path / "none.txt"], [], lines=True)
    with pytest.raises(FleetError, match=r"chats\.jsonl holds JSON; --lines takes plain texts"):
        read_prompts([tmp_path / "chats.jsonl"], [], lines=True)
    (tmp_path / "empty").touch()
    with pytest.raises(FleetError, match="there is no prompt"):
        read_prompts([tmp_path / "empty"], [], lines=True)


def test_an_answer_that_is_empty_says_so():
    assert shown("what is", " the weather") == "what is | the weather"
    assert shown("what is ", "") == "what is | (ended at once)"
