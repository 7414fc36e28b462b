"""Additions of a user are one entry each: a whole run of a tiny fleet uses what is written here.

Tasks, personalisation rules and families have tests of their own: ``test_tasks``, ``test_rules``
and ``test_families``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.data.raw import Columns, RawSamples
from acme_fleet.data.samples import Samples
from acme_fleet.data.sources.files import read_digits
from acme_fleet.data.sources.registry import SOURCES
from acme_fleet.distillation.importance import OBJECTIVES
from acme_fleet.edge.similarity import SIMILARITIES
from acme_fleet.errors import FleetError, ProtocolError
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages.base import Message
from acme_fleet.messages.edge_device import RoundReport
from acme_fleet.messages.header_plan import OPERATIONS, Block, Genotype, HeaderPlan
from acme_fleet.models.features import Classifier
from acme_fleet.models.header.module import Header
from acme_fleet.models.header.operations import PASS_THROUGH, add_operation
from acme_fleet.models.padding import clear_padding
from acme_fleet.pipeline import customize
from acme_fleet.tasks.base import Task
from tiny_fleet import SHORT


def test_a_new_similarity_is_one_entry(
    tiny: Callable[..., Fleet], prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_alone(samples: Sequence[np.ndarray], temperature: float) -> np.ndarray:
        assert temperature == 0.1
        weights = np.zeros((len(samples), len(samples)))
        weights[:, 0] = 1.0
        return weights

    monkeypatch.setitem(SIMILARITIES, "first", first_alone)
    fleet = tiny(**{"personalization.similarity": "first", "personalization.rounds": 1})
    (prepared / "fleet.yaml").write_text(fleet.to_yaml())
    summary = customize(fleet, prepared, resume=True)
    assert all(cluster.similarity == [[1.0, 0.0], [1.0, 0.0]] for cluster in summary.clusters)


def test_a_new_importance_criterion_is_one_entry(
    tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def confidence(task: Task, generator: torch.Generator) -> Callable[..., Tensor]:
        def of(model: Classifier, batch: Samples) -> Tensor:
            seen.append(len(batch))
            return model(**batch.inputs).logsumexp(dim=1).sum()

        return of

    monkeypatch.setitem(OBJECTIVES, "confidence", confidence)
    fleet = tiny(**SHORT, **{"backbone.importance": "confidence"})
    customize(fleet, tmp_path / "run")
    assert sum(seen) == fleet.backbone.importance_samples


def test_a_new_data_source_is_one_entry(
    tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of tables of numbers, with the label in the first column."""

    def table(data: Data, part: str, columns: Columns) -> RawSamples | None:
        path = data.train if part == "train" else data.test
        if path is None:
            return None
        rows = np.loadtxt(str(path), delimiter=",", dtype=np.uint8)
        images, labels = rows[:, 1:].reshape(-1, 8, 8), rows[:, 0].astype(np.int64)
        sizes = np.full(len(rows), rows[0].nbytes, dtype=np.int64)
        return RawSamples(images, labels, None, sizes, None, f"data.{part}")

    digits = read_digits()
    flat = digits.items.reshape(len(digits.items), -1)
    np.savetxt(tmp_path / "digits.csv", np.column_stack([digits.labels, flat]), "%d", ",")
    monkeypatch.setitem(SOURCES, "table", table)
    partition = {"scheme": "pathological", "classes_per_device": 5}
    data = {"source": "table", "train": str(tmp_path / "digits.csv"), "partition": partition}
    fleet = tiny(data=data, **SHORT)
    summary = customize(fleet, tmp_path / "run")
    assert [device.name for device in summary.devices] == [one.name for one in fleet.devices]
    own, known = load_world(fleet).private, load_world(tiny()).private
    for name, splits in known.items():
        for read, expected in zip(vars(own[name]).values(), vars(splits).values(), strict=True):
            assert read.labels.equal(expected.labels)
            assert read.inputs["pixel_values"].equal(expected.inputs["pixel_values"])


def test_a_new_header_operation_is_one_entry(tiny: Callable[..., Fleet], tmp_path: Path) -> None:
    """A search proposes it, and a header that has it answers, alone and beside others."""
    calls: list[torch.Size] = []

    def negate(x: Tensor, mask: Tensor | None, axes: int) -> Tensor:
        calls.append(x.shape)
        return clear_padding(-x, mask)

    before = list(OPERATIONS)
    try:
        OPERATIONS[:] = ["identity", "conv1", "conv3", "conv5"]  # of headers by hand and for sizes
        add_operation("negate", negate)
        customize(tiny(**{**SHORT, "search.steps": 3}), tmp_path / "run")
        assert calls
        block = Block(inputs=(0, 0), operations=("negate", "negate"))
        genotype = Genotype(blocks=(block,), cells=1, channels=3)
        header = Header(HeaderPlan(genotype=genotype, hidden=4, classes=2, axes=2)).eval()
        maps = {name: torch.randn(5, 4, 2, 2) for name in ("last", "penultimate")}
        inputs = {**maps, "pooled": torch.randn(5, 4)}
        entry = header.layers["cell0-input0-0"](maps["last"])
        branch = header.classifier["block0"](-2 * entry.mean(dim=(2, 3)))
        expected = header.classifier["pooled"](inputs["pooled"]) + branch
        torch.testing.assert_close(header(**inputs), expected)
    finally:
        OPERATIONS[:] = before
        PASS_THROUGH.pop("negate", None)
    with pytest.raises(ValidationError, match="there is no operation 'negate'; known: conv1, "):
        Block(inputs=(0, 0), operations=("negate", "negate"))


@pytest.mark.parametrize(
    ("setting", "name", "known"),
    [
        ("personalization.similarity", "cosine", "debiased, literal, none"),
        ("personalization.mix", "average", "both, importance, weights"),
        ("backbone.importance", "taylor", "auto, features, labels"),
        (
            "data.source",
            "csv",
            "arrays, digits, huggingface, images, language, moved_digits, parquet, text",
        ),
    ],
)
def test_names_of_nothing_are_refused_before_any_work(
    tiny: Callable[..., Fleet], tmp_path: Path, setting: str, name: str, known: str
) -> None:
    fleet = tiny(**{"data.train": "here"} if setting == "data.source" else {}, **{setting: name})
    with pytest.raises(FleetError, match=f"{setting}: there is no '{name}'; choose one of {known}"):
        customize(fleet, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_new_message_field_needs_its_type_alone_to_travel() -> None:
    """Sender and receiver are the other two places; the wire needs no change."""

    class WarmReport(RoundReport):
        temperature_c: float

    try:
        report = WarmReport(round=1, neurons=3, changed=True, temperature_c=41.5)
        assert decode(encode(report), [WarmReport]) == report
        with pytest.raises(ProtocolError):
            decode(encode(report), [RoundReport])
    finally:
        del Message.registry["WarmReport"]
