"""Costs of a model on a machine, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from acme_fleet.report.terminal.console import table_console
from acme_fleet.report.words import bytes_text, energy_text

if TYPE_CHECKING:
    from acme_fleet.cost.energy import Fit
    from acme_fleet.profiling.fit import Profile


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def print_profile(profile: Profile, power: str) -> None:
    """Costs by batch size, costs over widths and depths, and the constants fitted to them.

    Args:
        profile: what was measured.
        power: whether joules are measured or estimated, and by what.
    """
    console = table_console()
    label = power.partition(":")[0]
    energy = "energy a sample" if label == "none" else f"energy a sample, {label}"
    table = _table(
        f"{profile.model}: {profile.params:,} parameters, {profile.tokens} tokens",
        *("batch", "latency, measured", "a sample", "peak memory, measured", energy),
    )
    for cost in profile.batches:
        joules = "–" if cost.energy_j is None else energy_text(cost.energy_j / cost.batch)
        table.add_row(
            str(cost.batch),
            f"{1e3 * cost.latency_s:.3g} ms",
            f"{1e3 * cost.latency_s / cost.batch:.3g} ms",
            bytes_text(cost.peak_bytes),
            joules,
        )
    console.print(table)
    before = bytes_text(profile.start_bytes)
    console.print(f"memory: {profile.memory}; it was {before} before there was a model")
    console.print(f"energy {power}; {profile.runtime} on {profile.machine}", highlight=False)
    _print_spread(console, profile, label)
    _print_fits(console, profile, label)
    if profile.fits.shares:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in profile.fits.shares.items())
        console.print(f"latency of the layers, as a share of that in float32: {shares}")


def _print_spread(console: Console, profile: Profile, label: str) -> None:
    spread, fits = profile.spread, profile.fits
    power = "power" if spread.power_w is None else f"power, {label}"
    table = _table(
        "widths and depths of this shape, one sample, and how far the fits are off",
        *("width", "depth", "latency, measured", "Eq. 2", "with a depth term", power),
    )

    def off(fit: Fit | None, row: int) -> str:
        if fit is None:
            return "–"
        fitted = float(fit.at(spread.widths[row], spread.depths[row]))
        return f"{fitted / spread.latency_s[row] - 1:+.0%}"

    for row, latency_s in enumerate(spread.latency_s):
        table.add_row(
            f"{spread.widths[row]:g}",
            f"{spread.depths[row]:g}",
            f"{1e3 * latency_s:.3g} ms",
            off(fits.latency, row),
            off(fits.with_depth, row),
            "–" if spread.power_w is None else f"{spread.power_w[row]:.3g} W",
        )
    console.print(table)


def _print_fits(console: Console, profile: Profile, label: str) -> None:
    fits = profile.fits
    forms = [("T = L + ΔL·w·d", fits.latency, 1e3, "ms")]
    if fits.with_depth is not None:
        forms.append(("T = L + ΔL·w·d + ΔD·d", fits.with_depth, 1e3, "ms"))
    if fits.power is not None:
        forms.append(("P = (G + p·G^β) + ΔG·w·d", fits.power, 1, "W"))
    table = _table(
        "least squares" + (f"; T measured, P {label}" if fits.power else "; T measured"),
        *("form", "constants", "R²", "largest error"),
    )
    for form, fit, scale, unit in forms:
        constants = [fit.base, fit.per_layer] + ([fit.per_depth] if "ΔD" in form else [])
        words = ", ".join(f"{scale * constant:.3g}" for constant in constants)
        quality = f"{fit.r_squared:.3f}", f"{fit.max_relative_error:.0%}"
        table.add_row(form, f"{words} {unit}", *quality)
    console.print(table)
