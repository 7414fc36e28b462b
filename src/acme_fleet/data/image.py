"""From image files and arrays to what a Vision Transformer takes, by a rule that ships with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from acme_fleet.errors import FleetError
from acme_fleet_runtime.images import ImageForm, open_image, plain_array

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

    @property
    def form(self) -> ImageForm:
        """The steps before an image's values are scaled."""
        size: tuple[int, int] | int | None = None
        if self.do_resize and isinstance(self.size, ShortestEdge):
            size = self.size.shortest_edge
        elif self.do_resize and isinstance(self.size, ImageSize):
            size = self.size.height, self.size.width
        return ImageForm(self.channels, size, self.resample, self.result, self.do_center_crop)

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

    def original(self, values: Tensor) -> np.ndarray:
        """The image of some pixel values, undone but for resizing and cropping.

        Args:
            values: shape ``(channels, height, width)``.

        Returns:
            uint8, shape ``(height, width, channels)``.
        """
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.image_mean, self.image_std))
        bytes_ = ((values * std + mean) / self.rescale_factor).round().clamp(0, 255)
        return bytes_.to(torch.uint8).permute(1, 2, 0).numpy()

    def _planes(self, image: Any) -> np.ndarray:
        """One image as uint8 or float32 of shape ``(channels, height, width)``."""
        array = image if isinstance(image, np.ndarray) else plain_array(image, self.channels)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or array.shape[2] not in (1, self.channels) or 0 in array.shape:
            raise FleetError(
                f"an image of shape {array.shape} is neither (height, width) nor "
                f"(height, width, {self.channels})"
            )
        array = _checked_values(array)
        try:
            return self.form.planes(array)
        except FleetError as error:
            raise FleetError(f"{error}; set `data.image_size`") from error


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
