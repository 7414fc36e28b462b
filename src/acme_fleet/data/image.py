"""From image files and arrays to what a Vision Transformer takes, by a rule that ships with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from acme_fleet.errors import FleetError
from acme_fleet.outside import read_regular, reading

_GREY_MODES = {"1", "L", "LA"}
_ORIENTATION = 0x0112  # of EXIF

Side = Annotated[int, Field(ge=1, le=65_500)]
"""Pixels along one side; JPEG has no longer one."""
Filter = Literal[0, 1, 2, 3, 4, 5]
"""Pillow's numbers: nearest, Lanczos, bilinear, bicubic, box, Hamming."""
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]


class ImageSize(BaseModel):
    """Height and width in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Side
    width: Side


class ShortestEdge(BaseModel):
    """The shorter side in pixels; the other keeps the image's proportions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shortest_edge: Side


class Normalization(BaseModel):
    """Preparation of a checkpoint's images, as far as its files describe it.

    Attributes:
        mean, std: of each channel, after values were multiplied by ``factor``.
        factor: for values from 0 to 255.
        resize: images are brought to ``size``; otherwise they must come in it.
        size: None where the checkpoint does not say.
        resample: the filter.
        crop: what is cut out of the centre afterwards; where an image is smaller, zeros are added.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: tuple[Mean, ...]
    std: tuple[Factor, ...]
    factor: Factor = 1 / 255
    resize: bool = True
    size: ImageSize | ShortestEdge | None = None
    resample: Filter = 2
    crop: ImageSize | None = None

    @model_validator(mode="after")
    def _channels_agree(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std {len(self.std)}")
        if len(self.mean) not in (1, 3):
            raise ValueError(f"images of {len(self.mean)} channels are not read, only of 1 or 3")
        return self

    @property
    def result(self) -> tuple[int, int] | None:
        """Height and width of a prepared image; None if it depends on the image."""
        if self.crop is not None:
            return self.crop.height, self.crop.width
        if self.size is None:
            return None
        if isinstance(self.size, ShortestEdge):  # then only square images are taken
            return self.size.shortest_edge, self.size.shortest_edge
        return self.size.height, self.size.width


class ImagePreprocessing(BaseModel):
    """From an image to ``pixel_values``; as JSON, a Hugging Face ``preprocessor_config.json``.

    An image is resized, its centre is cut out, its values from 0 to 255 are multiplied by
    ``rescale_factor``, and each channel is normalised. Floating-point images have values from 0 to
    1 that stand for 0 to 255. One mean is a grey image, three are red, green, blue. Transparent
    images lie on white. Rules without rescaling or normalisation are those with a factor of 1, a
    mean of 0 and a deviation of 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_processor_type: Literal["ViTImageProcessor"] = "ViTImageProcessor"
    do_convert_rgb: bool
    do_resize: bool = True
    size: ImageSize | ShortestEdge
    resample: Filter = 2
    do_center_crop: bool = False
    crop_size: ImageSize | None = None
    do_rescale: Literal[True] = True
    rescale_factor: Factor = 1 / 255
    do_normalize: Literal[True] = True
    image_mean: tuple[Mean, ...]
    image_std: tuple[Factor, ...]

    @model_validator(mode="after")
    def _consistent(self) -> ImagePreprocessing:
        rule = self.normalization
        if self.do_convert_rgb != (len(rule.mean) == 3):
            raise ValueError("do_convert_rgb must be true for three channels, and only for them")
        if self.do_center_crop != (self.crop_size is not None):
            raise ValueError("do_center_crop and crop_size belong together")
        if not self.do_resize and isinstance(self.size, ShortestEdge):
            raise ValueError("without do_resize, size needs a height and width")
        return self

    @classmethod
    def centred(cls, height: int, width: int, channels: int) -> ImagePreprocessing:
        """The project's default: values from -1 to 1, by no statistic of anyone's data."""
        size = ImageSize(height=height, width=width)
        return cls.of(Normalization(mean=(0.5,) * channels, std=(0.5,) * channels), size)

    @classmethod
    def of(cls, rule: Normalization, own: ImageSize | None = None) -> ImagePreprocessing:
        """By a checkpoint's rule; ``own`` is the images' size, for a rule without one."""
        size = rule.size or own or rule.crop
        assert size is not None
        return cls(
            do_convert_rgb=len(rule.mean) == 3,
            do_resize=rule.resize,
            size=size,
            resample=rule.resample,
            do_center_crop=rule.crop is not None,
            crop_size=rule.crop,
            rescale_factor=rule.factor,
            image_mean=rule.mean,
            image_std=rule.std,
        )

    @property
    def normalization(self) -> Normalization:
        """The same rule, as of a checkpoint."""
        return Normalization(
            mean=self.image_mean,
            std=self.image_std,
            factor=self.rescale_factor,
            resize=self.do_resize,
            size=self.size,
            resample=self.resample,
            crop=self.crop_size,
        )

    @property
    def channels(self) -> int:
        """Channels of the result: 1 for grey, 3 for colour."""
        return len(self.image_mean)

    @property
    def result(self) -> tuple[int, int]:
        """Height and width of the result."""
        shape = self.crop_size or self.size
        if isinstance(shape, ShortestEdge):
            return shape.shortest_edge, shape.shortest_edge
        return shape.height, shape.width

    def inputs(self, images: Iterable[Any]) -> dict[str, Tensor]:
        """A model's inputs by name: ``pixel_values``, see there."""
        return {"pixel_values": self.pixel_values(images)}

    def read(self, paths: Iterable[Path]) -> list[Any]:
        """Read image files.

        Raises:
            FleetError: naming the file that is missing or no image.
        """
        return [open_image(path, str(path)) for path in paths]

    def pixel_values(self, images: Iterable[Any]) -> Tensor:
        """Preprocess images.

        Args:
            images: PIL images, or arrays of shape ``(height, width)`` or ``(height, width,
                channels)`` with integers from 0 to 255 or floats from 0 to 1. An array of images
                counts as one image after the other.

        Returns:
            float32, shape ``(images, channels, height, width)``.

        Raises:
            FleetError: if an image has values, channels or a form that cannot be meant.
        """
        planes = [self._planes(image) for image in images]
        if not planes:
            return torch.empty(0, self.channels, *self.result)
        if len({image.dtype for image in planes}) > 1:
            raise FleetError("integer and float images are mixed; store all of them as uint8")
        values = torch.from_numpy(np.stack(planes))
        if values.dtype == torch.uint8:
            values = values.float().mul_(self.rescale_factor)
        elif self.rescale_factor != 1 / 255:
            values = values.mul_(255 * self.rescale_factor)
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.image_mean, self.image_std))
        return values.sub_(mean).div_(std)

    def _planes(self, image: Any) -> np.ndarray:
        """One image as uint8 or float32 of shape ``(channels, height, width)``."""
        array = image if isinstance(image, np.ndarray) else _from_pil(image, self.channels)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or array.shape[2] not in (1, self.channels) or 0 in array.shape:
            raise FleetError(
                f"an image of shape {array.shape} is neither (height, width) nor "
                f"(height, width, {self.channels})"
            )
        planes = _checked_values(array).transpose(2, 0, 1)
        shape = self._resized_shape(*planes.shape[1:])
        if planes.shape[1:] != shape:
            planes = np.stack([_resized(plane, shape, self.resample) for plane in planes])
        if self.crop_size is not None:
            planes = _centre(planes, self.result)
        if planes.shape[1:] != self.result:
            height, width = array.shape[:2]
            raise FleetError(
                f"an image of {height} × {width} pixels does not become {self.result[0]} × "
                f"{self.result[1]} by the checkpoint's size; set `data.image_size`"
            )
        return np.broadcast_to(planes, (self.channels, *planes.shape[1:]))

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        if not self.do_resize:
            return height, width
        if isinstance(self.size, ImageSize):
            return self.size.height, self.size.width
        short, edge = min(height, width), self.size.shortest_edge
        longer = int(edge * max(height, width) / short)
        return (edge, longer) if height <= width else (longer, edge)


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
        raise FleetError('reading images needs Pillow: pip install "acme-fleet[data]"') from error
    return Image


