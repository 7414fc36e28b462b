"""Two processes that train together take the steps of one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from acme_fleet.config.training import Training
from acme_fleet.data.samples import Samples
from acme_fleet.errors import FleetError
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.group import ALONE, Group, joined
from acme_fleet.training.loop import fit


class _Learner(nn.Module):
    """Two layers, and one that no sample passes: it has no gradient, and must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


class _Case(NamedTuple):
    learner: _Learner
    train: Samples
    validation: Samples


def _case() -> _Case:
    """Nine samples in batches of four: of the last one a process has nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = _Learner()
    draw = torch.Generator().manual_seed(1)
    x, labels = torch.randn(15, 6, generator=draw), torch.arange(15) % 3
    samples = Samples({"x": x}, labels, torch.ones(15, dtype=torch.int64))
    return _Case(learner, samples[:9], samples[9:])


def _trained(group: Group) -> tuple[dict[str, Tensor], list[str]]:
    learner, train, validation = _case()
    told: list[str] = []
    training = Training(epochs=3, batch_size=4, learning_rate=0.01)
    fit(
        *(CLASSIFICATION, learner, train, training, torch.Generator().manual_seed(2)),
        validation=validation,
        on_epoch=lambda _, note: told.append(note),
        group=group,
    )
    return learner.state_dict(), told


def _take_part(rank: int, size: int, port: int, folder: Path) -> None:
    """A process as torchrun starts it."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with joined("cpu") as group:
        state, notes = _trained(group)
        told = [group.told(rank) for _ in range(2)]
        torch.save({"state": state, "notes": notes, "told": told}, folder / f"{rank}.pt")
        if rank:
            assert group.told() is None  # what the first one says as it leaves


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_take_part, args=(2, port, tmp_path), nprocs=2)
    alone, notes = _trained(ALONE)
    before = _case().learner.state_dict()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["told"] == found[1]["told"] == [0, 0]
    assert found[0]["notes"] == found[1]["notes"] == notes
    for name, value in alone.items():
        mine, other = (each["state"][name] for each in found)
        assert torch.equal(mine, other), name  # or they would drift apart
        torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-5)
        changed = not torch.equal(value, before[name])
        assert changed == (not name.startswith("unused"))


def test_parts_of_a_batch_are_each_computed_once() -> None:
    parts = list("abcde")
    each = [Group(rank, 3).own(parts) for rank in range(3)]
    assert sorted(part for own in each for part in own) == parts
    assert Group(2, 3).own(["a", "b"]) == []


def test_alone_nothing_is_asked_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        pytest.fail("there are no others")

    for name in ("all_reduce", "broadcast_object_list", "init_process_group"):
        monkeypatch.setattr(torch.distributed, name, asked)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined("cpu") as group:
        assert group == ALONE
        assert group.told("this") == "this"
        assert group.total(torch.ones(2)).tolist() == [1, 1]
        group.add_gradients([nn.Parameter(torch.ones(2))])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(FleetError, match="more processes than GPUs, 2 here"),
        joined("cuda"),
    ):
        pass
