"""A teacher's replies: asked once, kept, and marked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.errors import FleetError
from acme_fleet.runs.locks import held_file
from acme_fleet.stratos.cuts import Shape
from acme_fleet.stratos.pairs import Teacher, read_pairs, teacher_named
from acme_fleet.stratos.questions import read_questions
from acme_fleet.stratos.request import Request
from acme_fleet.stratos.strategy import measure_coverage
from acme_fleet.stratos.teacher import LanguageTeacher, ask, drawn_questions

_WORDS = ["<end>", "<unk>", *"abcdefgh", *map(str, range(10)), "?", "plus", "Say"]
_SHAPE = Shape(
    **{"family": "llama", "layers": 1, "hidden": 16, "heads": 2, "key_heads": 1, "neurons": 16},
    **{"vocabulary": len(_WORDS), "context": 64, "tied": True},
)
_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA with random weights, and a tokenizer of whole words."""
    path = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    config = _SHAPE.config()
    LlamaForCausalLM(config).save_pretrained(path)  # pyright: ignore[reportArgumentType]
    numbers = {word: number for number, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


@pytest.fixture
def task(tmp_path: Path, folder: Path) -> Path:
    rows = [{"question": f"a plus {n} ?", "answer": n} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text('{"question": "b ?", "answer": 1}\n')
    model = {
        **{"name": "tiny", "weights": str(folder), "licence": "mit", "tokenizer": "words"},
        "shape": _SHAPE.model_dump(),
    }
    table = {"teachers": [model | {"may_teach": True}], "students": [model]}
    (tmp_path / "pairs.yaml").write_text(json.dumps(table))
    content = {
        "name": "tiny",
        "data": {"train": "train.jsonl", "test": "test.jsonl", "prompt": "Say {question}"},
        "checker": {"kind": "numeric"},
        "workload": {
            **{"prompt_tokens": 8, "answer_tokens": 4, "training_questions": 8, "label_batch": 3}
        },
        "servers": [{"kind": "machines", "path": "machines.yaml"}],
        "pairs": "pairs.yaml",
        "coverage": {"questions": 7},
    }
    path = tmp_path / "task.yaml"
    path.write_text(json.dumps(content))
    return path


def teacher(task: Path) -> Teacher:
    return teacher_named(read_pairs(task.parent / "pairs.yaml"), None)


def test_questions_are_asked_once_and_the_rest_later(task: Path):
    request = Request.from_yaml(task)
    questions = drawn_questions(request, read_questions(request.data).train)
    model, out = LanguageTeacher(teacher(task), _CPU), task.parent / "out" / "replies.jsonl"
    told = []
    found = ask(request, model, questions, out, lambda *stage: told.append(stage))
    assert (found.replies, found.before, found.prompt_tokens) == (7, 0, 5)
    assert 0 <= found.answer_tokens <= 4
    assert told == [(0, 7), (3, 7), (6, 7), (7, 7)]
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:9])  # interrupted in the fourth
    again = ask(request, model, questions, out)
    assert (again.replies, again.before) == (4, 3)
    assert out.read_text() == whole
    assert ask(request, model, questions, out).replies == 0
    out.write_text(whole[:-1])  # interrupted before the end of the last line
    assert ask(request, model, questions, out).replies == 0
    assert out.read_text() == whole


def test_answers_do_not_depend_on_the_batch(task: Path):
    model = LanguageTeacher(teacher(task), _CPU)
    prompts = [model.tokens(text) for text in ("Say a plus 1 ?", "b", "c d e f g h 1 2 3")]
    together = model.write(prompts, 6)
    assert together == [model.write([prompt], 6)[0] for prompt in prompts]


def test_from_replies_to_a_strategy(task: Path):
    out = task.parent / "replies.jsonl"
    told = CliRunner().invoke(app, ["distill", "ask", str(task), "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert f"7 replies, 0 were there: {out}" in told.output
    told = CliRunner().invoke(app, ["distill", "strategy", str(task), str(out)])
    assert told.exit_code == 0, told.output
    assert " of 7 right" in told.output
    with held_file(out):
        told = CliRunner().invoke(app, ["distill", "ask", str(task), "--out", str(out)])
    assert told.exit_code == 2
    assert f"is in use by process {os.getpid()}" in told.stderr


def test_another_shape_than_the_tables_is_refused(task: Path):
    own = teacher(task)
    wrong = own.model_copy(update={"shape": own.shape.model_copy(update={"neurons": 32})})
    with pytest.raises(FleetError, match=r"has intermediate_size 16, the shape in .* 32;"):
        LanguageTeacher(wrong, _CPU)
    wrong = own.model_copy(update={"shape": own.shape.model_copy(update={"family": "qwen2"})})
    with pytest.raises(FleetError, match="is a llama, the table of pairs says qwen2"):
        LanguageTeacher(wrong, _CPU)
    with pytest.raises(FleetError, match="there is no such folder"):
        LanguageTeacher(own.model_copy(update={"weights": "./nowhere"}), _CPU)


def test_too_few_questions_and_wrong_files_are_refused(task: Path):
    request = Request.from_yaml(task)
    train = read_questions(request.data).train
    with pytest.raises(FleetError, match=r"coverage\.questions is 7, data\.train has 6"):
        drawn_questions(request, train[:6])
    out = task.parent / "notes.jsonl"
    out.write_text('{"note": 1}\n')
    with pytest.raises(FleetError, match="line 1 is no reply"):
        ask(request, LanguageTeacher(teacher(task), _CPU), train, out)
    for notes in ("a note", '{"note": 1}', '{"question": "a", "reply": "b"}\nnote'):
        out.write_text(notes)
        with pytest.raises(FleetError, match=r"line [12] is no"):
            ask(request, LanguageTeacher(teacher(task), _CPU), train, out)
        assert out.read_text() == notes  # nothing of it is cut off
    with pytest.raises(FleetError, match="--teacher: there is no 'big'; choose one of tiny"):
        teacher_named(read_pairs(task.parent / "pairs.yaml"), "big")


def test_a_prompt_has_a_place_for_the_question(task: Path):
    task.write_text(task.read_text().replace("Say {question}", "Say it"))
    with pytest.raises(FleetError, match=r"data\.prompt: must contain \{question\} once"):
        Request.from_yaml(task)


def test_a_teacher_that_is_shown_the_answer_explains_it(task: Path):
    request = Request.from_yaml(task)
    train = read_questions(request.data).train
    assert request.data.explanation_of("a {answer}?", "7").startswith(
        "a {answer}?\nThe answer is 7"
    )
    model, out = LanguageTeacher(teacher(task), _CPU), task.parent / "explained.jsonl"
    ask(request, model, train[:2], out, explain=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["explained"] for row in rows] == [True, True]
    with pytest.raises(FleetError, match="with and without the answer shown belong in files of"):
        ask(request, model, train, out)
    with pytest.raises(FleetError, match="the teacher was shown the answers"):
        measure_coverage(request, train, out)


def test_a_part_of_the_questions_is_drawn_by_the_seed(task: Path):
    request = Request.from_yaml(task)
    train = read_questions(request.data).train
    drawn = drawn_questions(request, train, 3)
    assert drawn == drawn_questions(request, train, 3)
    assert len(set(drawn)) == 3
    other = request.model_copy(update={"seed": 1})
    assert drawn != drawn_questions(other, train, 3)
    with pytest.raises(FleetError, match=r"--count is 9, data\.train has 8 questions"):
        drawn_questions(request, train, 9)
