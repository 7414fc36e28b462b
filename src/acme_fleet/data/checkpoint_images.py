"""Preparation of images as a Hugging Face checkpoint's own files describe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError

from acme_fleet.data.checkpoint_files import located, read_object, vision_tower
from acme_fleet.data.image import Filter, ImageSize, Normalization, ShortestEdge, Side
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line

FILE = "preprocessor_config.json"


class _Defaults(NamedTuple):
    """Values of an image processor of transformers where its file has none."""

    resample: Filter
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | dict[str, int]
    crop: int | None
    square: bool = True
    """A size that is one number is a square; otherwise it is the shortest edge."""


_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP = _Defaults(3, _CLIP_MEAN, _CLIP_STD, {"shortest_edge": 224}, 224, square=False)
_PROCESSORS = {
    "ViT": _Defaults(2, _HALF, _HALF, 224, None),
    "DeiT": _Defaults(3, _HALF, _HALF, 256, 224),
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "Siglip": _Defaults(3, _HALF, _HALF, {"height": 224, "width": 224}, None, square=False),
}
_OF_FAMILIES = {"deit": "DeiT", "clip_vision_model": "CLIP", "siglip_vision_model": "Siglip"}
"""Processors by model type; others have that of ViT."""
_SUFFIXES = ("ImageProcessor", "FeatureExtractor")
# Keys beside the do_… that change pixels where they are set, and that this project does not follow.
_UNKNOWN_STEPS = frozenset(("crop_pct", "rescale_offset", "use_square_size"))
_KEYS = {"mean": "image_mean", "std": "image_std", "factor": "rescale_factor"}
Sizes = Side | list[Side] | dict[str, Side]


class _Document(BaseModel):
    """The keys that decide pixels. None stands for a missing key."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    do_resize: StrictBool | None = None
    size: Sizes | None = None
    default_to_square: StrictBool | None = None
    resample: Filter | None = None
    do_center_crop: StrictBool | None = None
    crop_size: Sizes | None = None
    do_rescale: StrictBool | None = None
    rescale_factor: float | None = None
    do_normalize: StrictBool | None = None
    image_mean: float | list[float] | None = None
    image_std: float | list[float] | None = None


