"""A commented fleet file, written from what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from acme_fleet.starting.devices import Wanted, storage_bytes
from acme_fleet.starting.look import Found
from acme_fleet.starting.shape import Shape

PUBLIC, EDGE, TESTED = 0.4, 0.15, 0.25
"""Shares: the cloud's, the edge servers' relative to their devices', and of tests."""
_VALIDATION, _MORE_VALIDATION = 0.2, 0.3  # of train samples; the second where samples are few
_VALIDATED = 15  # validation samples of a device that are wanted
LEVELS = 3
"""Ranges of candidates, each with smaller ones than the one before."""
_VISITS = {"reference": 240_000, "checkpoint": 16_000, "distillation": 40_000, "local": 15_000}
"""Samples, counted once an epoch, that a training stage sees about; examples have such numbers."""
_OPERATIONS = 1.2e14
"""Of one training stage, about: that of the small ViT; a larger checkpoint gets fewer epochs."""
_EPOCHS = {"reference": 60, "checkpoint": 4, "distillation": 20, "local": 15}
"""Epochs of a stage at most."""
_VOCABULARY = 10_000
_COMMENT = re.compile(r"(?P<code>.*?[^\s#])\s{2,}# (?P<comment>.*)")
_COLUMN = 29  # of comments, where what they are on is shorter
_PLAIN = re.compile(r"[\w./][\w./-]*", re.ASCII)
_NUMBERED = re.compile(r"-\d+$", re.ASCII)
_OWN_SIDE = 64  # pixels at most, where the run trains a small ViT from nothing
_FEW_OF_A_CLASS = 10  # samples on a device; from there on rows by class are not shown to gain


@dataclass(frozen=True)
class Reference:
    """The model to begin with: a checkpoint, or none where the run trains a ViT.

    Attributes:
        checkpoint: its folder, or its name on the hub.
        shape: of the model, with a sample of these data.
        image_size: to which images are brought; none: the checkpoint's, or their own.
    """

    checkpoint: str | Path | None
    shape: Shape
    image_size: int | None = None


