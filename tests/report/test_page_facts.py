"""The first screen's answers, classes, examples, and pages of fleets too large to list."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import Page, make_summary

from acme_fleet.report.page.canvas import CLUSTER_COLORS, DARK_COLORS
from acme_fleet.report.page.facts import (
    MOST_LISTED,
    Facts,
    class_facts,
    confusion,
    confusions,
    listed_devices,
)
from acme_fleet.report.page.glossary import GLOSSARY
from acme_fleet.report.page.html import write_report
from acme_fleet.report.page.pictures import MOST_PIXELS, Example, matrix_picture, shrunk
from acme_fleet.runs.summary import ClassSummary, ProbeSummary, Summary


def measured(summary: Summary, classes: int = 4) -> Summary:
    """A summary with what is known where the devices' data are on this machine."""
    random = np.random.default_rng(0)
    names = [f"class {n}" for n in range(classes)]
    devices = []
    for device in summary.devices:
        own = random.choice(names, 3, replace=False).tolist()
        known = {
            name: ClassSummary(train=10 + n, answers={name: 8, own[n - 1]: n})
            for n, name in enumerate(own)
        }
        update = {
            "classes": known,
            "train_samples": 33,
            "validation_samples": 7,
            "accuracy_reference": 0.9,
            "accuracy_probe": 0.5,
            "accuracy_probe_averaged": 0.4,
        }
        devices.append(device.model_copy(update=update))
    probe = ProbeSummary(pooling="mean", size_bytes=900_000, size_bytes_int8=300_000)
    sent = {d.name: {"FeatureSample": [4224], "ImportanceUpload": [992] * 3} for d in devices}
    return summary.model_copy(update={"devices": devices, "probe": probe, "sent": sent})


@pytest.fixture(scope="module")
def known() -> Summary:
    return measured(make_summary(3, 2))


def text_of(summary: Summary, path: Path, **rest: object) -> str:
    write_report(summary, [], path, **rest)  # type: ignore[arg-type]
    return Page(path.read_text()).text.replace("\u00a0", " ")


def test_all_fit(known: Summary, tmp_path: Path) -> None:
    facts = Facts.of(known)
    assert (facts.expected, facts.lost, facts.too_large) == (5, {}, [])
    assert facts.fullest is not None
    assert facts.fullest[1] == max(d.size_bytes / d.capacity_bytes for d in known.devices)
    assert "Yes, all 5" in text_of(known, tmp_path / "report.html")


def test_a_lost_device_and_one_that_is_too_large(known: Summary, tmp_path: Path) -> None:
    first, *rest = known.devices
    large = first.model_copy(update={"size_bytes": first.capacity_bytes + 1})
    cluster = known.clusters[0].model_copy(update={"lost": {"cam-9": "no answer"}})
    clusters = [cluster, *known.clusters[1:]]
    bad = known.model_copy(update={"devices": [large, *rest], "clusters": clusters})
    facts = Facts.of(bad)
    assert (facts.expected, list(facts.lost), facts.too_large) == (6, ["cam-9"], [first.name])
    text = text_of(bad, tmp_path / "report.html")
    assert "No: 4 of 6" in text
    assert "cam-9" in text


def test_devices_of_a_lost_cluster_are_missed(known: Summary) -> None:
    sent = {**known.sent, "far-1": {}, "far-2": {}}
    assert Facts.of(known.model_copy(update={"sent": sent})).expected == 7


def test_ours_stands_beside_the_reference_a_linear_header_and_ten_lines(
    known: Summary, tmp_path: Path
) -> None:
    rivals = {rival.name: rival.accuracy for rival in Facts.of(known).rivals}
    assert list(rivals) == ["ours", "whole", "linear", "alone", "averaged"]
    assert rivals["ours"] == pytest.approx(np.mean([d.accuracy for d in known.devices]))
    assert (rivals["whole"], rivals["alone"], rivals["averaged"]) == (0.9, 0.5, 0.4)
    text = text_of(known, tmp_path / "report.html")
    assert re.search(r"the whole reference , 1.22 MB\s+90.0 %", text)
    unknown = make_summary(1)
    assert [rival.name for rival in Facts.of(unknown).rivals] == ["ours", "linear"]
    assert "was not measured" in text_of(unknown, tmp_path / "unknown.html")


def test_an_upload_above_the_raw_data_says_why(known: Summary, tmp_path: Path) -> None:
    traffic = known.traffic.model_copy(
        update={"device_up_bytes": 6000, "raw_data_bytes": 5000, "upload_ratio": 1.2}
    )
    more = known.model_copy(update={"traffic": traffic})
    # 40 samples on each of 5 devices are 5,000 bytes: 25 each; 1,200 bytes went up from each.
    assert Facts.of(more).even_at == 48
    text = text_of(more, tmp_path / "more.html")
    assert "not on how many samples" in text
    assert "less from about 48" in text
    assert Facts.of(known).even_at is None
    assert "not on how many samples" not in text_of(known, tmp_path / "less.html")


