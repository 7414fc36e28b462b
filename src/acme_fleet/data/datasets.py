"""The fleet's data set: read, cut down to the classes kept, split, and made into tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acme_fleet.config.base import chosen
from acme_fleet.config.data import Data, Natural
from acme_fleet.data.classes import check_known, chosen_classes, class_names, relabelled
from acme_fleet.data.image import (
    ImagePreprocessing,
    ImageSize,
    Normalization,
)
from acme_fleet.data.language import LanguagePreprocessing, read_language
from acme_fleet.data.paths import check_paths
from acme_fleet.data.raw import Columns, RawSamples
from acme_fleet.data.samples import Samples, stratified_split
from acme_fleet.data.sources.files import read_arrays, read_parquet
from acme_fleet.data.sources.folder import read_folders, read_images
from acme_fleet.data.sources.registry import SOURCES
from acme_fleet.data.text import TextPreprocessing, read_json_lines
from acme_fleet.errors import FleetError
from acme_fleet_runtime.images import image_form, open_image, plain_array

Preprocessing = ImagePreprocessing | TextPreprocessing
"""From a file to a sample; ``inputs`` and ``read`` are the same for both."""

# The test samples of a data set stay the same whatever the run's seed is: runs are compared on
# them. Not zero, so that no run's own generator happens to repeat this one.
_TEST_SPLIT_SEED = 20_250_101


@dataclass(frozen=True)
class Source:
    """A data set that is ready to be shared out.

    Attributes:
        train: samples to share out for training and validation.
        test: samples that nothing is chosen on.
        classes: the classes' names, in the order of the labels.
        preprocessing: how an image or text file becomes a sample.
        train_groups: whose each train sample is, shape ``(samples,)``, for a natural partition.
        test_groups: the same for the test samples.
    """

    train: Samples
    test: Samples
    classes: list[str]
    preprocessing: Preprocessing
    train_groups: np.ndarray | None = None
    test_groups: np.ndarray | None = None


@dataclass(frozen=True)
class Undecoded:
    """Samples of which only those that somebody takes are decoded."""

    raw: RawSamples
    preprocessing: Preprocessing

    @property
    def labels(self) -> torch.Tensor:
        """The labels, int64 of shape ``(samples,)``."""
        return torch.from_numpy(self.raw.labels)

    def __getitem__(self, index: torch.Tensor) -> Samples:
        """The samples at ``index``, int64 of shape ``(chosen,)``, decoded and preprocessed.

        Raises:
            FleetError: naming the sample that cannot be decoded.
        """
        return _samples(self.raw[index.numpy()], self.preprocessing)


@dataclass(frozen=True)
class Listed:
    """A data set of which labels and owners are known, and nothing is decoded.

    Attributes:
        train, test: as in :class:`Source`.
        classes: the classes' names, in the order of the labels.
    """

    train: RawSamples
    test: RawSamples
    classes: list[str]


@dataclass(frozen=True)
class Prepared:
    """A listed data set and the preprocessing by which its samples are decoded when taken."""

    listed: Listed
    preprocessing: Preprocessing

    @property
    def train(self) -> Undecoded:
        """See :class:`Source`."""
        return Undecoded(self.listed.train, self.preprocessing)

    @property
    def test(self) -> Undecoded:
        """See :class:`Source`."""
        return Undecoded(self.listed.test, self.preprocessing)

    @property
    def classes(self) -> list[str]:
        """See :class:`Source`."""
        return self.listed.classes


def list_source(data: Data) -> Listed:
    """List the data set that a fleet's devices, edge servers and cloud share out.

    Labels, owners and class names are read, and no image or text is decoded.

    Raises:
        FleetError: naming the setting, and the file, column or class that is wrong.
    """
    train, test = _read(data)
    names = class_names(train)
    # Texts that are generated may be all of one class: classes only say who gets them.
    classes = chosen_classes(data.classes, names, 1 if data.source == "language" else 2)
    if test is not None:
        check_known(test, names)
        test = relabelled(test, names, classes)
    train = relabelled(train, names, classes)
    if test is None:
        generator = np.random.default_rng(_TEST_SPLIT_SEED)
        rest, held_out = stratified_split(
            strata(train.labels, train.groups), data.test_share, generator
        )
        train, test = train[rest], train[held_out]
    return Listed(train, test, classes)


def open_source(data: Data, known: Normalization | TextPreprocessing | None = None) -> Prepared:
    """List a data set, and find the preprocessing of its samples.

    Args:
        data: where the samples are.
        known: what the reference was trained with. For images the whole rule from size to
            normalisation; without it, values are centred and the images keep their size and
            channels, for which the header of every image is read. Texts need the tokenizer.

    Raises:
        FleetError: naming the setting, and the file, column or class that is wrong.
    """
    listed = list_source(data)
    return Prepared(listed, _preprocessing((listed.train, listed.test), data, known))


def load_source(data: Data, known: Normalization | TextPreprocessing | None = None) -> Source:
    """Load a data set and decode all its samples, those of classes that are kept alone.

    Arguments and errors are those of :func:`open_source`.
    """
    opened = open_source(data, known)
    return Source(
        train=_samples(opened.listed.train, opened.preprocessing),
        test=_samples(opened.listed.test, opened.preprocessing),
        classes=opened.classes,
        preprocessing=opened.preprocessing,
        train_groups=opened.listed.train.groups,
        test_groups=opened.listed.test.groups,
    )


def read_own(path: Path, data: Data, where: str, *, label_optional: bool = False) -> RawSamples:
    """Read the data of one role: a JSON Lines, .npz or parquet file, or a folder of classes.

    Nothing is decoded.

    Args:
        path: the file or folder.
        data: which columns a parquet file has.
        where: whose data these are, for error messages.
        label_optional: data without a label column, or a folder that holds images alone, are
            samples without labels.

    Raises:
        FleetError: naming the owner, and what is wrong with the path.
    """
    check_paths([path], where)
    columns = replace(_columns(data), label_optional=label_optional)
    if data.holds_texts:
        read = read_language if data.source == "language" else read_json_lines
        return read([path], columns, where)
    if path.is_dir():
        return read_images(path, where) if label_optional else read_folders([path], where)
    if path.suffix.lower() == ".npz":
        return read_arrays([path], columns, where)
    if path.suffix.lower() == ".parquet":
        return read_parquet([path], columns, where)
    raise FleetError(f"{where}: {path} is no .npz file, .parquet file or folder of class folders")


def decoded(raw: RawSamples, classes: list[str], preprocessing: Preprocessing) -> Samples:
    """Decode the samples of one role.

    Classes are matched by name. Where the file has no names its labels count in the order of
    ``classes`` or, where these are numbers, are such numbers.

    Raises:
        FleetError: naming the owner, and the class or sample that is wrong.
    """
    # Classes of texts that are generated only say who gets them.
    if raw.codes is not None and not isinstance(preprocessing, LanguagePreprocessing):
        check_known(raw, classes)
        raw = relabelled(raw, classes, classes)
    return _samples(raw, preprocessing)


def load_own(
    path: Path,
    data: Data,
    source: Source | Prepared,
    where: str,
    *,
    label_optional: bool = False,
) -> Samples:
    """Load the data of one role, see :func:`read_own`.

    Classes and preprocessing are those of ``source``, see :func:`decoded`.

    Raises:
        FleetError: naming the owner, and the path, class or sample that is wrong.
    """
    raw = read_own(path, data, where, label_optional=label_optional)
    return decoded(raw, source.classes, source.preprocessing)


def strata(labels: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Number what a split should keep in proportion: classes, or classes within groups."""
    if groups is None:
        return labels
    numbered = np.unique(groups, return_inverse=True)[1]
    return numbered * (int(labels.max(initial=0)) + 1) + labels


