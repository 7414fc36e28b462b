"""A profile as the YAML file that a fleet refers to by device type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from acme_fleet.cost.energy import Fit
from acme_fleet.cost.power import PowerSource, Unavailable
from acme_fleet.errors import FleetError
from acme_fleet.profiling.fit import Profile


def power_label(power: PowerSource | Unavailable) -> str:
    """Says if joules are measured or estimated, and the source."""
    if isinstance(power, Unavailable):
        return f"none: {power.reason}"
    return f"{'measured' if power.measured else 'estimated'}: {power.name}"


def write_profile(profile: Profile, path: Path) -> None:
    """Write the YAML file.

    Raises:
        FleetError: if it cannot be written.
    """
    try:
        path.write_text(profile_document(profile))
    except OSError as error:
        raise FleetError(f"cannot write {path}: {error.strerror}") from error


def profile_document(profile: Profile) -> str:
    """The profile as YAML. A fleet reads its ``energy``; the rest says where that comes from."""
    fits, spread = profile.fits, profile.spread
    latency = fits.with_depth or fits.latency
    energy = {
        "latency_s": latency.base,
        "latency_per_layer_s": latency.per_layer,
        "latency_per_depth_s": latency.per_depth,
    }
    if fits.power is not None:  # at one number of patches G and p·G^β are one number
        power = {"power_w": fits.power.base, "power_per_layer_w": fits.power.per_layer}
        energy |= power | {"batch_power_w": 0.0}
    energy |= fits.shares
    columns = {
        "width": spread.widths,
        "depth": spread.depths.astype(int),
        "latency_s": spread.latency_s,
        "fitted_s": fits.latency.at(spread.widths, spread.depths),
    }
    if fits.with_depth is not None:
        columns["fitted_with_depth_s"] = fits.with_depth.at(spread.widths, spread.depths)
    if spread.power_w is not None:
        columns["power_w"] = spread.power_w
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    content = {
        "energy": energy,
        "labels": {
            "latency": "measured",
            "memory": f"measured: {profile.memory}",
            "power": power_label(profile.power),
        },
        "model": profile.model,
        "runtime": profile.runtime,
        "machine": profile.machine,
        "tokens": profile.tokens,
        "params": profile.params,
        "start_bytes": profile.start_bytes,
        "batches": [vars(cost) for cost in profile.batches],
        "fits": {name: vars(fit) for name, fit in vars(fits).items() if isinstance(fit, Fit)},
        "spread": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    return yaml.safe_dump(_rounded(content), sort_keys=False, allow_unicode=True)


def _rounded(value: Any) -> Any:
    """Six digits are more than a clock gives."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list():
            return [_rounded(item) for item in value]
    return value
