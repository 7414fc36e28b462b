"""Protections of a device's messages: sketches and the Gaussian mechanism.

Noise is drawn from a secret of the device and never from the fleet's seed: whoever can draw the
noise again can take it off. What is protected, and what is not: ``docs/privacy.md``.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, Int8
from scipy.special import ndtri
from torch import Tensor

from acme_fleet.config.personalization import Privacy
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.runs.sealed import read_sealed, write_sealed
from acme_fleet.seeding import generator

_SECRET_BYTES = 32


def device_secret(path: Path) -> bytes:
    """The device's secret; drawn from the operating system the first time, and kept.

    Raises:
        DamagedError: if it is damaged: another one would give the same data other noise, and two
            noises of the same data can be taken off.
    """
    if not path.exists():
        write_sealed(path, secrets.token_bytes(_SECRET_BYTES))
    return read_sealed(path)


def stream(secret: bytes, purpose: str, size: int) -> bytes:
    """Pseudo-random bytes that nobody can tell from noise without the secret (SHAKE-256)."""
    return hashlib.shake_256(len(secret).to_bytes(4) + secret + purpose.encode()).digest(size)


def gaussian_mechanism(
    clean: Float[np.ndarray, "*values"], sensitivity: float, multiplier: float, secret: bytes
) -> Float[np.ndarray, "*values"]:
    """``clean`` plus noise of standard deviation ``multiplier`` times ``sensitivity``.

    The noise depends on the secret, on ``clean`` and on its own size. Who asks again gets the same
    noise, so that repeating tells nothing new; any other vector or size gets independent noise,
    so that no two answers can be combined to take it off.
    """
    deviation = multiplier * sensitivity
    told = np.append(clean, deviation).astype("<f8").tobytes()
    purpose = f"noise/{hashlib.sha256(told).hexdigest()}"
    drawn = np.frombuffer(stream(secret, purpose, 8 * clean.size), dtype="<u8")
    uniform = ((drawn >> 11) + 0.5) / 2.0**53
    return clean + deviation * ndtri(uniform).reshape(clean.shape)


def clipped(
    rows: Float[np.ndarray, "rows values"], norm: float
) -> Float[np.ndarray, "rows values"]:
    """Rows that are longer than ``norm`` are shortened to it."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1.0, norm / np.maximum(lengths, 1e-300))


def projection(hidden: int, dim: int, seed: int) -> Float[np.ndarray, "hidden dim"]:
    """A Gaussian projection that keeps L2 norms on average, the same for all devices of a fleet.

    L1 distances between sketches are then, up to noise, L2 distances between features times
    √(2·dim/π).
    """
    drawn = torch.randn(hidden, dim, generator=generator(seed, "sketch"), dtype=torch.float64)
    return drawn.numpy() / math.sqrt(dim)


def protect_features(
    features: Float[np.ndarray, "samples hidden"], privacy: Privacy, seed: int, secret: bytes
) -> Float[np.ndarray, "samples values"]:
    """Project, clip and add noise, as far as it is asked for.

    The sensitivity is that of one row: two clipped rows are at most twice the clipping norm
    apart. The projection comes first, so that fewer numbers need noise.
    """
    hidden, rows = features.shape[1], features
    if privacy.sketch_dim is not None:
        rows = rows @ projection(hidden, privacy.sketch_dim, seed)
    if privacy.feature_noise is not None:
        norm = privacy.feature_clip * math.sqrt(hidden)
        rows = gaussian_mechanism(clipped(rows, norm), 2 * norm, privacy.feature_noise, secret)
    return rows


@dataclass(frozen=True)
class Quantized:
    """Numbers as they are sent: ``values`` times ``scale``."""

    values: Float16[Tensor, "samples values"] | Int8[Tensor, "samples values"]
    scale: float


def quantize(rows: Float[np.ndarray, "samples values"], bits: int) -> Quantized:
    """Half precision, or with 8 bits whole numbers from −127 to 127."""
    if bits == 16:
        return Quantized(torch.from_numpy(rows).half(), 1.0)
    scale = float(np.abs(rows).max(initial=0.0)) / 127 or 1.0
    return Quantized(torch.from_numpy(np.rint(rows / scale)).to(torch.int8), scale)


def protect_importance(
    importance: ImportanceSet, multiplier: float, secret: bytes
) -> ImportanceSet:
    """A noisy set of sum 1, whatever the device's data.

    The whole set is one vector, brought to L2 norm 1, for its scale means nothing. Two such
    vectors without negative numbers are at most √2 apart, and that is the sensitivity to a change
    of all of the device's data. What noise makes negative becomes zero afterwards.
    """
    whole = importance.flat().double().numpy()
    noisy = gaussian_mechanism(whole / np.linalg.norm(whole), math.sqrt(2), multiplier, secret)
    kept = np.maximum(noisy, 0.0)
    kept = kept / kept.sum() if kept.any() else np.full(len(kept), 1 / len(kept))
    return importance.unflatten(torch.from_numpy(kept).float())
