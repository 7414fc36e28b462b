"""Teachers, students, ACME's cuts, and the pairs that are possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from acme_fleet.errors import FleetError
from acme_fleet.stratos.cuts import Shape, cut_sizes, model_size
from acme_fleet.stratos.pairs import Pair, PairTable, make_pairs, read_pairs

_SHAPE: dict[str, Any] = {
    **{"family": "llama", "layers": 4, "hidden": 16, "heads": 4, "key_heads": 2, "neurons": 24},
    **{"vocabulary": 50, "context": 64, "tied": True},
}
_MODEL: dict[str, Any] = {
    **{"weights": "nowhere/big", "licence": "mit", "tokenizer": "words", "shape": _SHAPE}
}
_TEACHER: dict[str, Any] = {"name": "big", "may_teach": True, **_MODEL}
_STUDENT: dict[str, Any] = {"name": "small", **_MODEL}


def table(**changes: Any) -> PairTable:
    return PairTable.model_validate({"teachers": [_TEACHER], "students": [_STUDENT]} | changes)


def pairs(of: PairTable, **changes: Any) -> list[Pair]:
    return make_pairs(of, **({"precision": "float32", "tokens": 10} | changes))


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_models_size_is_that_of_transformers_file(tmp_path: Path, tied: bool):
    shape = Shape.model_validate(_SHAPE | {"tied": tied})
    config = shape.config()
    assert isinstance(config, LlamaConfig)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    size = model_size(shape, "big")
    assert size.parameters == count
    assert size.products == (count if tied else count - 50 * 16)
    ((_, cut, served),) = cut_sizes(shape, "big", [(1.0, 1.0, 4)], "float32")
    assert cut == size
    assert served == (tmp_path / "model.safetensors").stat().st_size


def test_a_cuts_size_is_exact(tmp_path: Path):
    shape = Shape.model_validate(_SHAPE)
    ((variant, size, served),) = cut_sizes(shape, "big", [(0.5, 0.5, 2)], "float16")
    # Of each of two layers: 1 key head of 2 with 2 queries of 4 numbers, 12 neurons, 8 channels.
    attention, mlp, norms = 2 * 8 * 8 + 2 * 4 * 8, 3 * 12 * 8, 2 * 8
    assert size.parameters == 2 * (attention + mlp + norms) + 50 * 8 + 8
    assert (size.layers, size.hidden, size.keys, size.neurons) == (2, 8, 4, 12)
    assert 2 * size.parameters < served < 2 * size.parameters + 3000
    assert variant.name == "0.5-2-h0.5-float16"


def test_parameters_that_the_shape_does_not_have_are_refused():
    shape = Shape.model_validate(_SHAPE | {"parameters": 12345})
    with pytest.raises(FleetError, match=r"big: shape\.parameters: 12,345 are not the"):
        model_size(shape, "big")


def test_one_vocabulary_learns_logits_and_others_answers():
    other = _STUDENT | {"name": "odd", "tokenizer": "letters"}
    found = pairs(table(students=[_STUDENT, other]))
    assert [(pair.student.name, pair.by) for pair in found] == [
        ("odd", "answers"),
        ("small", "logits"),
    ]
    found = pairs(table(students=[_STUDENT, other]), distillation="logits")
    assert found[0].excluded == "logits need one vocabulary: words is not letters"
    assert found[1].excluded is None
    assert {pair.by for pair in pairs(table(), distillation="answers")} == {"answers"}
    with pytest.raises(FleetError, match=r"no pair .* is possible: big → odd: logits need one"):
        pairs(table(students=[other]), distillation="logits")


def test_a_licence_rules_pairs_out():
    with pytest.raises(FleetError, match="the licence mit of big forbids distillation"):
        pairs(table(teachers=[_TEACHER | {"may_teach": False}]))
    closed = _STUDENT | {"name": "closed", "licence": "other"}
    found = pairs(table(students=[_STUDENT, closed]), licences=["mit"])
    assert found[0].excluded == "the licence other of closed is not among licences"
    assert found[1].excluded is None


def test_a_context_must_hold_question_and_answer():
    with pytest.raises(FleetError, match="the context of big is 64 tokens, question and answer"):
        pairs(table(), tokens=65)


def test_cuts_are_students_of_their_own_teacher():
    second = _TEACHER | {"name": "other"}
    cuts = [{"teacher": "big", "widths": [1.0, 0.5], "depths": [2]}]
    found = pairs(table(teachers=[_TEACHER, second], students=[], cuts=cuts))
    assert [pair.name for pair in found] == ["big → big/0.5-2", "big → big/1-2"]
    assert {pair.by for pair in found} == {"logits"}
    cuts[0]["pilots"] = {"big/0.5-2": {"correct": 3, "asked": 4}}
    pilot = pairs(table(students=[], cuts=cuts))[0].student.pilot
    assert pilot is not None
    assert (pilot.correct, pilot.asked) == (3, 4)
    cuts[0]["pilots"] = {"big/0.7-2": {"correct": 3, "asked": 4}}
    with pytest.raises(FleetError, match=r"there is no cut big/0\.7-2; there are big/1-2"):
        pairs(table(cuts=cuts))
    whole = pairs(table(students=[], cuts=[{"teacher": "big", "depths": [2]}]))[0].student
    few = pairs(table(students=[], cuts=[{"teacher": "big", "depths": [2], "vocabulary": 20}]))
    assert (few[0].student.name, few[0].by) == ("big/1-2-v20", "answers")
    rows = whole.size.vocabulary - 20
    assert whole.size.parameters - few[0].student.size.parameters == rows * whole.size.hidden
    assert whole.served_bytes > few[0].student.served_bytes
    with pytest.raises(FleetError, match="depths: big has 4 layers, not 9"):
        pairs(table(cuts=[{"teacher": "big", "depths": [9]}]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"students": [_STUDENT, _STUDENT]}, "small stands twice"),
        ({"students": []}, "there is no student"),
        ({"cuts": [{"teacher": "nobody", "depths": [1]}]}, "there is no teacher nobody"),
        (
            {"students": [_STUDENT | {"shape": _SHAPE | {"vocabulary": 51}}]},
            "tokenizer words, and vocabularies of 50 and 51",
        ),
        (
            {"students": [_STUDENT | {"shape": _SHAPE | {"key_heads": 3}}]},
            "no multiple of key_heads",
        ),
        (
            {"students": [_STUDENT | {"pilot": {"correct": 5, "asked": 4}}]},
            "correct 5 is more than asked 4",
        ),
        ({"students": [_STUDENT | {"licens": "mit"}]}, "did you mean licence"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, changes: dict[str, Any], words: str):
    path = tmp_path / "pairs.yaml"
    path.write_text(json.dumps({"teachers": [_TEACHER], "students": [_STUDENT]} | changes))
    with pytest.raises(FleetError, match=words):
        read_pairs(path)
