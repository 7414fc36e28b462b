"""A probe of this machine, with models that are tiny."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from acme_fleet.errors import FleetError
from acme_fleet.stratos.probe import ON_PROCESSOR, probe


def test_a_probe_measures_everything_that_the_predictors_need():
    shapes = ((1, 64, 64, 100), (3, 64, 64, 100), (1, 128, 128, 200), (2, 128, 64, 100))
    small = replace(
        ON_PROCESSOR,
        shapes=shapes,
        sequences=(1,),
        tokens=8,
        decoded=2,
        turns=1,
        matrix=64,
        copied=2**10,
    )
    stages = []
    found = probe(settings=small, progress=lambda *stage: stages.append(stage))
    assert found.accelerator is None
    assert len(found.footprints) == 4
    assert {
        kind: sum(t.kind == kind for t in found.timings)
        for kind in ("training", "prefill", "decoding")
    } == {"training": 4, "prefill": 4, "decoding": 4}
    assert found.memory.start_bytes > 1e7
    assert stages[-1] == ("models", 4, 4)
    # 6 · N · D of the first: 1 layer of 4·64² + 3·64² + 2·64, norm and word table; 1 × 8 tokens.
    parameters = 7 * 64**2 + 2 * 64 + 64 + 100 * 64
    assert found.timings[0].work == 6 * parameters * 8
    assert found.timings[0].parameters == parameters


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_none_is_measured():
    with pytest.raises(FleetError, match="finds no NVIDIA GPU"):
        probe("L4")
