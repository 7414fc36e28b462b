"""A tiny fleet of two edges with two devices each, whose run takes seconds."""

from __future__ import annotations

import copy
from typing import Any

from acme_fleet.config.fleet import Fleet

_TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "compute": "float32",
    "edge_quorum": 1.0,
    "data": {"partition": {"scheme": "pathological", "classes_per_device": 5}},
    "reference": {
        "model": {"hidden_size": 16, "layers": 2, "heads": 2, "neurons": 32},
        "training": {"epochs": 10, "batch_size": 32, "learning_rate": 0.01},
    },
    "backbone": {
        "widths": [0.5, 1.0],
        "depths": [1, 2],
        "precisions": ["float32"],
        "importance_samples": 64,
        "distillation": {"training": {"epochs": 2, "learning_rate": 0.003}},
    },
    "header": {"blocks": 1, "channels": 6},
    "search": {
        "when": "always",
        "steps": 3,
        "children_per_step": 2,
        "weight_updates_per_step": 1,
        "final_samples": 3,
        "fine_tuning": {"epochs": 1},
    },
    "personalization": {
        "rounds": 3,
        "local": {"epochs": 1, "batch_size": 32, "learning_rate": 0.02},
        "prune_share": 0.2,
        "feature_samples": 12,
    },
    "clusters": [
        {
            "name": "north",
            "devices": [
                {"name": "cam-1", "storage": "60 kB"},
                {"name": "cam-2", "storage": "70 kB"},
            ],
        },
        {
            "name": "south",
            "devices": [
                {"name": "badge-1", "storage": "20 kB", "energy": {"power_w": 0.5}},
                {"name": "badge-2", "storage": "30 kB", "energy": {"power_w": 0.6}},
            ],
        },
    ],
}

SHORT: dict[str, Any] = {
    "reference.training.epochs": 1,
    "backbone.distillation.training.epochs": 1,
    "search.rivals": False,
    "search.steps": 1,
    "search.final_samples": 2,
    "personalization.rounds": 1,
}
"""Changes for runs that need not learn anything."""


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of settings with entries changed, which are named by dots: ``search.steps``."""
    content = copy.deepcopy(content)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: Any = content
        for part in parents:
            place = place[part]
        place[last] = value
    return content


def tiny(**changes: Any) -> Fleet:
    """``tiny(**{"personalization.rounds": 2})``: the tiny fleet with entries changed."""
    return Fleet.parse(changed(_TINY, changes))
