"""The loss of a student: answers, and the teacher's logits where it is taught."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from acme_fleet.config.data import ABSENT
from acme_fleet.stratos.imitation import Imitation, Learner
from acme_fleet.stratos.lessons import LEARNED
from acme_fleet.stratos.students import load_model
from tiny_distillation import untrained


def test_the_loss_by_hand():
    torch.manual_seed(0)
    own, theirs = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    taught = torch.tensor([[0, 1, 1], [0, 0, 0]])
    labels = torch.tensor([[ABSENT, 1, 2], [3, 4, ABSENT]])
    found = Imitation(5, 0.5).loss(torch.cat([own, theirs, taught[:, None].float()], 1), labels)
    answers = [own[0, :, 1], own[0, :, 2], own[1, :, 0], own[1, :, 1]]
    learned = F.cross_entropy(torch.stack(answers), torch.tensor([1, 2, 3, 4]))
    imitated = [
        -(theirs[0, :, place].softmax(0) * own[0, :, place].log_softmax(0)).sum()
        for place in (1, 2)
    ]
    assert float(found) == pytest.approx(float(learned + 0.5 * sum(imitated) / 2), rel=1e-5)
    late = torch.cat([own, theirs, taught[:, None].float()], 1)[:, :, 1:]
    labels[1, 0] = ABSENT
    assert float(Imitation(5, 0.5).loss(late[:, :5], labels)) == pytest.approx(
        float(F.cross_entropy(torch.stack(answers)[[0, 1, 3]], torch.tensor([1, 2, 4])))
    )
    labels[1, 0] = 3
    nothing = torch.cat([own, theirs, torch.zeros(2, 1, 3)], 1)
    assert float(Imitation(5, 0.5).loss(nothing, labels)) == pytest.approx(float(learned))


def test_the_teacher_is_asked_where_it_teaches_and_does_not_learn(tmp_path: Path):
    student = load_model(untrained(tmp_path / "student", layers=1))
    lesson = load_model(untrained(tmp_path / "teacher"))
    learner, words = Learner(student, lesson), student.backbone.config.vocab_size
    names = {name.partition(".")[2] for name in learner.state_dict()}
    assert names == set(student.state_dict())
    ids = torch.tensor([[1, 4, 7], [1, 5, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taught = torch.tensor([[0, 1, 1], [0, 0, 0]])
    outputs = learner.train()(**inputs, **{LEARNED: 1 + taught})
    own, theirs, marked = outputs.split([words, words, 1], dim=1)
    torch.testing.assert_close(own, student(**inputs))
    torch.testing.assert_close(theirs[0], lesson(**inputs)[0])
    assert not theirs[1].any()
    assert torch.equal(marked[:, 0], taught.float())
    late = learner(**inputs, **{LEARNED: torch.tensor([[0, 2, 2], [0, 0, 1]])})
    torch.testing.assert_close(late, outputs[:, :, 1:])
    torch.testing.assert_close(Learner(student, None)(**inputs, **{LEARNED: taught}), own[..., 1:])
    outputs.sum().backward()
    assert all(p.grad is None for p in lesson.parameters())
    assert student.backbone.get_parameter("norm.weight").grad is not None
