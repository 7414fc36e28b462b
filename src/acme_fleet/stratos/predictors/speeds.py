"""Speeds of servers: measured on such a machine, or assumed from a data sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from acme_fleet.errors import FleetError
from acme_fleet.stratos.calibration import Calibration, Kind, read_calibration
from acme_fleet.stratos.predictors.size import ModelSize
from acme_fleet.stratos.servers.hardware import Accelerator
from acme_fleet.stratos.servers.offer import Offer

KINDS: tuple[Kind, ...] = ("training", "prefill", "decoding")
ASSUMED: dict[Kind, float] = {"training": 0.3, "prefill": 0.4, "decoding": 0.6}
"""Shares of the data sheet's speed, where nothing was measured: a guess of ours."""
ASSUMED_LAYER_S: dict[Kind, float] = {"training": 1e-3, "prefill": 2e-4, "decoding": 2e-4}
"""Seconds that a layer adds to a pass, where nothing was measured: a guess of ours."""
ASSUMED_ERROR = 1.0
"""Error bar of what was not calibrated: from half to twice the value."""
_OPTIMIZER_BYTES = 28.0  # a parameter: AdamW reads four numbers and writes three
_ASSUMED_MEMORY_ERROR = 0.25
_ASSUMED_START_BYTES = 1e9
_GIB = 2**30

PerServer = Float[np.ndarray, " servers"]


@dataclass(frozen=True)
class Speeds:
    """Constants of many servers; one accelerator of each is used.

    Attributes:
        per_second: operations, or bytes for decoding, by the kind of work.
        layer_s, parameter_s: seconds that each layer and parameter add to a pass, likewise.
        error: relative, likewise.
        memory_bytes: of one accelerator, or of the machine.
        memory_factor: measured ÷ predicted bytes of training.
        memory_error: relative.
        start_bytes: in use before there is a model.
        calibrated: true where all of it was measured on such a machine.
    """

    per_second: dict[Kind, PerServer]
    layer_s: dict[Kind, PerServer]
    parameter_s: dict[Kind, PerServer]
    error: dict[Kind, PerServer]
    memory_bytes: PerServer
    memory_factor: PerServer
    memory_error: PerServer
    start_bytes: PerServer
    calibrated: Bool[np.ndarray, " servers"]

    def seconds(self, kind: Kind, work: float, size: ModelSize) -> PerServer:
        """Seconds of one pass: work ÷ speed, and what layers and parameters add.

        Args:
            kind: of the work. work: operations, or bytes for decoding. size: of the model.
        """
        added = size.layers * self.layer_s[kind] + size.parameters * self.parameter_s[kind]
        return work / self.per_second[kind] + added


def read_calibrations(
    offers: Sequence[Offer], general: Sequence[Path]
) -> tuple[dict[str, Calibration], dict[str, Calibration]]:
    """Calibrations by path, of the machines that were measured, and by accelerator.

    Raises:
        FleetError: if a file cannot be read, was measured on another accelerator than its machine
            has, or if two general ones are of one accelerator or one is of a processor.
    """
    own: dict[str, Calibration] = {}
    for offer in offers:
        if (path := offer.calibration) is not None:
            own[path] = own.get(path) or read_calibration(Path(path))
            if own[path].accelerator != offer.accelerator:
                raise FleetError(
                    f"{offer.source}: calibration: {path} was measured on "
                    f"{own[path].accelerator or 'a processor'}, the machine has "
                    f"{offer.accelerator or 'no accelerator'}"
                )
    by_name: dict[str, Calibration] = {}
    for path in general:
        calibration = read_calibration(path)
        if (name := calibration.accelerator) is None:
            raise FleetError(
                f"calibrations: {path} was measured on a processor: it holds for that machine "
                f"alone; name it in the file of machines"
            )
        if name in by_name:
            raise FleetError(f"calibrations: two files are of {name}; name one")
        by_name[name] = calibration
    return own, by_name


def speeds_of(
    offers: Sequence[Offer],
    hardware: Mapping[str, Accelerator],
    own: Mapping[str, Calibration],
    by_name: Mapping[str, Calibration],
) -> Speeds:
    """Constants of each server: of its own calibration, of its accelerator's, or assumed.

    Args:
        offers: the servers; of each something is known.
        hardware: data sheets by name.
        own: calibrations by path. by_name: by accelerator.

    Raises:
        FleetError: if an accelerator's memory is not known.
    """
    rows = []
    for offer in offers:
        name = offer.accelerator or ""
        calibration = own.get(offer.calibration or "") or by_name.get(name)
        sheet = hardware.get(name)
        constants = _measured(calibration) if calibration else _assumed(hardware[name])
        rows.append([_memory_gib(offer, sheet) * _GIB, *constants])
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), -1).T
    per_second, layer_s, parameter_s, error = (
        dict(zip(KINDS, part, strict=True)) for part in columns[1:13].reshape(4, len(KINDS), -1)
    )
    memory_factor, memory_error, start_bytes, calibrated = columns[13:17]
    return Speeds(
        per_second=per_second,
        layer_s=layer_s,
        parameter_s=parameter_s,
        error=error,
        memory_bytes=columns[0],
        memory_factor=memory_factor,
        memory_error=memory_error,
        start_bytes=start_bytes,
        calibrated=calibrated > 0,
    )


def _measured(calibration: Calibration) -> list[float]:
    rates = [getattr(calibration, kind) for kind in KINDS]
    memory = calibration.memory
    return [
        *(rate.per_second for rate in rates),
        *(rate.layer_s for rate in rates),
        *(rate.parameter_s for rate in rates),
        *(rate.error for rate in rates),
        *(memory.factor, memory.error, memory.start_bytes, 1.0),
    ]


def _assumed(sheet: Accelerator) -> list[float]:
    full = {"training": 1e12 * sheet.tflops, "prefill": 1e12 * sheet.tflops}
    full["decoding"] = 1e9 * sheet.gb_per_s
    return [
        *(ASSUMED[kind] * full[kind] for kind in KINDS),
        *(ASSUMED_LAYER_S[kind] for kind in KINDS),
        *(_OPTIMIZER_BYTES / (ASSUMED["decoding"] * full["decoding"]), 0.0, 0.0),
        *(ASSUMED_ERROR for _ in KINDS),
        *(1.0, _ASSUMED_MEMORY_ERROR, _ASSUMED_START_BYTES, 0.0),
    ]


def _memory_gib(offer: Offer, sheet: Accelerator | None) -> float:
    """Memory of one accelerator; of a server without one its main memory."""
    if offer.accelerator is None:
        return offer.memory_gib
    if offer.accelerator_gib is not None:
        return offer.accelerator_gib
    if sheet is None:
        raise FleetError(
            f"{offer.source}: the memory of a {offer.accelerator} is not known; give it in the "
            f"list, or in a table of hardware"
        )
    return sheet.memory_gib
