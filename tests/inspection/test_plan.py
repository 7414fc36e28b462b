"""The plan's bounds hold for every header that a search could find."""

from __future__ import annotations

import pytest
import torch

from acme_fleet.cli import EXAMPLE
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.size import parameter_count
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.edge.search_space import every_genotype
from acme_fleet.inspection.plan import Holding, examine
from acme_fleet.messages.header_plan import HeaderPlan
from tiny_fleet import tiny


def _fleet(mix: str, blocks: int, cells: int) -> Fleet:
    content = Fleet.from_yaml(EXAMPLE).model_dump()
    content["header"] = {"blocks": blocks, "cells": cells, "channels": 3}
    content["personalization"] |= {"mix": mix, "classifier": "everyone"}
    return Fleet.parse(content)


@pytest.mark.parametrize(("blocks", "cells"), [(1, 1), (1, 2), (1, 3), (2, 1)])
def test_no_round_uploads_more_than_the_plan_says(blocks: int, cells: int):
    plans = [
        HeaderPlan(genotype=genotype, hidden=64, classes=10, axes=2)
        for number, genotype in enumerate(every_genotype(blocks, cells, 3))
        if blocks == 1 or number % 97 == 0
    ]
    most = max(4 * plan.neurons for plan in plans)
    with_header = max(4 * (plan.neurons + parameter_count(plan.shapes())) for plan in plans)
    importance = examine(_fleet("importance", blocks, cells)).round_bytes
    both = examine(_fleet("both", blocks, cells)).round_bytes
    assert most <= importance <= 3 * most
    assert with_header <= both <= 1.5 * with_header


def test_the_plan_counts_samples_and_classes_of_each_device():
    fleet = tiny(**{"data.partition": {"scheme": "pathological", "classes_per_device": 2}})
    holdings = examine(fleet).holdings
    private = load_world(fleet).private
    assert list(holdings) == [device.name for device in fleet.devices]
    for name, holding in holdings.items():
        splits = private[name]
        counts = (holding.train, holding.validation, holding.test)
        assert counts == (len(splits.train), len(splits.validation), len(splits.test))
        assert holding.classes == tuple(
            str(label) for label in splits.train.labels.unique().tolist()
        )
        assert len(holding.classes) == 2
        assert holding.untested == ()


def test_classes_without_a_test_sample_are_named():
    def some(*labels: int) -> Samples:
        return Samples({}, torch.tensor(labels), torch.ones(len(labels)).long())

    splits = Splits(some(2, 0, 2), some(1), some(2, 1))
    names = ("ant", "bee", "cow")
    assert Holding.of(splits, names) == Holding(3, 1, 2, ("ant", "cow"), ("ant",))
