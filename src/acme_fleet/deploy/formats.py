"""The formats of artifacts. A new one is an entry, and a file for what it does."""

from __future__ import annotations

from acme_fleet.deploy.base import Format
from acme_fleet.deploy.executorch_format import EXECUTORCH
from acme_fleet.deploy.gguf_format import GGUF
from acme_fleet.deploy.onnx_format import ONNX
from acme_fleet.deploy.safetensors_format import SAFETENSORS

FORMATS: dict[str, Format] = {
    format.name: format for format in (ONNX, EXECUTORCH, GGUF, SAFETENSORS)
}
"""By the name that ``--format`` takes."""
