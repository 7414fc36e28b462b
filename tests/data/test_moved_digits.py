"""The digits at random places: the same in every run, and no writer in both parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.datasets import Source, load_source
from acme_fleet.data.partition import distribute
from acme_fleet.data.sources.files import read_digits
from acme_fleet.data.sources.moved_digits import FRAME, moved, read_moved_digits
from acme_fleet.errors import FleetError

DIGIT = Path(__file__).parents[2] / "docs" / "digit.png"
DATA = Data(source="moved_digits")


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source(DATA)


def test_every_digit_is_in_one_part_and_writers_are_not_divided(source: Source) -> None:
    """A sheet begins with 0 to 9 three times over: also the first one to test on."""
    train, test = source.train.labels.tolist(), source.test.labels.tolist()
    assert train + test == read_digits().labels.tolist()
    assert train[:30] == test[:30] == [*range(10)] * 3
    assert train[-3:] == [8, 9, 8]
    assert min(np.bincount(test)) > 70


def test_images_are_the_same_whatever_the_settings_are(source: Source) -> None:
    again = load_source(Data(source="moved_digits", public=0.2, test_share=0.5, validation=0.5))
    for first, second in ((source.train, again.train), (source.test, again.test)):
        assert first.inputs["pixel_values"].equal(second.inputs["pixel_values"])
    assert source.train.inputs["pixel_values"].shape == (len(source.train), 1, FRAME, FRAME)
    assert set(source.test.stored_bytes.tolist()) == {FRAME**2}


def test_position_and_size_differ(source: Source) -> None:
    """The ink's centre moves by more than a pixel, and not by the class alone."""
    images = (source.train.inputs["pixel_values"] + 1)[source.train.labels == 0, 0]
    places = np.arange(FRAME)
    weight = images.sum(dim=(1, 2)).numpy()
    rows = (images.sum(dim=2).numpy() * places).sum(axis=1) / weight
    assert rows.std() > 0.3
    assert rows.min() < (FRAME - 1) / 2 - 0.5 < (FRAME - 1) / 2 + 0.5 < rows.max()


def test_a_moved_digit_is_where_it_was_put() -> None:
    """Twice as large, unturned and against the right edge, by hand; a quarter turn by numpy."""
    dot = np.zeros((8, 8), np.uint8)
    dot[2, 5] = 200
    plain = moved(dot, 1.0, 0.0, np.array([0.0, 1.0]))
    assert np.argwhere(plain).tolist() == [[4, 9]]
    assert plain[4, 9] == 200
    turned = moved(dot, 1.0, np.pi / 2, np.zeros(2))
    assert np.array_equal(turned[2:10, 2:10], np.rot90(dot, -1))
    larger = moved(np.full((8, 8), 90, np.uint8), 1.5, 0.0, np.zeros(2))
    assert (larger[1:-1, 1:-1] == 90).all()


def test_it_is_shared_out_like_any_other(source: Source) -> None:
    clusters = [{"name": "c", "devices": [{"name": "d", "storage": 5}]}]
    world = distribute(
        Fleet.parse({"data": {"source": "moved_digits"}, "clusters": clusters}), source
    )
    held = len(world.public.test) + len(world.private["d"].test)
    assert held == len(source.test)


def test_what_it_does_not_have_is_refused() -> None:
    natural = {"scheme": "natural", "column": "writer"}
    with pytest.raises(FleetError, match="the digits have no column 'writer'"):
        load_source(Data.model_validate({"source": "moved_digits", "partition": natural}))
    with pytest.raises(ValueError, match="source 'moved_digits' has its own samples; remove"):
        Data.model_validate({"source": "moved_digits", "train": "x.npz"})


def test_the_image_of_the_guide_is_one_to_test_on() -> None:
    """A model of the demo has not seen it."""
    shown = np.asarray(Image.open(DIGIT))
    assert (read_moved_digits(test=True).items == shown).all(axis=(1, 2)).any()
