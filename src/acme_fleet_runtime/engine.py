"""ONNX Runtime, imported in one place, with its telemetry off."""

from __future__ import annotations

import os
from types import ModuleType

from acme_fleet_runtime.errors import ArtifactError

TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""ONNX Runtime reads this variable once, when it is imported."""


def onnx_runtime() -> ModuleType:
    """The module of ONNX Runtime; it sends nothing, unless the user has set :data:`TELEMETRY`.

    Raises:
        ArtifactError: if it is not installed.
    """
    os.environ.setdefault(TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ArtifactError(
            "running an artifact needs ONNX Runtime: pip install onnxruntime"
        ) from error
    return onnxruntime