def open_image(encoded: bytes | Path, name: str) -> Any:
    """Decode an image file, its first frame, upright as its EXIF orientation says.

    Args:
        encoded: the file's content or its path.
        name: what to call it in an error.

    Raises:
        FleetError: if it cannot be read or decoded.
    """
    with _decoding(name) as library:
        content = read_regular(encoded) if isinstance(encoded, Path) else encoded
        image = library.open(BytesIO(content))
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
        library.open(encoded if isinstance(encoded, Path) else BytesIO(encoded)) as image,
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
            raise FleetError(
                f"cannot read {name} as an image: Pillow knows no such format"
            ) from error
        raise


def _from_pil(image: Any, channels: int) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        # Pillow clips such values to 0..255 when it converts them.
        raise FleetError(f"images of more than 8 bits a channel (mode {image.mode}) are not read")
    with _decoding(f"an image of mode {image.mode}") as library:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            colours = image.convert("RGBA")
            image = library.alpha_composite(library.new("RGBA", image.size, "white"), colours)
            image = image.convert("RGB")
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def _checked_values(array: np.ndarray) -> np.ndarray:
    """The same values as uint8 or float32, refused where their scale cannot be told."""
    if array.dtype == np.uint8:
        return array
    kind = array.dtype.kind
    limit, target = {"i": (255, np.uint8), "u": (255, np.uint8), "f": (1, np.float32)}.get(
        kind, (0, None)
    )
    if target is None:
        raise FleetError(f"images of type {array.dtype} are not read; store them as uint8")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= limit):
        raise FleetError(
            f"images of type {array.dtype} must lie in 0..{limit}, found {low:g}..{high:g}; "
            f"integers run from 0 to 255, floats from 0 to 1"
        )
    return array.astype(target)
