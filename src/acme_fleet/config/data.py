"""Settings of the data and of who holds which part of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from acme_fleet.config.base import Settings
from acme_fleet.config.training import Fraction

ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML reads class 3 as a number
ABSENT = -100
"""A label in the place of none: it counts nothing in a loss, in hits or in their number."""
_DIGITS = ("digits", "moved_digits")  # sources that have their own samples
ClassNames = Annotated[list[ClassName], Field(min_length=1)]


class IID(Settings):
    """Every device draws from the same distribution."""

    scheme: Literal["iid"] = "iid"
    """Name of the scheme."""


class Pathological(Settings):
    """Every device sees a few classes only (McMahan et al., 2017).

    The same list of classes twice is two devices of one distribution (the paper's Fig. 10).
    """

    scheme: Literal["pathological"]
    """Name of the scheme."""
    classes_per_device: PositiveInt | None = None
    """Classes of each device, drawn so that every class is held by a device where possible."""
    classes: Annotated[list[ClassNames], Field(min_length=1)] | None = None
    """Lists of class names that the devices take in turn, from the first again after the last."""

    @model_validator(mode="after")
    def _one_way(self) -> Pathological:
        if (self.classes_per_device is None) == (self.classes is None):
            raise ValueError("give either `classes_per_device` or `classes`")
        return self


class Dirichlet(Settings):
    """Every device's class shares are drawn from Dirichlet(alpha) (Hsu et al., 2019)."""

    scheme: Literal["dirichlet"]
    """Name of the scheme."""
    alpha: PositiveFloat
    """α of the distribution: the smaller, the fewer classes a device has most samples of."""


class Natural(Settings):
    """A column of the data set says whose sample it is.

    A device without data of its own has the samples of the value that is its name. Where no such
    device is named as a value, they take the values in sorted order (numbers as numbers), one each;
    `acme check` shows whose each has. Samples of the values that are left over belong to no device.
    """

    scheme: Literal["natural"]
    """Name of the scheme."""
    column: str
    """Name of the column, of text or whole numbers; no sample may lack a value."""


Partition = Annotated[IID | Pathological | Dirichlet | Natural, Field(discriminator="scheme")]


class Data(Settings):
    """The source of the samples, and their partition over cloud, edge servers and devices."""

    source: str = "digits"
    """Format: scikit-learn's ``digits``, these at random places as ``moved_digits``, ``arrays``
    (.npz), ``images`` (folders of class folders), ``parquet`` files, a ``huggingface`` data set,
    ``text`` (JSON Lines or CSV), or ``language`` (the same, of texts, of prompts with answers or
    of messages, for the task generation)."""
    train: Path | list[Path] | str | None = None
    """Paths of the training samples; for ``huggingface`` a name, or a folder (. or / first)."""
    test: Path | list[Path] | str | None = None
    """Paths of the test samples; for ``huggingface`` the name of the test split."""
    image_column: str = "image"
    """Column of the images in ``parquet`` files and ``huggingface`` data sets."""
    text_column: str = "text"
    """Key, or column, of the texts in the files of ``text`` and ``language``."""
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 64
    """Tokens to which each text is cut or padded, by the checkpoint's tokenizer; a longer one is
    refused by ``language``."""
    label_column: str = "label"
    """Column or key of the labels; texts of ``language`` need none, and are shared out by it."""
    classes: ClassNames | PositiveInt | None = None
    """Names of the classes that are kept, or n for the first n; none keeps all."""
    image_size: PositiveInt | None = None
    """Side in pixels to which images are brought; none: the checkpoint's, or the images' own."""
    public: Fraction | Path = 0.4
    """Share of all samples that is the cloud's, or a path to data of its own, read as a device's.
    Without a label column, or class folders, they are unlabelled: the reference must be a
    checkpoint. The rest is partitioned over the devices."""
    edge_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.15
    """Samples of an edge server, as a share of its devices' data; no device has them."""
    validation: Fraction = 0.2
    """Share of the training samples, of the cloud and of each device, to validate on."""
    test_share: Fraction = 0.25
    """Share of the samples that is held out for tests where there is no ``test``."""
    partition: Partition = IID()
    """Scheme by which devices without a ``data`` path of their own get samples."""
    dealt_to: list[str] | None = None
    """Devices that the samples are dealt to, in this order; none: all without a ``data`` path.
    ``acme update`` writes it: nobody's share changes when another device comes or leaves."""

    @property
    def holds_texts(self) -> bool:
        """True of texts, false of images."""
        return self.source in ("text", "language")

    @field_validator("train", "test")
    @classmethod
    def _as_path(cls, value: Any, info: ValidationInfo) -> Any:
        """Text is a path, and then relative to the fleet file, unless it names a hub's data set."""
        named = info.data.get("source") == "huggingface" and str(value)[:1] not in (".", "/")
        return Path(value) if isinstance(value, str) and not named else value

    @field_validator("public", mode="before")
    @classmethod
    def _share_or_path(cls, value: Any) -> Any:
        if isinstance(value, str | Path) and str(value).strip():
            return Path(value)
        if isinstance(value, int | float) and 0 < value < 1:
            return float(value)
        raise ValueError("give a share between 0 and 1, or the path of the cloud's own data")

    @field_validator("dealt_to")
    @classmethod
    def _named_once(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a device is named twice")
        return value

    @model_validator(mode="after")
    def _has_path(self) -> Data:
        if self.source not in _DIGITS and self.train is None:
            raise ValueError(
                f"source {self.source!r} needs a path in `train`; {', '.join(_DIGITS)} need none"
            )
        if self.source in _DIGITS and not (self.train is None and self.test is None):
            raise ValueError(
                f"source {self.source!r} has its own samples; remove `train` and `test`"
            )
        if self.source == "huggingface" and isinstance(self.train, list):
            raise ValueError("source 'huggingface' takes one name or folder in `train`")
        return self