def _read(data: Data) -> tuple[RawSamples, RawSamples | None]:
    """The train and, if there is one, the test samples, not decoded."""
    group = data.partition.column if isinstance(data.partition, Natural) else None
    read, columns = chosen(SOURCES, data.source, "data.source"), _columns(data, group)
    train = read(data, "train", columns)
    assert train is not None  # the settings ask for it
    return train, read(data, "test", columns)


def _columns(data: Data, group: str | None = None) -> Columns:
    item = data.text_column if data.holds_texts else data.image_column
    return Columns(item, data.label_column, group)


def _preprocessing(
    parts: tuple[RawSamples, RawSamples],
    data: Data,
    known: Normalization | TextPreprocessing | None,
) -> Preprocessing:
    """The preprocessing that suits the samples: a tokenizer, or a size and channels of images."""
    if data.holds_texts:
        if not isinstance(known, TextPreprocessing):
            raise FleetError("data.source: texts need a reference.checkpoint with a tokenizer")
        return known
    if isinstance(known, TextPreprocessing):
        raise FleetError(f"data.source: {data.source} has images, the reference takes texts")
    return _image_preprocessing(parts, data.image_size, known)


def _image_preprocessing(
    parts: tuple[RawSamples, RawSamples], image_size: int | None, rule: Normalization | None
) -> ImagePreprocessing:
    wanted = image_size and ImageSize(height=image_size, width=image_size)
    if rule and wanted and rule.result != (image_size, image_size):
        rule = rule.model_copy(update={"resize": True, "size": wanted, "crop": None})
    if rule and rule.result:
        return ImagePreprocessing.of(rule)
    forms = _forms(parts)
    sizes = sorted({(height, width) for height, width, _ in forms})
    (height, width), last = sizes[0], sizes[-1]
    if not wanted and (len(sizes) > 1 or height != width):
        examples = {form[:2]: name for form, name in forms.items()}
        other = f", {examples[last]} {last[0]} × {last[1]}" if len(sizes) > 1 else ""
        raise FleetError(
            f"{parts[0].where}: {examples[height, width]} has {height} × {width} pixels{other}; "
            f"set `data.image_size` to bring all images to one square size"
        )
    if rule:
        return ImagePreprocessing.of(rule, ImageSize(height=height, width=width))
    channels = max(channels for _, _, channels in forms)
    if wanted:
        height, width = wanted.height, wanted.width
    return ImagePreprocessing.centred(height, width, channels)


