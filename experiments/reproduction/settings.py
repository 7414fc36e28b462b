"""The scales' files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parents[1] / "configs"


def config_of(scale: str, story: str) -> Path:
    """The scale's fleet; a story on other data has its own."""
    own = CONFIGS / f"{story}-{scale}.yaml"
    return own if own.exists() else CONFIGS / f"{scale}.yaml"


def read_config(path: Path) -> dict[str, Any]:
    """A scale's settings; a file may change some of those of another, which it is ``like``."""
    content = yaml.safe_load(path.read_text())
    other = content.pop("like", None)
    return changed(read_config(path.parent / other), content) if other else content


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: changed(base[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | changes | both


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