def read_normalization(checkpoint: str | Path, revision: str | None = None) -> Normalization | None:
    """Read the preparation of images of a Hugging Face checkpoint.

    It stands in the checkpoint's ``preprocessor_config.json``. Keys that this lacks have the
    values that transformers gives them. A size that it lacks is the model's.

    Returns:
        The rule; without that file, the family's mean and deviation (of most, values from -1 to 1)
        and the model's size; None if there is no configuration of an image model either.

    Raises:
        FleetError: naming the key if the file cannot be read, or asks for what is not supported.
    """
    where = f"cannot read the preprocessing of {checkpoint}"
    folder = located(checkpoint, revision)
    content, config = (_document(folder / name, where) for name in (FILE, "config.json"))
    config = config and vision_tower(config)
    side = _side(config.get("image_size")) if config else None
    model_size = None if side is None else ImageSize(height=side, width=side)
    if content is None:
        if config is None or model_size is None:
            return None
        own = _defaults({}, config, where)
        mean, std = (own.mean, own.std) if config.get("num_channels") != 1 else ((0.5,), (0.5,))
        return Normalization(mean=mean, std=std, size=model_size)
    defaults = _defaults(content, config or {}, where)
    try:
        # As transformers has it: a step that is null is off.
        switches = [k for k in content if k.startswith("do_") or k == "default_to_square"]
        off = {key: False for key in switches if content[key] is None}
        document = _Document.model_validate({**content, **off})
        _refuse_others(document, where)
        return _rule(document, defaults, model_size, (config or {}).get("num_channels"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else "it"
        key = _KEYS.get(key, key)
        shown = one_line(repr(content.get(key)), 60)
        raise FleetError(f"{where}: {key} {shown}: {first['msg']}") from error
    except ValueError as error:
        raise FleetError(f"{where}: {error}") from error


def _document(path: Path, where: str) -> dict[str, Any] | None:
    """A JSON file; None if there is none."""
    return read_object(path, f"{where}: {path.name}") if path.exists() else None


def _defaults(content: dict[str, Any], config: dict[str, Any], where: str) -> _Defaults:
    name = content.get("image_processor_type") or content.get("feature_extractor_type")
    if name is None:
        return _PROCESSORS[_OF_FAMILIES.get(str(config.get("model_type")), "ViT")]
    kind = str(name).removesuffix("Fast").removesuffix("Pil")
    for suffix in _SUFFIXES:
        kind = kind.removesuffix(suffix)
    if kind not in _PROCESSORS:
        known = ", ".join(f"{known}ImageProcessor" for known in _PROCESSORS)
        raise FleetError(
            f"{where}: image_processor_type {one_line(str(name), 60)} is not supported; "
            f"known: {known}"
        )
    return _PROCESSORS[kind]


def _refuse_others(document: _Document, where: str) -> None:
    """Other keys that change pixels must be off; the rest describe the file."""
    for key, value in (document.model_extra or {}).items():
        step = key.startswith("do_") and key != "do_convert_rgb"
        if ((step or key in _UNKNOWN_STEPS) and value) or (
            key == "data_format" and value not in (None, "channels_first")
        ):
            raise FleetError(
                f"{where}: {one_line(key, 60)}: {one_line(repr(value), 60)} is not supported"
            )


def _rule(
    document: _Document, defaults: _Defaults, model_size: ImageSize | None, channels: Any
) -> Normalization:
    """The document's rule.

    Raises:
        ValueError: naming the key that cannot be followed.
    """
    resize = document.do_resize is not False
    square = defaults.square if document.default_to_square is None else document.default_to_square
    size = _size("size", document.size or defaults.size, square=square) if resize else None
    crops = defaults.crop if document.do_center_crop is None else document.do_center_crop
    crop = _size("crop_size", document.crop_size or defaults.crop) if crops else None
    if isinstance(crop, ShortestEdge):
        raise ValueError("crop_size needs a height and a width")
    factor = 1 / 255 if document.rescale_factor is None else document.rescale_factor
    rule = Normalization(
        **_statistics(document, defaults, 1 if channels == 1 else 3),
        factor=1.0 if document.do_rescale is False else factor,
        resize=resize,
        size=size,
        resample=defaults.resample if document.resample is None else document.resample,
        crop=crop,
    )
    if document.size is None and document.crop_size is None and resize:
        of_model = model_size and (model_size.height, model_size.width)
        if rule.result != of_model:  # transformers' default is of another model
            return rule.model_copy(update={"size": model_size, "crop": None})
    return rule


def _statistics(
    document: _Document, defaults: _Defaults, channels: int
) -> dict[str, tuple[float, ...]]:
    if document.do_normalize is False:
        return {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    mean = defaults.mean if document.image_mean is None else document.image_mean
    std = defaults.std if document.image_std is None else document.image_std
    length = max((len(x) for x in (mean, std) if isinstance(x, list | tuple)), default=channels)
    return {
        "mean": _for_each("image_mean", mean, length),
        "std": _for_each("image_std", std, length),
    }


def _for_each(key: str, values: Any, channels: int) -> tuple[float, ...]:
    """A list of one value for each channel; a number stands for all of them."""
    if not isinstance(values, list | tuple):
        return (values,) * channels
    if len(values) != channels or channels not in (1, 3):
        raise ValueError(
            f"{key} {values} must have 1 or 3 values, as many as the other of image_mean and "
            f"image_std"
        )
    return tuple(values)


def _size(key: str, value: Sizes | None, *, square: bool = True) -> ImageSize | ShortestEdge:
    if isinstance(value, int):
        if not square:
            return ShortestEdge(shortest_edge=value)
        return ImageSize(height=value, width=value)
    if isinstance(value, list) and len(value) == 2:
        return ImageSize(height=value[0], width=value[1])
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return ImageSize(**value)
    if isinstance(value, dict) and set(value) == {"shortest_edge"}:
        return ShortestEdge(**value)
    raise ValueError(f"{key} {one_line(repr(value), 60)} is not supported; give height and width")


def _side(value: Any) -> int | None:
    """The side of a model's square images."""
    sides = value if isinstance(value, list) else [value]
    ok = sides and all(type(side) is int and 0 < side <= 65_500 for side in sides)
    return sides[0] if ok and len(set(sides)) == 1 else None
