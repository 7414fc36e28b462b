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
ClassNames = Annotated[list[ClassName], Field(min_length=1)]


class IID(Settings):
    """Every device draws from the same distribution."""

    scheme: Literal["iid"] = "iid"


class Pathological(Settings):
    """Every device sees a few classes only (McMahan et al., 2017).

    Either ``classes_per_device``, drawn so that every class is held by someone where possible, or
    ``classes``: lists of class names that the devices take in turn, starting again after the
    last list. The same list twice is two devices of one distribution (the paper's Fig. 10).
    """

    scheme: Literal["pathological"]
    classes_per_device: PositiveInt | None = None
    classes: Annotated[list[ClassNames], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Pathological:
        if (self.classes_per_device is None) == (self.classes is None):
            raise ValueError("give either `classes_per_device` or `classes`")
        return self


class Dirichlet(Settings):
    """Every device's class shares are drawn from Dirichlet(alpha) (Hsu et al., 2019)."""

    scheme: Literal["dirichlet"]
    alpha: PositiveFloat


class Natural(Settings):
    """A column of the data set says whose sample it is.

    The devices without data of their own take the column's values in sorted order (numbers as
    numbers), one each; the samples of values that are left over belong to no device. A value is
    text or a whole number, and no sample lacks one.
    """

    scheme: Literal["natural"]
    column: str


Partition = Annotated[IID | Pathological | Dirichlet | Natural, Field(discriminator="scheme")]


class Data(Settings):
    """The source of the samples, and their partition.

    ``public`` is the share of the samples that is the cloud's, or a path to data of its own, read
    as a device's: without a label column, or class folders, they are unlabelled, and the reference
    must be a checkpoint. The others are partitioned over the devices; of what would fall to a
    cluster, ``edge_share`` (relative to its devices' data) is the edge server's own and never on a
    device. Devices with a ``data`` path of their own keep theirs.

    ``train`` and ``test`` are paths: ``arrays`` .npz files, ``images`` folders of class folders,
    ``parquet`` files, ``text`` JSON Lines files with ``text_column`` and ``label_column``, whose
    texts are cut or padded to ``max_tokens`` of the checkpoint's tokenizer. For ``huggingface``,
    ``train`` is a data set's name, or its folder if it starts with ``.`` or ``/``, and ``test``
    the name of its test split. Without ``test``, ``test_share`` of the samples is held out.
    ``classes`` keeps the first n, or those named.
    """

    source: Literal["digits", "arrays", "images", "parquet", "huggingface", "text"] = "digits"
    train: Path | list[Path] | str | None = None
    test: Path | list[Path] | str | None = None
    image_column: str = "image"
    text_column: str = "text"
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 64
    label_column: str = "label"
    classes: ClassNames | PositiveInt | None = None
    image_size: PositiveInt | None = None
    public: Fraction | Path = 0.4
    edge_share: Annotated[float, Field(ge=0.05, le=0.5)] = 0.15
    validation: Fraction = 0.2
    test_share: Fraction = 0.25
    partition: Partition = IID()

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

    @model_validator(mode="after")
    def _has_path(self) -> Data:
        if self.source != "digits" and self.train is None:
            raise ValueError(f"source {self.source!r} needs a path in `train`")
        if self.source == "digits" and not (self.train is None and self.test is None):
            raise ValueError("source 'digits' has its own samples; remove `train` and `test`")
        if self.source == "huggingface" and isinstance(self.train, list):
            raise ValueError("source 'huggingface' takes one name or folder in `train`")
        return self