def _forms(parts: Sequence[RawSamples]) -> dict[tuple[int, int, int], str]:
    """The heights, widths and channels that occur, each with one image that has them."""
    forms: dict[tuple[int, int, int], str] = {}
    for raw in parts:
        if raw.items.dtype == object:
            with said_of(raw.where):
                for image, name in _named(raw):
                    forms.setdefault(image_form(image, name), name)
        else:
            channels = raw.items.shape[3] if raw.items.ndim == 4 else 1
            forms.setdefault((*raw.items.shape[1:3], channels), f"an image of {raw.where}")
    return forms


def _samples(raw: RawSamples, preprocessing: Preprocessing) -> Samples:
    """Decode and preprocess."""
    if isinstance(preprocessing, LanguagePreprocessing):
        with said_of(raw.where):
            inputs, labels = preprocessing.learned(raw.items)
        return Samples(inputs, labels, torch.from_numpy(raw.stored_bytes))
    items: Any = raw.items
    if raw.items.dtype == object and isinstance(preprocessing, ImagePreprocessing):
        items = _opened(raw, preprocessing)
    with said_of(raw.where):
        inputs = preprocessing.inputs(items)
    return Samples(
        inputs=inputs,
        labels=None if raw.codes is None else torch.from_numpy(raw.codes),
        stored_bytes=torch.from_numpy(raw.stored_bytes),
    )


def _opened(raw: RawSamples, rule: ImagePreprocessing) -> Iterator[np.ndarray]:
    """The decoded images, one after the other.

    Raises:
        FleetError: naming the image that cannot be read.
    """
    for image, name in _named(raw):
        opened = open_image(image, name)
        with said_of(f"cannot read {name}"):
            pixels = plain_array(opened, rule.channels)
        yield pixels


def check_images(raw: RawSamples) -> None:
    """Decode each encoded image once, and keep none: how to read them may be known later.

    Raises:
        FleetError: naming the owner, and the image that cannot be decoded.
    """
    with said_of(raw.where):
        for image, name in _named(raw):
            if isinstance(image, bytes | Path):
                opened = open_image(image, name)
                with said_of(f"cannot read {name}"):
                    plain_array(opened, 3)


@contextmanager
def said_of(where: str) -> Iterator[None]:
    """Begin an error that comes from within by the setting that it is about."""
    try:
        yield
    except FleetError as error:
        raise FleetError(f"{where}: {error}") from error


def _named(raw: RawSamples) -> Iterator[tuple[bytes | Path, str]]:
    """The encoded images, each with what to call it in an error."""
    if raw.codes is None:
        called = [f"sample {number}" for number in range(1, len(raw.items) + 1)]
    else:
        names = class_names(raw)
        called = [f"a sample of class {names[label]}" for label in raw.codes.tolist()]
    for image, name in zip(raw.items, called, strict=True):
        yield image, str(image) if isinstance(image, Path) else name
