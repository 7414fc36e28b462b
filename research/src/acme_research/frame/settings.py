"""The scales' files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from acme_fleet.config.backbone import ViT
from acme_fleet.config.devices import parse_bytes
from acme_fleet.cost.size import zeta
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import read_checkpoint
from acme_fleet.models.families import dimensions
from acme_fleet.training.pretraining import SHAPES
from acme_research.frame.places import CONFIGS


def config_of(scale: str, story: str) -> Path:
    """The scale's fleet; a story on other data has its own."""
    own = CONFIGS / f"{story}-{scale}.yaml"
    return own if own.exists() else CONFIGS / f"{scale}.yaml"


def read_config(path: Path) -> dict[str, Any]:
    """A scale's settings; a file may change some of those of another, which it is ``like``."""
    content = yaml.safe_load(path.read_text())
    other = content.pop("like", None)
    return changed(read_config(path.parent / other), content) if other else content


def benchmark_config(name: str) -> dict[str, Any]:
    """A benchmark's settings, ``configs/benchmarks/NAME.yaml``."""
    return read_config(CONFIGS / "benchmarks" / f"{name}.yaml")


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with some of them changed, section by section."""
    both = {
        name: changed(base[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | changes | both


def shape_of(model: str | dict[str, Any]) -> ViT:
    """A ViT by its name in ``acme pretrain``, or by its sizes."""
    return SHAPES[model] if isinstance(model, str) else ViT(**model)


def on_checkpoint(
    fleet: dict[str, Any], experiment: dict[str, Any], checkpoint: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A scale's settings with a ViT that is there already as the reference.

    Images get its size, rivals that are pre-trained its patches, and each device the same share of
    the reference's layers, ζ(θ0), as it has of the scale's own.

    Raises:
        FleetError: if it is no image model, cannot be read, or the story's data are texts.
    """
    if fleet["data"]["source"] == "text":
        raise FleetError("--checkpoint: this story's data are texts, the option is for images")
    config = read_checkpoint(checkpoint).config
    if not hasattr(config, "patch_size"):
        raise FleetError(f"--checkpoint: {checkpoint} is a {config.model_type}, not a ViT or DeiT")
    vit = shape_of(experiment.get("pretraining", fleet["reference"])["model"])
    sizes = dimensions(config)
    ratio = _layers(sizes.layers, sizes.hidden, sizes.neurons) / _layers(
        vit.layers, vit.hidden_size, vit.neurons
    )

    def scaled(device: dict[str, Any]) -> dict[str, Any]:
        return {**device, "storage": round(ratio * parse_bytes(device["storage"]))}

    clusters = [
        {**cluster, "devices": [scaled(device) for device in cluster["devices"]]}
        for cluster in fleet["clusters"]
    ]
    images = {"image_size": config.image_size}
    place = str(Path(checkpoint).resolve()) if checkpoint.startswith(".") else checkpoint
    reference = {"checkpoint": place}
    fleet = changed(fleet, {"reference": reference, "data": images, "clusters": clusters})
    if "pretraining" in experiment:  # of the rivals
        rivals = {"patch_size": config.patch_size, "data": images}
        experiment = changed(experiment, {"pretraining": rivals})
    return fleet, experiment


def _layers(layers: int, hidden: int, neurons: int) -> float:
    return zeta(layers, 1.0, 4 * hidden**2, hidden, neurons)


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