def test_classes_add_up_over_devices(known: Summary) -> None:
    names, counts = confusion(known.devices)
    rows = class_facts(known.devices)
    assert [row.name for row in rows] == names
    for row, told in zip(rows, counts, strict=True):
        assert row.test == sum(told)
        assert row.right == told[names.index(row.name)]
        assert row.devices == sum(row.name in device.classes for device in known.devices)
    pairs = confusions(names, counts)
    assert sum(n for *_, n in pairs) == sum(row.test - row.right for row in rows)
    assert [n for *_, n in pairs] == sorted((n for *_, n in pairs), reverse=True)


def test_a_class_that_a_device_never_answers_is_wrong(tmp_path: Path) -> None:
    device = make_summary(1).devices[0]
    own = {"cat": ClassSummary(train=0, answers={"dog": 2}), "dog": ClassSummary(train=5)}
    (cat, dog) = class_facts([device.model_copy(update={"classes": own})])
    assert (cat.devices, cat.test, cat.right, cat.taken_for) == (0, 2, 0, ("dog", 2))
    assert (dog.devices, dog.test, dog.taken_for) == (1, 0, None)


def test_examples_are_shown_when_they_are_given(known: Summary, tmp_path: Path) -> None:
    name = known.devices[0].name
    hostile = Example("cat", "<script>dog", text="a <b>bold</b> text")
    image = Example("cat", "cat", image=matrix_picture([[1.0]], "#000000"))
    text = text_of(known, tmp_path / "with.html", examples={name: [hostile, image]})
    assert "a <b>bold</b> text" in text
    assert "<script>dog" in text
    assert "Some of its test samples" not in text_of(known, tmp_path / "without.html")


def test_a_large_fleet_is_aggregated_and_its_page_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(measured(make_summary(2100, 2100), 150), [], path)
    assert path.stat().st_size < 3e6
    page = Page(path.read_text())
    assert sum(tag == "details" for tag, _ in page.tags) < MOST_LISTED
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 3  # two similarities and the confusions
    assert all(a.get("alt") for a in pictures)
    assert "The 4,000 with the lowest accuracies, of 4,200" in page.text


def test_many_clusters_stay_small_too(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(measured(make_summary(*[1] * 100)), [], path)
    assert path.stat().st_size < 3e6
    assert "of 100 clusters" in Page(path.read_text()).text


def test_of_a_cluster_that_hears_its_near_devices_alone_there_is_no_matrix(tmp_path: Path) -> None:
    summary = make_summary(300)
    near = {"similarity": [[0.5, 0.5]] * 299 + [[1.0]], "columns": [[0, 1]] * 299 + [[299]]}
    cluster = summary.clusters[0].model_copy(update=near)
    write_report(summary.model_copy(update={"clusters": [cluster]}), [], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "On average a device listens to 2.0" in text
    assert "a darker pixel is a larger weight" not in text


def test_of_a_large_fleet_the_worst_are_described() -> None:
    devices = measured(make_summary(MOST_LISTED + 1)).devices
    assert listed_devices(devices[:-1]) == devices[:-1]
    listed = listed_devices(devices)
    assert max(d.accuracy for d in listed) <= min(d.accuracy for d in devices if d not in listed)


def test_a_picture_averages_blocks() -> None:
    values = np.random.default_rng(0).random((2 * MOST_PIXELS, 2 * MOST_PIXELS))
    small = shrunk(values)
    assert small.shape == (MOST_PIXELS, MOST_PIXELS)
    assert small[3, 5] == pytest.approx(values[6:8, 10:12].mean())
    assert small.mean() == pytest.approx(values.mean())
    assert np.array_equal(shrunk(values[:9, :9]), values[:9, :9])


def test_every_word_with_an_explanation_is_in_the_list(known: Summary, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(known, [], path)
    page = Page(path.read_text())
    terms = [a for tag, a in page.tags if a.get("class") == "term"]
    assert len({a["href"] for a in terms}) > 8
    assert all(a["title"] in {entry.text for entry in GLOSSARY.values()} for a in terms)
    assert {a["href"][1:] for a in terms} <= {a.get("id") for _, a in page.tags}  # type: ignore[index]


# --- colours: Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color
# vision deficiency", IEEE TVCG 15(6), 2009, severity 1.0 ---

VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [CLUSTER_COLORS, DARK_COLORS], ids=["light", "dark"])
def test_colours_differ_for_every_reader(palette: tuple[str, ...], vision: str) -> None:
    seen = [lab(VISION[vision] @ linear(color)) for color in palette]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 23


@pytest.mark.parametrize(
    ("palette", "surface", "least"),
    [(CLUSTER_COLORS, "#fefefe", 2.9), (DARK_COLORS, "#1a2029", 4.5)],
    ids=["light", "dark"],
)
def test_colours_stand_out_from_the_page(
    palette: tuple[str, ...], surface: str, least: float
) -> None:
    def luminance(color: str) -> float:
        return float(TO_XYZ[1] @ linear(color)) + 0.05

    for color in palette:
        high, low = sorted((luminance(color), luminance(surface)), reverse=True)
        assert high / low > least
