"""From image files and arrays to what a Vision Transformer takes, by a rule that ships with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from acme_fleet.data.checkpoint_files import located
from acme_fleet.errors import FleetError

_GREY_MODES = {"1", "L", "LA"}


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ImageSize(BaseModel):
    """Height and width in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: PositiveInt
    width: PositiveInt


class ImagePreprocessing(BaseModel):
    """How an image becomes ``pixel_values``; as JSON, a Hugging Face ``preprocessor_config.json``.

    An image is resized (bilinear) where its size differs, its uint8 values are multiplied by
    ``rescale_factor``, and each channel is normalised. Floating-point images are taken to be
    rescaled already. One mean is a grey image, three are red, green, blue.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_processor_type: Literal["ViTImageProcessor"] = "ViTImageProcessor"
    do_convert_rgb: bool
    do_resize: Literal[True] = True
    size: ImageSize
    resample: Literal[2] = 2  # PIL.Image.Resampling.BILINEAR
    do_rescale: Literal[True] = True
    rescale_factor: PositiveFloat = 1 / 255
    do_normalize: Literal[True] = True
    image_mean: tuple[float, ...]
    image_std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _channels_agree(self) -> ImagePreprocessing:
        if len(self.image_mean) != len(self.image_std) or not self.image_mean:
            raise ValueError(
                f"image_mean has {len(self.image_mean)} channels, image_std {len(self.image_std)}"
            )
        if self.do_convert_rgb != (len(self.image_mean) == 3):
            raise ValueError("do_convert_rgb must be true for three channels, and only for them")
        return self

    @classmethod
    def centred(cls, height: int, width: int, channels: int) -> ImagePreprocessing:
        """The project's default: values from -1 to 1, by no statistic of anyone's data."""
        return cls.normalized(height, width, Normalization((0.5,) * channels, (0.5,) * channels))

    @classmethod
    def normalized(
        cls, height: int, width: int, normalization: Normalization
    ) -> ImagePreprocessing:
        """Images of this size with as many channels as ``normalization`` has."""
        return cls(
            do_convert_rgb=len(normalization.mean) == 3,
            size=ImageSize(height=height, width=width),
            image_mean=normalization.mean,
            image_std=normalization.std,
        )

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of each channel."""
        return Normalization(self.image_mean, self.image_std)

    @property
    def channels(self) -> int:
        """Channels of the result: 1 for grey, 3 for colour."""
        return len(self.image_mean)

    def inputs(self, images: Iterable[Any]) -> dict[str, Tensor]:
        """What a model takes by name: ``pixel_values``, see there."""
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
            return torch.empty(0, self.channels, self.size.height, self.size.width)
        if len({image.dtype for image in planes}) > 1:
            raise FleetError("integer and float images are mixed; store all of them as uint8")
        values = torch.from_numpy(np.stack(planes))
        if values.dtype == torch.uint8:
            values = values.float().mul_(self.rescale_factor)
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.image_mean, self.image_std))
        return values.sub_(mean).div_(std)

    def _planes(self, image: Any) -> np.ndarray:
        """One image as uint8 or float32 of shape ``(channels, height, width)``."""
        array = image if isinstance(image, np.ndarray) else _from_pil(image, self.channels)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or array.shape[2] not in (1, self.channels):
            raise FleetError(
                f"an image of shape {array.shape} is neither (height, width) nor "
                f"(height, width, {self.channels})"
            )
        planes = _checked_values(array).transpose(2, 0, 1)
        if planes.shape[1:] != (self.size.height, self.size.width):
            planes = np.stack([self._resized(plane) for plane in planes])
        return np.broadcast_to(planes, (self.channels, *planes.shape[1:]))

    def _resized(self, plane: np.ndarray) -> np.ndarray:
        image = pillow().fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize((self.size.width, self.size.height), self.resample))


def read_normalization(checkpoint: str | Path, revision: str | None = None) -> Normalization | None:
    """The mean and deviation that a Hugging Face checkpoint was trained with.

    They stand in its ``preprocessor_config.json``; None where there is no such file.

    Raises:
        FleetError: if the file cannot be read.
    """
    path = located(checkpoint, revision) / "preprocessor_config.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if not content.get("do_normalize", True):
            return Normalization((0.0,) * 3, (1.0,) * 3)
        return Normalization(tuple(content["image_mean"]), tuple(content["image_std"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FleetError(f"cannot read the preprocessing of {checkpoint}: {error!r}") from error


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
    """Decode an image file, upright as its EXIF orientation says.

    Args:
        encoded: the file's content or its path.
        name: what to call it in an error.

    Raises:
        FleetError: if it cannot be read or decoded.
    """
    library = pillow()
    from PIL import ImageOps

    try:
        content = encoded.read_bytes() if isinstance(encoded, Path) else encoded
        image = library.open(BytesIO(content))
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        raise _unreadable(name, error) from error
    return image


def image_form(encoded: bytes | Path, name: str) -> tuple[int, int, int]:
    """Height, width and channels (1 or 3) of an image file, by its header only.

    Raises:
        FleetError: if it cannot be read.
    """
    library = pillow()
    try:
        with library.open(encoded if isinstance(encoded, Path) else BytesIO(encoded)) as image:
            return image.height, image.width, 1 if image.mode in _GREY_MODES else 3
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> FleetError:
    if isinstance(error, pillow().UnidentifiedImageError):
        return FleetError(f"cannot read {name} as an image: Pillow knows no such format")
    return FleetError(f"cannot read {name} as an image: {error}")


def _from_pil(image: Any, channels: int) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        # Pillow clips such values to 0..255 when it converts them.
        raise FleetError(f"images of more than 8 bits a channel (mode {image.mode}) are not read")
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
