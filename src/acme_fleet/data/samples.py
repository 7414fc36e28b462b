"""The one type that holds samples. It never appears in a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, Int64, Shaped
from torch import Tensor


class _Labels:
    """The field ``labels`` of :class:`Samples`: to read labels that are missing is an error."""

    def __get__(self, samples: Samples | None, _: type | None = None) -> Tensor:
        if samples is None:
            raise AttributeError("labels")  # the class has no default for them
        labels = samples.__dict__["labels"]
        if labels is None:
            raise ValueError("labels of samples that have none were asked for")
        return labels

    def __set__(self, samples: Samples, labels: Tensor | None) -> None:
        samples.__dict__["labels"] = labels


if TYPE_CHECKING:
    _LabelsField = _Labels
else:  # a check at run time would compare what is given with the descriptor's own type
    _LabelsField = Int64[Tensor, "samples *positions"] | None


@dataclass(frozen=True, repr=False)
class Samples:
    """Samples, ready for a model. All have labels, except public data that came without.

    Attributes:
        inputs: arguments of a Hugging Face model by name, e.g. ``pixel_values`` with the axes
            ``(samples, channels, height, width)``.
        labels: class indices or, of texts that are generated, the token that follows each, of
            shape ``(samples, tokens)``. Given as None where there are none; reading them is then
            a ValueError.
        stored_bytes: size of each raw sample as stored on disk.
        computed: makes a header's inputs of a batch's inputs, where all of them together would be
            too large to keep; see :meth:`ready`.
    """

    inputs: dict[str, Shaped[Tensor, "samples ..."]]
    labels: _LabelsField = _Labels()  # a descriptor, and no default: they must be given
    stored_bytes: Int64[Tensor, " samples"]  # pyright: ignore[reportGeneralTypeIssues]
    computed: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.stored_bytes), *map(len, self.inputs.values())}
        if self.labelled:
            lengths.add(len(self.labels))
        if len(lengths) != 1:
            raise ValueError(f"inputs, labels and stored_bytes differ in length: {lengths}")

    @property
    def labelled(self) -> bool:
        """True where the samples have labels."""
        return self.__dict__["labels"] is not None

    @property
    def strata(self) -> Int[np.ndarray, " samples"]:
        """The class of each sample, to split in proportion; one for all where there is none."""
        if self.labelled and self.labels.ndim == 1:
            return self.labels.numpy()
        return np.zeros(len(self), np.int64)

    def __len__(self) -> int:
        return len(self.stored_bytes)

    def __getitem__(self, index: Int64[Tensor, " chosen"] | slice) -> Samples:
        """The samples at ``index``, a slice or indices."""
        return Samples(
            {name: values[index] for name, values in self.inputs.items()},
            self.labels[index] if self.labelled else None,
            self.stored_bytes[index],
            self.computed,
        )

    def ready(self) -> Samples:
        """A batch with the inputs of what learns from it."""
        return self if self.computed is None else self.with_inputs(self.computed(self.inputs))

    def with_inputs(self, inputs: dict[str, Tensor]) -> Samples:
        """The same samples in another form."""
        return Samples(inputs, self.labels if self.labelled else None, self.stored_bytes)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Iterator[Samples]:
        """Batches in order, or in an order drawn from ``generator`` if one is given."""
        order = (
            torch.arange(len(self))
            if generator is None
            else torch.randperm(len(self), generator=generator)
        )
        for index in order.split(batch_size):
            yield self[index]


def join(parts: Sequence[Samples]) -> Samples:
    """All samples of several sets, in order."""
    return Samples(
        {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs},
        torch.cat([part.labels for part in parts]),
        torch.cat([part.stored_bytes for part in parts]),
        parts[0].computed,
    )


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets: train on the first, choose on the second, report on the third.

    All have labels or none has. Without labels nothing can be reported, and the third is empty.
    """

    train: Samples
    validation: Samples
    test: Samples

    def __post_init__(self) -> None:
        if len({part.labelled for part in (self.train, self.validation, self.test)}) > 1:
            raise ValueError("some parts of one data set have labels, others have none")

    @property
    def labelled(self) -> bool:
        """True where the samples have labels."""
        return self.train.labelled


def stratified_split(
    strata: Int[np.ndarray, " samples"], share: float, generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " left"], Int64[np.ndarray, " taken"]]:
    """Split samples in two so that every stratum (a class, say) has the same share in both.

    The samples, sorted by stratum and shuffled within it, are taken at even distances: the part
    taken has ``share`` of every stratum, and of all, to within one sample. scikit-learn's
    stratified split refuses a class with one sample and parts smaller than the number of classes,
    which small devices have. Both parts get at least one sample where there are two.

    Args:
        strata: the stratum of each sample.
        share: part to take, between 0 and 1.
        generator: decides which samples of a stratum are taken.

    Returns:
        Sorted indices of the samples left and of those taken.
    """
    count = len(strata)
    if count > 1:
        share = min(max(share, 1 / count), 1 - 1 / count)
    order = np.lexsort((generator.random(count), strata))
    taken = np.diff(np.floor(np.arange(count + 1) * share + generator.random())) > 0
    return np.sort(order[~taken]), np.sort(order[taken])
