"""Power, latency and energy of a candidate on a device (Eq. 1-2), given or fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real
from scipy.optimize import nnls

from acme_fleet.config.devices import Energy, Precision

PerCandidate = Real[np.ndarray, "*#candidates"] | float
"""A number for each candidate, or one for all; any shapes that broadcast."""
PerCandidatePrecision = Precision | Sequence[str]
"""One for all candidates, or one for each."""
_CONSTANTS: tuple[Precision, ...] = ("float16", "int8", "int4")


def power_w(
    constants: Energy, width: PerCandidate, depth: PerCandidate, patches: int
) -> Float[np.ndarray, "*candidates"]:
    """Watts of a candidate on a device: P = (G + ΔG·w·d) + p·G^β (Eq. 2).

    Args:
        constants: the device's, in watts and seconds.
        width: share w of heads and neurons. depth: layers d.
        patches: p, patches or tokens of one sample.
    """
    layers = np.asarray(width) * np.asarray(depth)
    backbone = constants.power_w + constants.power_per_layer_w * layers
    return np.asarray(backbone + patches * constants.batch_power_w)


def latency_s(
    constants: Energy,
    width: PerCandidate,
    depth: PerCandidate,
    precision: PerCandidatePrecision = "float32",
) -> Float[np.ndarray, "*candidates"]:
    """Seconds of an epoch of a candidate on a device: T = L + (ΔL·w·d + ΔD·d)·r.

    Eq. 2, to which ΔD adds what a layer takes whatever its width; it is zero unless it is given.
    r is the device's constant for the precision, 1 at float32. Arguments as for ``power_w``.
    """
    layers = np.asarray(width) * np.asarray(depth)
    seconds = constants.latency_per_layer_s * layers
    seconds = seconds + constants.latency_per_depth_s * np.asarray(depth)
    known = {"float32": 1.0, **{name: getattr(constants, name) for name in _CONSTANTS}}
    shares = [known[name] for name in np.atleast_1d(precision)]
    return np.asarray(constants.latency_s + seconds * (shares if len(shares) > 1 else shares[0]))


def energy_j(
    constants: Energy,
    width: PerCandidate,
    depth: PerCandidate,
    patches: int,
    precision: PerCandidatePrecision = "float32",
) -> Float[np.ndarray, "*candidates"]:
    """Joules of k epochs of a candidate on a device: E = k·P·T (Eq. 1).

    Arguments as for ``power_w`` and ``latency_s``.
    """
    power = power_w(constants, width, depth, patches)
    return np.asarray(constants.epochs * power * latency_s(constants, width, depth, precision))


def worst_energy_j(
    cluster: Sequence[Energy],
    width: PerCandidate,
    depth: PerCandidate,
    patches: int,
    precision: PerCandidatePrecision = "float32",
) -> Float[np.ndarray, "*candidates"]:
    """Joules on the cluster's worst device: E_s = max E_n over n in N_s (Eq. 10).

    Args:
        cluster: constants of its devices, at least one; repeated ones change nothing.
        width, depth, patches, precision: as for ``energy_j``.
    """
    energies = [energy_j(constants, width, depth, patches, precision) for constants in cluster]
    return np.asarray(np.max(energies, axis=0))


@dataclass(frozen=True)
class Fit:
    """Constants of ``base + per_layer·w·d + per_depth·d`` and how far measurements lie from it.

    For a latency: L, ΔL, ΔD in seconds. For a power: G + p·G^β, ΔG in watts. ``per_depth`` is
    zero in Eq. 2. ``max_relative_error`` is the largest distance as a share of the measurement.
    """

    base: float
    per_layer: float
    per_depth: float
    r_squared: float
    max_relative_error: float

    def at(self, widths: PerCandidate, depths: PerCandidate) -> Float[np.ndarray, "*candidates"]:
        """Values of the fitted form."""
        layers = np.asarray(widths) * np.asarray(depths)
        return np.asarray(self.base + self.per_layer * layers + self.per_depth * np.asarray(depths))


def fit_latency(
    widths: Real[np.ndarray, " measurements"],
    depths: Real[np.ndarray, " measurements"],
    seconds: Real[np.ndarray, " measurements"],
) -> Fit:
    """Fit L and ΔL of Eq. 2 to measured latencies, ``base`` and ``per_layer`` of the result.

    Least squares over constants that are not negative, as ``Energy`` wants them.

    Args:
        widths, depths, seconds: of each measurement.

    Raises:
        ValueError: if there are fewer measurements than constants, if they do not tell the
            constants apart (equal w·d, say), or if one is not finite and positive.
    """
    return _fit(widths, depths, seconds, depth_term=False)


def fit_latency_with_depth(
    widths: Real[np.ndarray, " measurements"],
    depths: Real[np.ndarray, " measurements"],
    seconds: Real[np.ndarray, " measurements"],
) -> Fit:
    """Fit T = L + ΔL·w·d + ΔD·d, Eq. 2 with what a layer costs whatever its width (a deviation).

    Narrow layers cost more than Eq. 2 says: norms, softmax and the residual stream keep the
    hidden size. Arguments and errors as for ``fit_latency``.
    """
    return _fit(widths, depths, seconds, depth_term=True)


def fit_power(
    widths: Real[np.ndarray, " measurements"],
    depths: Real[np.ndarray, " measurements"],
    watts: Real[np.ndarray, " measurements"],
) -> Fit:
    """Fit G + p·G^β and ΔG of Eq. 2 to measured power, ``base`` and ``per_layer`` of the result.

    At one number of patches G and p·G^β cannot be told apart. Arguments and errors as for
    ``fit_latency``, with watts.
    """
    return _fit(widths, depths, watts, depth_term=False)


def _fit(
    widths: Real[np.ndarray, " measurements"],
    depths: Real[np.ndarray, " measurements"],
    measured: Real[np.ndarray, " measurements"],
    depth_term: bool,
) -> Fit:
    usable = np.isfinite(widths * depths) & np.isfinite(measured) & (measured > 0)
    if not usable.all():
        wrong = int(np.argmin(usable))
        raise ValueError(
            f"measurement {wrong}, {measured[wrong]} at width {widths[wrong]} and "
            f"depth {depths[wrong]}, is not finite and positive"
        )
    terms = [np.ones(len(widths)), widths * depths] + ([1.0 * depths] if depth_term else [])
    design = np.stack(terms, axis=1)
    if np.linalg.matrix_rank(design) < len(terms):
        raise ValueError(
            f"{len(measured)} measurements do not determine {len(terms)} constants; "
            f"measure at other widths and depths"
        )
    constants, _ = nnls(design, measured)
    error = design @ constants - measured
    spread = np.sum((measured - measured.mean()) ** 2)
    return Fit(
        base=float(constants[0]),
        per_layer=float(constants[1]),
        per_depth=float(constants[2]) if depth_term else 0.0,
        r_squared=float(1 - np.sum(error**2) / spread) if spread > 0 else 1.0,
        max_relative_error=float(np.max(np.abs(error) / measured)),
    )
