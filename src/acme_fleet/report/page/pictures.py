"""Matrices as pictures: one pixel for a pair, so that hundreds of rows stay small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """A test sample with the shipped model's answer; an image is a ``data:`` address.

    Of a text that a model goes on with ``label`` is how it went on, and nothing is judged.
    """

    label: str
    answer: str
    image: str | None = None
    text: str | None = None
    judged: bool = True


MOST_PIXELS = 256
"""Of a side; larger matrices are averaged over blocks."""
_SMALL = 40


def matrix_picture(matrix: Sequence[Sequence[float]], color: str) -> str:
    """A PNG as a ``data:`` address: a pixel is the more opaque, the larger its value.

    Values are shown relative to the largest one, by their square root, so that small ones are seen.

    Args:
        matrix: of numbers that are not negative, shape ``(rows, rows)``.
        color: ``#rrggbb``.
    """
    from PIL import Image

    values = shrunk(np.asarray(matrix, dtype=float))
    alpha = np.sqrt(values / (values.max() or 1.0))
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    pixels[..., 3] = np.round(15 * alpha) * 17  # sixteen levels compress well
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return _address(buffer.getvalue(), "png")


def image_address(pixels: np.ndarray, side: int) -> str:
    """An image as a ``data:`` address, made smaller where it is larger than ``side`` pixels.

    Args:
        pixels: uint8 of shape ``(height, width, channels)``, 1 or 3 channels.
        side: of the longer side, at most.
    """
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((side, side))
    kind = "png" if max(image.size) <= _SMALL else "jpeg"  # JPEG blurs what is small
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return _address(buffer.getvalue(), kind)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def shrunk(values: np.ndarray) -> np.ndarray:
    """A square matrix of at most :data:`MOST_PIXELS` rows, each entry the mean over a block."""
    edges = np.linspace(0, len(values), min(len(values), MOST_PIXELS) + 1).round().astype(int)
    sizes = np.diff(edges)
    sums = np.add.reduceat(np.add.reduceat(values, edges[:-1], axis=0), edges[:-1], axis=1)
    return sums / np.outer(sizes, sizes)
