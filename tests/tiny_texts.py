"""Short texts of three intents, whose words tell them apart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_fleet import changed

SAID = {
    "light": ["turn", "light", "on", "off", "lamp", "bright"],
    "weather": ["what", "is", "weather", "rain", "sun", "wind"],
    "music": ["sing", "play", "song", "now", "loud", "please"],
}


def said(count: int) -> list[dict[str, str]]:
    """Texts with their intents, the same ones each time."""
    draw, rows = random.Random(0), []
    for number in range(count):
        intent = sorted(SAID)[number % 3]
        text = " ".join(draw.choices(SAID[intent], k=draw.randint(2, 6)))
        rows.append({"text": text, "intent": intent})
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    """JSON Lines of texts."""
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


_SETTINGS: dict[str, Any] = {
    "data": {"source": "text", "label_column": "intent", "max_tokens": 8},
    "reference": {},
    "backbone": {
        "widths": [0.5, 1.0],
        "depths": [1, 2],
        "importance_samples": 64,
        "distillation": {"training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.005}},
    },
    "header": {"blocks": 1, "channels": 6},
    "search": {
        "when": "always",
        "steps": 2,
        "children_per_step": 2,
        "final_samples": 3,
        "rivals": False,
    },
    "personalization": {"rounds": 1, "local": {"epochs": 2, "batch_size": 16}},
}


def text_settings(
    train: Path | str, checkpoint: Path, devices: list[dict[str, Any]], **changes: Any
) -> dict[str, Any]:
    """Settings of a fleet with one cluster, ``home``, whose devices hold texts.

    ``changes`` as for :func:`tiny_fleet.tiny`.
    """
    own = {
        "data.train": str(train),
        "reference.checkpoint": str(checkpoint),
        "clusters": [{"name": "home", "devices": devices}],
    }
    return changed(_SETTINGS, own | changes)
