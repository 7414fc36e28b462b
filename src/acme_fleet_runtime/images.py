"""Images as bytes of one size: decoded, upright, on white, resized and cut, by a model's rule."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.outside import read_regular, reading

_GREY_MODES = {"1", "L", "LA"}
_OF_OTHERS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
_ORIENTATION = 0x0112  # of EXIF


class UnknownFormat(FleetError):
    """An image of a format that is not read, or no image."""


@dataclass(frozen=True)
class ImageForm:
    """The size and channels that a model takes, and how an image gets there.

    Attributes:
        channels: 1 for grey, 3 for colour.
        size: height and width after the resizing; one number is the shorter side, and the other
            keeps the image's proportions. None: images are not resized.
        resample: Pillow's number of the filter.
        result: height and width in the end.
        crops: the centre is cut out, with zeros around it where an image is smaller.
    """

    channels: int
    size: tuple[int, int] | int | None
    resample: int
    result: tuple[int, int]
    crops: bool

    def pixels(self, image: Any) -> np.ndarray:
        """A PIL image as bytes of shape ``(height, width, channels)``.

        Raises:
            FleetError: if it has more than 8 bits a channel, or does not get the model's size.
        """
        planes = self.planes(plain_array(image, self.channels))
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def planes(self, array: np.ndarray) -> np.ndarray:
        """Bytes, or floats from 0 to 1, as planes of shape ``(channels, height, width)``.

        Args:
            array: of shape ``(height, width)`` or ``(height, width, channels)``.

        Raises:
            FleetError: if it does not get the model's size.
        """
        if array.ndim == 2:
            array = array[..., None]
        planes = array.transpose(2, 0, 1)
        shape = self._resized_shape(*planes.shape[1:])
        if planes.shape[1:] != shape:
            planes = np.stack([_resized(plane, shape, self.resample) for plane in planes])
        if self.crops:
            planes = _centre(planes, self.result)
        if planes.shape[1:] != self.result:
            height, width = array.shape[:2]
            raise FleetError(
                f"an image of {height} × {width} pixels does not become {self.result[0]} × "
                f"{self.result[1]} by the model's rule, which does not resize to that"
            )
        return np.broadcast_to(planes, (self.channels, *planes.shape[1:]))

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if height <= width else (longer, self.size)


def _resized(plane: np.ndarray, shape: tuple[int, int], resample: int) -> np.ndarray:
    image = pillow().fromarray(np.ascontiguousarray(plane))
    result = np.asarray(image.resize((shape[1], shape[0]), resample))
    # Filters with negative lobes overshoot; Pillow clips bytes, but not floats.
    return result if result.dtype == np.uint8 else result.clip(0, 1)


def _centre(planes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The centre of planes, with zeros around it where they are smaller than ``shape``."""
    for axis, wanted in enumerate(shape, 1):
        surplus = planes.shape[axis] - wanted
        if surplus >= 0:
            index = np.arange(surplus // 2, surplus // 2 + wanted)
            planes = planes.take(index, axis)
        else:
            before = -(surplus // 2)
            widths = [(0, 0)] * planes.ndim
            widths[axis] = before, -surplus - before
            planes = np.pad(planes, widths)
    return planes


def pillow() -> ModuleType:
    """The module ``PIL.Image``, which comes with an extra.

    Raises:
        FleetError: with the command that installs it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise FleetError(
            'reading images needs Pillow: pip install "acme-fleet[data]", or pillow alone'
        ) from error
    return Image


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it decodes by itself.

    Left out are those that it gives to another program, such as PostScript to Ghostscript, which
    is a language, and those of which it reads a header alone.
    """
    library = pillow()
    library.init()
    return tuple(name for name in library.ID if name not in _OF_OTHERS)


def open_image(
    encoded: bytes | Path,
    name: str,
    most_pixels: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Any:
    """Decode an image file, its first frame, upright as its EXIF orientation says.

    Args:
        encoded: the file's content or its path.
        name: what to call it in an error.
        most_pixels: an image with more is not decoded.
        formats: Pillow's names of those that are read; all that it knows without them.

    Raises:
        UnknownFormat: if it is of none of these.
        FleetError: if it cannot be read or decoded.
    """
    with _decoding(name) as library:
        content = read_regular(encoded) if isinstance(encoded, Path) else encoded
        image = library.open(BytesIO(content), formats=formats or readable_formats())
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise FleetError(
                f"{name} has {image.width} × {image.height} pixels, more than {most_pixels:,}"
            )
        image.load()
        turn = _turn(image)
        return image if turn is None else image.transpose(turn)


def _turn(image: Any) -> Any:
    """The turn that makes an image upright, if any; damage in other EXIF tags does not matter."""
    turns = pillow().Transpose
    try:
        with reading("EXIF"):
            orientation = image.getexif().get(_ORIENTATION)
    except FleetError:
        return None
    by_orientation = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }
    return by_orientation.get(orientation) if isinstance(orientation, int) else None


def image_form(encoded: bytes | Path, name: str) -> tuple[int, int, int]:
    """Height, width and channels (1 or 3) of an image file, by its header only.

    Raises:
        FleetError: if it cannot be read.
    """
    with (
        _decoding(name) as library,
        library.open(
            encoded if isinstance(encoded, Path) else BytesIO(encoded), formats=readable_formats()
        ) as image,
    ):
        return image.height, image.width, 1 if image.mode in _GREY_MODES else 3


@contextmanager
def _decoding(name: str) -> Iterator[ModuleType]:
    """Pillow, its errors as one and its warnings of odd files unsaid."""
    library = pillow()
    try:
        with reading(f"cannot read {name} as an image"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield library
    except FleetError as error:
        if isinstance(error.__cause__, library.UnidentifiedImageError):
            raise UnknownFormat(
                f"cannot read {name} as an image: Pillow knows no such format"
            ) from error
        raise


def plain_array(image: Any, channels: int) -> np.ndarray:
    """A PIL image's bytes, grey or in colour; a transparent image lies on white.

    Raises:
        FleetError: if it has more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):
        # Pillow clips such values to 0..255 when it converts them.
        raise FleetError(
            f"images of more than 8 bits a channel (mode {image.mode}) are not read; save them "
            f"with 8"
        )
    with _decoding(f"an image of mode {image.mode}") as library:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            colours = image.convert("RGBA")
            image = library.alpha_composite(library.new("RGBA", image.size, "white"), colours)
            image = image.convert("RGB")
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))