def own_vit(found: Found) -> Reference:
    """A small ViT for these images, which the run trains: 64 patches, 6 layers."""
    side = 8 * min(max(1, round(found.side / 8)), _OWN_SIDE // 8)
    patch = side // 8
    shape = Shape(6, 128, 512, 65, channels=found.channels, side=side, patch=patch)
    return Reference(None, shape, side)


def written(
    found: Found, reference: Reference, devices: Sequence[Wanted], name: str, level: int = 0
) -> str:
    """The fleet file, with its comments.

    Args:
        found: the data.
        reference: the model to begin with.
        devices: who gets a model.
        name: of the fleet.
        level: the range of candidates, below :data:`LEVELS`.
    """
    validation = _validation(found, devices)
    public = _public(found, validation)
    lines = [
        "# Written by `acme init` from what it found; change what you like. docs/settings.md has",
        "# every setting, `acme check` shows the plan, `acme run` customises the fleet.",
        *(f"# {line}" for line in found.told),
        "",
        f"name: {name}",
        *(["task: generation"] if found.template == "assistant" else []),
        "seed: 0",
        "threads: 1                  # of each operation; by rounding, they decide the numbers too",
        "",
        *_data(found, reference, validation),
        "",
        *_reference(found, reference, public),
        "",
        *_backbone(found, reference, devices, public, level),
        "",
        *_training(found, devices, validation),
        "",
        *_clusters(reference.shape, devices),
    ]
    return "\n".join(map(_aligned, lines)) + "\n"


def _aligned(line: str) -> str:
    """A line with its comment, if it has one, in the same column as the others'."""
    match = _COMMENT.fullmatch(line)
    if match is None or '"' in line:
        return line
    code = f"{match['code']} "
    return f"{code:<{_COLUMN - 1}} # {match['comment']}"


def _data(found: Found, reference: Reference, validation: float) -> list[str]:
    settings = dict(found.settings)
    partition = settings.pop("partition", None)
    lines = ["data:", *(f"  {key}: {_yaml(value)}" for key, value in settings.items())]
    if reference.image_size is not None:
        told = f"pixels: whole patches of {reference.shape.patch}, about your images' size"
        lines.append(f"  image_size: {reference.image_size}   # {told}")
    if "test" not in settings:
        lines.append(f"  test_share: {TESTED}           # held out for tests: there is no test set")
    lines += [
        f"  public: {PUBLIC}                # the cloud's share, on no device; or a path",
        f"  edge_share: {EDGE}           # the edge servers' own, relative to their devices'",
    ]
    if validation != _VALIDATION:
        lines.append(f"  validation: {validation}            # of the train samples: yours are few")
    if partition:
        told = f"{{scheme: natural, column: {_yaml(partition['column'])}}}"
        lines.append(f"  partition: {told}   # a device for each value")
    else:
        lines += [
            "  partition: {scheme: iid}   # plays devices with your data, until a device names",
            "                             # its own; others: pathological, dirichlet, natural",
        ]
    return lines


def _reference(found: Found, reference: Reference, public: int) -> list[str]:
    if reference.checkpoint is None:
        shape = reference.shape
        epochs = _epochs("reference", public, shape)
        flips = ["  crop_padding: 4            # random crops and mirror images while it trains"]
        flips += ["  flip: true"]
        return [
            "reference:                   # a small ViT that the run trains; better is",
            "  # checkpoint: facebook/dinov2-small    # a pre-trained model",
            f"  model: {{hidden_size: {shape.hidden}, layers: {shape.layers}, heads: 4, "
            f"neurons: {shape.neurons}, patch_size: {shape.patch}}}",
            f"  training: {{epochs: {epochs}, batch_size: 32, learning_rate: 0.001}}",
            *(flips if found.channels == 3 else []),
        ]
    epochs, batch = _epochs("checkpoint", public, reference.shape), _batch(public)
    rate = {"vision": "0.00005", "text": "0.0001", "assistant": "0.0001"}[found.template]
    return [
        "reference:",
        f"  checkpoint: {_yaml(reference.checkpoint)}",
        f"  training: {{epochs: {epochs}, batch_size: {batch}, learning_rate: {rate}}}   "
        f"# kept only where it wins on validation data",
    ]


def _backbone(
    found: Found, reference: Reference, devices: Sequence[Wanted], public: int, level: int
) -> list[str]:
    shape = reference.shape
    epochs = _epochs("distillation", public, shape)
    own = reference.checkpoint is None
    shares = (0.5, 0.75, 1.0) if level < LEVELS - 1 else (0.25, 0.5, 1.0)
    depths = sorted({max(1, round(shape.layers * share)) for share in shares})
    widths = "[0.25, 0.5, 0.75, 1.0]" if own else ("[0.5, 1.0]", *["[0.25, 0.5, 1.0]"] * 2)[level]
    hidden = ("", "[0.5, 1.0]", "[0.25, 0.5, 1.0]")[level]
    executed = [set(each.of.precisions) for each in devices]
    precisions = [p for p in ("int8", "float32") if any(p in known for known in executed)]
    rate = "0.001" if own else "0.0003"
    training = f"epochs: {epochs}, batch_size: {_batch(public)}, learning_rate: {rate}"
    lines = [
        "backbone:                    # the candidates that devices get one of",
        f"  widths: {widths}         # shares of the heads and neurons of each layer",
        *([f"  hidden: {hidden}         # shares of the hidden size"] * (level > 0)),
        f"  depths: {depths}           # layers",
        f"  precisions: [{', '.join(precisions)}]   # of weights as they ship; also int4, float16",
    ]
    if shape.vocabulary > _VOCABULARY:
        lines.append(
            f"  vocabulary: {_VOCABULARY}          # of {shape.vocabulary:,} tokens, those of your "
            f"texts first; many bytes less"
        )
    # The head on a decoder is one over all words: logits are what it learns from.
    logits = ["    logits_loss: soft_cross_entropy"] if found.template == "assistant" else []
    return [
        *lines,
        "  distillation:",
        f"    training: {{{training}}}",
        f"    recovery: {{{training}}}   # of the chosen one",
        *logits,
        "selection:",
        "  performance_window: 0.1    # loss that may be given up for energy and size: with 0.02",
        "                             # devices that store more get larger backbones",
    ]


def _training(found: Found, devices: Sequence[Wanted], validation: float) -> list[str]:
    each = max(1, round((1 - validation) * _of_a_device(found, devices)))
    batch = 16 if each < 500 else 32
    return [
        "header: {blocks: 2, cells: 1, channels: 24}",
        "search: {steps: 30, children_per_step: 4, rivals: false, fine_tuning: "
        f"{{epochs: {_epochs('local', each)}, batch_size: {batch}, learning_rate: 0.002}}}}",
        *_personalization(found, each, batch),
    ]


def _personalization(found: Found, each: int, batch: int) -> list[str]:
    """Two rounds; with few samples of a class on a device, what wins there: rows by class."""
    told = f"   # about {each:,} samples of a device to train on"
    if found.template != "assistant" and each < _FEW_OF_A_CLASS * len(found.classes):
        return [
            "personalization:             # few samples of a class on each: peers' weights help",
            "  rounds: 7                  # and cost bytes; docs/personalisation.md compares",
            "  mix: both",
            "  classifier: holders        # rows by class, from the devices that hold it",
            f"  local: {{epochs: 5, batch_size: 32, learning_rate: 0.004}}{told}",
        ]
    return [
        "personalization:",
        "  rounds: 2",
        f"  local: {{epochs: {_epochs('local', each)}, batch_size: {batch}, learning_rate: 0.002}}"
        f"{told}",
    ]


def _clusters(shape: Shape, devices: Sequence[Wanted]) -> list[str]:
    lines = [
        "clusters:                    # an edge server each, with its devices",
        "  # storage: for the model. energy: watts and seconds of Eq. 1-2, for this reference;",
        "  # `acme profile` measures a board, docs/costs.md has sources. A device with data of its",
        "  # own names them: data: path/to/folder-or-file",
    ]
    for each in sorted(devices, key=lambda each: -storage_bytes(each.of)):
        energy = ", ".join(f"{key}: {_number(own)}" for key, own in each.of.energy(shape).items())
        rest = (
            f"storage: {each.of.storage}, precisions: [{', '.join(each.of.precisions)}], "
            f"energy: {{{energy}}}{'' if each.of.runs_artifacts else ', runs_artifacts: false'}"
        )
        lines += [
            f"  - name: {_yaml(_site(each, devices))}",
            f"    # {each.of.title} ({each.of.basis})",
            "    devices:",
            *(f"      - {{name: {_yaml(name)}, {rest}}}" for name in each.names),
        ]
    return lines


def _site(own: Wanted, devices: Sequence[Wanted]) -> str:
    """The name of a cluster: what its devices were named, without their numbers, or their type."""
    stems = {each.kind: {_NUMBERED.sub("", name) for name in each.names} for each in devices}
    (first, *others) = stems[own.kind]
    shared = others or first == own.of.device or sum(first in s for s in stems.values()) > 1
    return f"{own.kind if shared else first}-site"


def _validation(found: Found, devices: Sequence[Wanted]) -> float:
    """The share of train samples to validate on: more of few samples."""
    enough = _VALIDATION * _of_a_device(found, devices) >= _VALIDATED
    return _VALIDATION if enough else _MORE_VALIDATION


def _of_a_device(found: Found, devices: Sequence[Wanted]) -> float:
    """Samples of a device, about: those to train and to validate on."""
    count = sum(len(each.names) for each in devices)
    return (1 - PUBLIC) * _untested(found) / count / (1 + EDGE)


def _public(found: Found, validation: float) -> int:
    """Public samples that the cloud trains on, about."""
    return max(1, round(PUBLIC * _untested(found) * (1 - validation)))


def _untested(found: Found) -> float:
    """Samples that are not for tests."""
    return found.samples * (1.0 if "test" in found.settings else 1 - TESTED)


def _epochs(stage: str, samples: int, shape: Shape | None = None) -> int:
    """Epochs of a stage on so many samples; ``shape`` is the model's that passes them each time."""
    visits: float = _VISITS[stage]
    if shape is not None:  # a backward pass takes twice the operations of the forward one
        visits = min(visits, _OPERATIONS / (3 * shape.layers * shape.layer_flops))
    return min(max(1, round(visits / max(1, samples))), _EPOCHS[stage])


def _batch(public: int) -> int:
    return 16 if public < 2000 else 32


def _number(value: float) -> str:
    """A number that YAML reads as one: 1e-05 would be a text."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if value else "0"


def _yaml(value: Any) -> str:
    """A value on one line, in quotes where YAML would read another one; JSON is YAML."""
    if isinstance(value, list):
        return _yaml(value[0]) if len(value) == 1 else f"[{', '.join(map(_yaml, value))}]"
    text = str(value)
    plain = isinstance(value, int | float) or yaml.safe_load(text) == text
    return text if plain and _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
