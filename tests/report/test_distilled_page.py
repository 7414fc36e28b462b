"""The page of a distillation."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from acme_fleet.report.distilled_page import write_distilled
from acme_fleet.stratos.run_directory import DistillSummary
from made_up_distillation import summary

_HOSTILE = "<script>alert(1)</script>\u202e"


def _considered(words: list[str], **changed: Any) -> dict[str, Any]:
    one = {
        **{"words": words, "pair": "t → t/1-2", "server": "g6.xlarge", "region": "us-east-1a"},
        **{"billing": "spot", "usd_per_hour": 0.35, "accuracy": 0.5, "latency_s": 0.2},
        **{"training_s": 60.0, "cost_usd": 1.5, "score": 0.9},
    }
    return one | changed


def _planned(**changed: Any) -> DistillSummary:
    plan = {
        **{"impossible": {"t → u": "another vocabulary"}, "candidates": 40, "feasible": 7},
        "excluded": [
            {"limit": "memory of the accelerator", "bound": None, "unit": "", "candidates": 3},
            {"limit": "max_training_usd", "bound": 5.0, "unit": "USD", "candidates": 30},
        ],
        "considered": [
            _considered(["chosen", "cost first", "front"]),
            _considered(["latency first", "front"], server="p5", cost_usd=80.0, latency_s=0.01),
            _considered(["random"], server="m7i", cost_usd=0.0, latency_s=9.0),
        ],
        "objectives": ["accuracy", "latency", "training_time", "cost"],
    }
    reply = {"text": _HOSTILE, "right": True}
    example = {
        "question": _HOSTILE,
        "answer": "4",
        "student": reply,
        "start": reply,
        "teacher": reply,
    }
    document = summary(plan=plan).model_dump() | {"examples": [example]} | changed
    return DistillSummary.model_validate(document)


def _words(content: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split())


def test_the_page_answers_and_gives_reasons(tmp_path: Path):
    path = tmp_path / "report.html"
    write_distilled(_planned(min_accuracy=0.9, max_p95_latency_ms=1000.0), path)
    content = path.read_text()
    words = _words(content)
    assert "50.0 % right" in words
    assert "min_accuracy 0.9 is missed: 0.500" in words
    assert "max_p95_latency_ms 1000 is kept" in words
    assert "7 of 40 candidates" in words
    assert "max_training_usd 5 USD 30" in words
    assert "t → u: another vocabulary" in words
    assert "chosen, cost first, front" in words
    assert "latency first, front" in words
    assert "random" in words
    assert content.count("<svg") == 1
    assert "<script" not in content
    assert "\u202e" not in content
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]+"', "", content).replace("http-equiv", "")


def test_a_run_of_an_older_version_has_a_page_without_reasons(tmp_path: Path):
    path = tmp_path / "report.html"
    write_distilled(summary(), path)
    words = _words(path.read_text())
    assert "How good is the student?" in words
    assert "Why this pair and server" not in words


if __name__ == "__main__":
    write_distilled(_planned(min_accuracy=0.9, max_p95_latency_ms=1000.0), Path("report.html"))
