"""The handwritten digits at random places, sizes and angles, other people's to test on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import affine_transform

from acme_fleet.data.raw import RawSamples
from acme_fleet.data.sources.files import read_digits

FRAME = 12
"""Side of an image in pixels; a digit as it was written has 8."""
_SCALES = 1.2, 1.4
_MOST_DEGREES = 10.0
# The digits stand in the order of the sheets that people filled in, 14 in all (scikit-learn's
# course on cross-validation lists them). Eight end here; the other six have 768 digits.
_FIRST_TEST = 1029
_SEED = 20_261_128


def read_moved_digits(*, test: bool) -> RawSamples:
    """The digits, each enlarged, turned and moved at random, in a frame of 12 × 12 pixels.

    A digit is 1.2 to 1.4 times as large, turned by at most 10 degrees, and anywhere in the frame
    where its square stays inside, but for the corners. A sheet is in one of the parts.
    The data set is the same in every run and on every host.
    """
    raw, generator = read_digits(), np.random.default_rng(_SEED)
    scales = generator.uniform(*_SCALES, len(raw.items))
    angles = np.deg2rad(generator.uniform(-_MOST_DEGREES, _MOST_DEGREES, len(raw.items)))
    places = generator.uniform(-1, 1, (len(raw.items), 2))
    index = np.arange(len(raw.items))
    index = index[_FIRST_TEST:] if test else index[:_FIRST_TEST]
    images = [moved(raw.items[i], float(scales[i]), float(angles[i]), places[i]) for i in index]
    stored = np.full(len(index), FRAME**2, dtype=np.int64)
    part = replace(raw[index], items=np.stack(images), stored_bytes=stored)
    return replace(part, where="moved digits")


def moved(digit: np.ndarray, scale: float, angle: float, place: np.ndarray) -> np.ndarray:
    """A digit in the frame.

    Args:
        digit: uint8 of shape ``(8, 8)``.
        scale: factor of its size.
        angle: clockwise, in radians.
        place: from the top and from the left, -1 to 1: both are at the frame's edge.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    room = max(0.0, (FRAME - len(digit) * scale) / 2)
    centre = (FRAME - 1) / 2 + room * place
    matrix = np.array([[cosine, -sine], [sine, cosine]]) / scale
    offset = (len(digit) - 1) / 2 - matrix @ centre
    frame = affine_transform(digit.astype(float), matrix, offset, (FRAME, FRAME), order=1)  # pyright: ignore[reportArgumentType]
    return np.rint(frame).astype(np.uint8)
