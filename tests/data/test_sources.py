"""Readers: the right samples, or one clear error, whatever the files hold."""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.classes import chosen_classes, class_names
from acme_fleet.data.datasets import Source, load_own, load_source
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.partition import distribute
from acme_fleet.data.raw import Columns, RawSamples
from acme_fleet.data.sources.files import read_arrays, read_parquet
from acme_fleet.data.sources.folder import read_folders
from acme_fleet.data.text import read_json_lines
from acme_fleet.errors import FleetError
from acme_fleet_runtime.images import open_image

COLUMNS = Columns("image", "label")
OWNED = Columns("image", "label", "who")
NAMES = ["ant", "bee", "cat", "dog"]


def image(value: int, side: int = 4) -> bytes:
    """A PNG whose pixels all say which sample it is."""
    file = BytesIO()
    Image.new("L", (side, side), value).save(file, "PNG")
    return file.getvalue()


def table(path: Path, labels: Any, about: dict[str, Any] | None = None, **columns: Any) -> Path:
    pixels = pa.array([image(n) for n in range(len(labels))], pa.binary())
    content = pa.table({"image": pixels, "label": labels, **columns})
    metadata = None if about is None else {k: json.dumps(v) for k, v in about.items()}
    pq.write_table(content.replace_schema_metadata(metadata), path)
    return path


def features(names: Any) -> dict[str, Any]:
    return {"huggingface": {"info": {"features": {"label": {"names": names}}}}}


def npz(path: Path, labels: Any, **more: Any) -> Path:
    images = (
        np.zeros((len(labels), 4, 4), np.uint8) + np.arange(len(labels), dtype="u1")[:, None, None]
    )
    np.savez(path, **{"images": images, "labels": np.asarray(labels), **more})
    return path


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def called(raw: RawSamples) -> list[str]:
    """Each sample's class by name."""
    names = class_names(raw)
    if raw.names is None:
        return [str(label) for label in raw.labels.tolist()]
    return [names[label] for label in raw.labels.tolist()]


# --- several files, one truth -----------------------------------------------------------------


@pytest.mark.parametrize("turn", [1, -1])
def test_parquet_files_with_names_in_another_order_are_matched_by_name(tmp_path: Path, turn: int):
    files = [
        table(tmp_path / "a.parquet", [0, 1, 2], features(NAMES)),
        table(tmp_path / "b.parquet", [0, 1, 2], features(NAMES[::-1])),
    ][::turn]
    raw = read_parquet(files, COLUMNS, "data.train")
    assert called(raw) == (NAMES[:3] + NAMES[:0:-1] if turn == 1 else NAMES[:0:-1] + NAMES[:3])
    assert raw.names == NAMES


@pytest.mark.parametrize("turn", [1, -1])
def test_numbers_without_names_count_in_the_names_of_the_other_files(tmp_path: Path, turn: int):
    files = [
        table(tmp_path / "a.parquet", [0, 1], {"pandas": {}}),
        table(tmp_path / "b.parquet", [2, 3], features(NAMES)),
    ][::turn]
    raw = read_parquet(files, COLUMNS, "data.train")
    assert called(raw) == (NAMES if turn == 1 else NAMES[2:] + NAMES[:2])
    third = table(tmp_path / "c.parquet", [0, 1], features(NAMES[::-1]))
    with pytest.raises(FleetError, match=r"a\.parquet has numbers without class names"):
        read_parquet([*files, third], COLUMNS, "data.train")
    text = table(tmp_path / "d.parquet", ["ant", "bee"])
    with pytest.raises(FleetError, match=r"d\.parquet does not say which classes they mean"):
        read_parquet([files[0], text] if turn == 1 else [text, files[1]], COLUMNS, "data.train")


def test_text_and_declared_names_are_one_list(tmp_path: Path):
    files = [
        npz(tmp_path / "a.npz", ["dog", "ant"]),
        npz(tmp_path / "b.npz", [1, 0], label_names=np.array(["cat", "bee"])),
        npz(tmp_path / "c.npz", [b"bee", b"owl"], label_names=np.array([b"owl", b"bee"])),
    ]
    for order in (files, files[::-1]):
        raw = read_arrays(order, COLUMNS, "data.train")
        assert sorted(called(raw)) == ["ant", "bee", "bee", "cat", "dog", "owl"]
        assert raw.names == ["ant", "bee", "cat", "dog", "owl"]


@given(st.data())
@settings(max_examples=25)
def test_the_order_of_files_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder = tmp_path_factory.getbasetemp()
    paths = []
    for number in range(data.draw(st.integers(2, 4))):
        names = data.draw(st.none() | st.permutations(NAMES))
        labels = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
        about = None if names is None else features(names)
        paths.append(table(folder / f"{number}.parquet", labels, about))

    def outcome(order: list[Path]) -> Any:
        try:
            raw = read_parquet(order, COLUMNS, "data.train")
        except FleetError:
            return "refused"
        return sorted(called(raw)), raw.names

    assert outcome(paths) == outcome(data.draw(st.permutations(paths)))


def test_files_that_contradict_themselves(tmp_path: Path):
    about = {**features(NAMES), "label_names": None}
    path = table(tmp_path / "a.parquet", [0], about)
    metadata = {b"huggingface": json.dumps(features(NAMES)["huggingface"]), b"label_names": b"b,c"}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(FleetError, match="`huggingface` and `label_names` disagree"):
        read_parquet([path], COLUMNS, "data.train")
    data = Data(source="arrays", train=[npz(tmp_path / "x.npz", [0, 1])] * 2)
    with pytest.raises(FleetError, match=r"x\.npz is named twice"):
        load_source(data)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"huggingface": [1]}, "has a list where 'info'"),
        ({"huggingface": {"info": [1]}}, "has a list where 'features'"),
        ({"huggingface": {"info": {"features": [1]}}}, "has a list where 'label'"),
        (features("abc"), "no list of text"),
        (features([None, "a"]), "name of class 0 is missing"),
        (features(["a", True]), "name of class 1 True is of type bool"),
        (features(["a", "a"]), "two classes have the name 'a'"),
        (features(["a"]), "label 1 has no name"),
        (features({"0": "a", "2": "b"}), "not numbered from 0"),
    ],
)
def test_metadata_of_another_shape(tmp_path: Path, about: dict[str, Any], words: str):
    with pytest.raises(FleetError, match=words):
        read_parquet([table(tmp_path / "a.parquet", [0, 1], about)], COLUMNS, "data.train")


def test_metadata_that_is_no_json(tmp_path: Path):
    for content in (b"{oops", b"[" * 10**5, b"\xff", b'{"a": ' + b"9" * 5000 + b"}"):
        path = table(tmp_path / "a.parquet", [0, 1])
        metadata = {b"huggingface": content}
        pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
        with pytest.raises(FleetError, match=r"a\.parquet: its metadata `huggingface`: "):
            read_parquet([path], COLUMNS, "data.train")


def test_names_by_number_and_numbers_as_names(tmp_path: Path):
    by_number = table(tmp_path / "a.parquet", [1, 0], features({"0": "ant", "1": "bee"}))
    assert called(read_parquet([by_number], COLUMNS, "x")) == ["bee", "ant"]
    numbers = table(tmp_path / "b.parquet", [1, 0], features([7, 5]))
    assert called(read_parquet([numbers], COLUMNS, "x")) == ["5", "7"]
    nothing = table(tmp_path / "c.parquet", [1, 0], {"huggingface": {"info": None}})
    assert read_parquet([nothing], COLUMNS, "x").names is None


# --- labels and names -------------------------------------------------------------------------


def test_labels_with_gaps_make_no_phantom_classes(tmp_path: Path):
    train = npz(tmp_path / "a.npz", [1, 5, 10] * 6)
    test = npz(tmp_path / "b.npz", [10, 1])
    data = Data(source="arrays", train=train, test=test)
    source = load_source(data)
    assert source.classes == ["1", "5", "10"]
    assert torch.bincount(source.train.labels).tolist() == [6, 6, 6]
    assert source.test.labels.tolist() == [2, 0]
    own = load_own(npz(tmp_path / "c.npz", [5, 10]), data, source, "d")
    assert own.labels.tolist() == [1, 2]
    with pytest.raises(FleetError, match="class 2 is not known"):
        load_own(npz(tmp_path / "d.npz", [2, 5]), data, source, "d")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([True, False], "of type bool"),
        ([0.0, 1.0], "of type float"),
        ([1, None], "label is missing"),
        (["a", None], "label is missing"),
        ([[1], [2]], "of type list"),
        ([b"\xff", b"a"], "not UTF-8"),
        ([0, -1], "negative"),
        ([2**63, 1], "more than 64 bits"),
    ],
)
def test_labels_that_are_neither_numbers_nor_text(tmp_path: Path, labels: list[Any], words: str):
    kind = pa.uint64() if 2**63 in labels else None
    path = table(tmp_path / "a.parquet", pa.array(labels, kind))
    with pytest.raises(FleetError, match=words):
        read_parquet([path], COLUMNS, "data.train")


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "a\nb", "\x1b[2J", "x" * 201, "\ud83d"])
def test_names_that_no_message_carries_are_refused_before_work(name: str):
    with pytest.raises(FleetError, match=r"data\.classes: .* is no class name"):
        chosen_classes(None, ["a", name])
    assert chosen_classes(["a", "b"], ["a", "b", name]) == ["a", "b"]


def test_names_of_all_languages_are_fine():
    names = ["é" * 200, "می\u200cخواهم", "猫", "😀", "non\u00a0breaking"]
    assert chosen_classes(None, names) == names


# --- owners -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_owners_that_are_numbers_are_ordered_as_numbers(tmp_path: Path, order: int):
    owners = [10, 2, 1] * 40
    rows = [{"text": "a b", "label": "xy"[n % 2], "who": who} for n, who in enumerate(owners)]
    raw = read_json_lines([lines(tmp_path / "a.jsonl", rows)], Columns("text", "label", "who"), "x")
    assert raw.groups is not None
    assert np.unique(raw.groups).tolist() == [1, 2, 10]
    path = table(tmp_path / "a.parquet", [0, 1] * 60, who=owners[::order])
    fleet = Fleet.parse(
        {
            "data": {
                "source": "parquet",
                "train": str(path),
                "partition": {"scheme": "natural", "column": "who"},
            },
            "clusters": [
                {"name": "c", "devices": [{"name": f"d{i}", "storage": 5} for i in range(2)]}
            ],
        }
    )
    source = load_source(fleet.data)
    assert source.train_groups is not None
    held = distribute(fleet, source).private
    value = {who: set() for who in (1, 2, 10)}
    for number, who in enumerate(owners[::order]):
        value[who].add(round(number / 127.5 - 1, 4))
    for device, who in (("d0", 1), ("d1", 2)):
        pixels = held[device].train.inputs["pixel_values"][:, 0, 0, 0]
        assert {round(float(x), 4) for x in pixels} <= value[who]


@pytest.mark.parametrize(
    ("owners", "words"),
    [
        (["ann", None], "row 2: owner is missing"),
        ([1.0, float("nan")], "row 1: owner 1.0 is of type float"),
        ([float("nan"), 1.0], "row 1: owner is missing"),
        ([["a"], ["b"]], "row 1: owner .* is of type list"),
        ([{"a": 1}, {"a": 2}], "row 1: owner .* is of type dict"),
        ([True, False], "row 1: owner True is of type bool"),
        (["ann", " "], "row 2: the owner is an empty text"),
    ],
)
def test_owners_that_are_nobody(tmp_path: Path, owners: list[Any], words: str):
    path = table(tmp_path / "a.parquet", [0, 1], who=owners)
    with pytest.raises(FleetError, match=words):
        read_parquet([path], OWNED, "data.train")
    rows = [{"text": "a", "label": 1, "who": who} for who in owners]
    with pytest.raises(FleetError, match=words.replace("row", "line")):
        read_json_lines(
            [lines(tmp_path / "a.jsonl", rows)], Columns("text", "label", "who"), "data.train"
        )


def test_owners_of_two_kinds(tmp_path: Path):
    rows = [{"text": "a", "label": 1, "who": who} for who in (1, "1")]
    columns = Columns("text", "label", "who")
    with pytest.raises(FleetError, match=r"owner '1' is text, that of .*line 1 is a number"):
        read_json_lines([lines(tmp_path / "a.jsonl", rows)], columns, "data.train")
    files = [lines(tmp_path / f"{n}.jsonl", [row]) for n, row in enumerate(rows)]
    with pytest.raises(FleetError, match="owners of type"):
        read_json_lines(files, columns, "data.train")


# --- arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_come_first(tmp_path: Path, channels: int):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 5, 5, channels), np.uint8)
    last = npz(tmp_path / "a.npz", [0, 1] * 4, images=pixels)
    first = npz(tmp_path / "b.npz", [0, 1] * 4, images=pixels.transpose(0, 3, 1, 2))
    expected, got = (load_source(Data(source="arrays", train=x)) for x in (last, first))
    assert torch.equal(expected.train.inputs["pixel_values"], got.train.inputs["pixel_values"])
    assert got.train.inputs["pixel_values"].shape[1:] == (channels, 5, 5)
    both = read_arrays([last, first], COLUMNS, "x")
    assert np.array_equal(both.items[:8], both.items[8:])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 3, 5, 3), "first or last"),
        ((2, 1, 5, 3), "first or last"),
        ((2, 3, 3, 3), "first or last"),
        ((2, 5, 5, 2), "no axis of 1 or 3 channels"),
        ((2, 5, 5, 4), "no axis of 1 or 3 channels"),
        ((2, 4, 5, 5), "no axis of 1 or 3 channels"),
        ((2, 5, 5, 5), "no axis of 1 or 3 channels"),
        ((2, 0, 5), "no pixels"),
    ],
)
def test_shapes_without_one_meaning(tmp_path: Path, shape: tuple[int, ...], words: str):
    path = npz(tmp_path / "a.npz", [0, 1], images=np.zeros(shape, np.uint8))
    with pytest.raises(FleetError, match=words):
        read_arrays([path], COLUMNS, "data.train")


def test_sixteen_bits_and_mixed_types_are_refused(tmp_path: Path):
    deep = npz(tmp_path / "a.npz", [0, 1] * 4, images=np.full((8, 4, 4), 4000, np.uint16))
    with pytest.raises(FleetError, match=r"0\.\.255, found 4000"):
        load_source(Data(source="arrays", train=deep))
    plain = npz(tmp_path / "b.npz", [0, 1] * 4)
    floats = npz(tmp_path / "c.npz", [0, 1] * 4, images=np.full((8, 4, 4), 0.5))
    with pytest.raises(FleetError, match=r"images of type u, .*c\.npz f"):
        load_source(Data(source="arrays", train=[plain, floats]))


def test_arrays_that_need_a_pickle(tmp_path: Path):
    path = npz(tmp_path / "a.npz", [0, 1], who=np.array(["a", None], dtype=object))
    with pytest.raises(FleetError, match=r"a\.npz is not a readable \.npz file"):
        read_arrays([path], OWNED, "data.train")
    assert len(read_arrays([path], COLUMNS, "data.train").labels) == 2


# --- image files ------------------------------------------------------------------------------


def folders(root: Path, each: int = 3) -> Path:
    for number, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(image(40 * number + i))
    return root


def test_images_are_known_by_their_content(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = folders(tmp_path / "d")
    for name, kind in (
        *(("a.jfif", "JPEG"), ("b.JPG", "JPEG"), ("c.tif", "TIFF"), ("d.webp", "WEBP")),
        *(("no_suffix", "PNG"), ("e.dat", "GIF")),
    ):
        Image.new("L", (4, 4)).save(root / "ant" / name, kind)
    for litter in (".hidden.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "ant" / litter).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    with caplog.at_level(logging.WARNING):
        raw = read_folders([root], "data.train")
    assert called(raw).count("ant") == 9
    assert raw.names == ["ant", "bee"]
    assert not caplog.records
    (root / "ant" / "notes.txt").write_text("hello")
    (root / "labels.csv").write_text("a,b")
    read_folders([root], "data.train")
    assert "left out, as they are no images: " in caplog.text
    assert "notes.txt" in caplog.text
    assert "labels.csv" in caplog.text


def _link(root: Path) -> None:
    (root / "ant" / "z.png").symlink_to("nowhere.png")


def _loop(root: Path) -> None:
    (root / "ant" / "z").symlink_to(root / "ant" / "z")


def _pipe(root: Path) -> None:
    os.mkfifo(root / "ant" / "z.png")


def _socket(root: Path) -> None:
    here = Path.cwd()
    os.chdir(root / "ant")  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("z.png")
    os.chdir(here)


def _folder(root: Path) -> None:
    (root / "ant" / "z.png").mkdir()


def _beside(root: Path) -> None:
    (root / "z.png").write_bytes(image(1))


def _broken(root: Path) -> None:
    (root / "ant" / "z.heic").write_bytes(b"no image")


def _half(root: Path) -> None:
    Image.effect_noise((64, 64), 50).save(root / "ant" / "z.png")
    content = (root / "ant" / "z.png").read_bytes()
    (root / "ant" / "z.png").write_bytes(content[: len(content) // 2])


def _bomb(root: Path) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (root / "ant" / "z").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\x09IDAT")


def _sixteen_bits(root: Path) -> None:
    Image.new("I;16", (4, 4)).save(root / "ant" / "z.png")


def _undecodable(root: Path) -> None:
    (root / os.fsdecode(b"caf\xe9")).mkdir()
    (root / os.fsdecode(b"caf\xe9") / "a.png").write_bytes(image(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_link, r"ant/z\.png is a link to nothing"),
        (_loop, r"ant/z: its links form a loop|ant/z is a link to nothing"),
        (_pipe, r"ant/z\.png is no regular file"),
        (_socket, r"ant/z\.png is no regular file"),
        (_folder, r"ant holds the folder z\.png"),
        (_beside, r"z\.png lies beside the class folders"),
        (_broken, r"cannot read .*ant/z\.heic as an image: Pillow knows no such format"),
        (_half, r"cannot read .*ant/z\.png as an image: "),
        (_bomb, r"cannot read .*ant/z as an image: "),
        (_sixteen_bits, "more than 8 bits a channel"),
        (_undecodable, r"class folder .*caf\? is not UTF-8"),
    ],
)
def test_what_cannot_be_a_sample_is_named(
    tmp_path: Path, change: Callable[[Path], None], words: str
):
    root = folders(tmp_path / "d")
    change(root)
    with pytest.raises(FleetError, match=words):
        load_source(Data(source="images", train=root, image_size=4))


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("x" * 300, "the name is too long"),
        ("a\0b", "null"),
        ("nothing", "no such file or folder"),
        ("a.npz/b", "a part of the path is not a folder"),
    ],
)
@pytest.mark.parametrize("source", ["images", "arrays", "parquet"])
def test_paths_of_nothing(tmp_path: Path, train: str, words: str, source: Any):
    npz(tmp_path / "a.npz", [0, 1])
    with pytest.raises(FleetError, match=f"data.train: .*{words}"):
        load_source(Data(source=source, train=tmp_path / train))


def test_files_in_the_place_of_folders_and_the_reverse(tmp_path: Path):
    with pytest.raises(FleetError, match="is no folder"):
        load_source(Data(source="images", train=npz(tmp_path / "a.npz", [0, 1])))
    with pytest.raises(FleetError, match="is no regular file"):
        load_source(Data(source="arrays", train=tmp_path))
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(FleetError, match="is no regular file"):
        load_source(Data(source="arrays", train=tmp_path / "pipe.npz"))


def _jpeg(tag: int, kind: int, count: int, value: bytes, orientation: int) -> bytes:
    """A JPEG of 12 × 8 whose EXIF has an orientation and one more tag."""
    entries = sorted([(274, 3, 1, struct.pack("<HH", orientation, 0)), (tag, kind, count, value)])
    exif = b"II*\0" + struct.pack("<IH", 8, 2)
    exif += b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries) + bytes(4) + b"\xff" * 64
    file = BytesIO()
    Image.new("RGB", (12, 8)).save(file, "JPEG", exif=b"Exif\0\0" + exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("tag", "kind", "count"), [(305, 12, 1), (306, 5, 1), (282, 1, 3), (283, 8, 8)]
)
def test_only_the_orientation_of_exif_matters(tag: int, kind: int, count: int, orientation: int):
    content = _jpeg(tag, kind, count, struct.pack("<I", 38), orientation)
    assert open_image(content, "x").size == ((12, 8) if orientation == 1 else (8, 12))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(0, 10))
def test_every_orientation_in_every_format(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    array = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(array).save(file, kind, exif=exif, **options)
    ours = np.asarray(open_image(file.getvalue(), "x"))
    theirs = ImageOps.exif_transpose(Image.open(BytesIO(file.getvalue())))
    assert np.array_equal(ours, np.asarray(theirs))


@given(st.binary(max_size=80), st.integers(0, 200))
@settings(max_examples=60)
def test_damaged_exif_and_images_raise_nothing_else(noise: bytes, place: int):
    content = _jpeg(305, 2, 4, b"abc\0", 6)
    for mutated in (content[:place] + noise + content[place + len(noise) :], noise):
        try:
            ImagePreprocessing.centred(4, 4, 3).pixel_values([open_image(mutated, "x")])
        except FleetError:
            continue


def test_an_animation_is_its_first_frame_and_transparency_lies_on_white():
    file = BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    colour, grey = (ImagePreprocessing.centred(4, 4, channels) for channels in (3, 1))
    assert colour.pixel_values([open_image(file.getvalue(), "x")])[0, :, 0, 0].tolist() == [
        1,
        -1,
        -1,
    ]
    clear = BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "PNG")
    for rule in (colour, grey):
        assert rule.pixel_values([open_image(clear.getvalue(), "x")]).min() == 1


# --- JSON Lines -------------------------------------------------------------------------------

TEXT = Columns("text", "label")


def test_only_line_feeds_end_a_line(tmp_path: Path):
    told = ["a\u2028b", "c\x85d", "e\u2029f", "g\x0bh\x1ci"]
    rows = [
        json.dumps({"text": t, "label": 1}, ensure_ascii=n % 2 == 0) for n, t in enumerate(told)
    ]
    content = "\ufeff" + "\r\n".join([rows[0], "", " \t", *rows[1:]])
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    raw = read_json_lines([tmp_path / "a.jsonl"], TEXT, "x")
    assert raw.items.tolist() == told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a \\ud83d", "label": 1}', "'text' is no Unicode text"),
        ('{"text": "a", "label": "\\ud83d"}', "is not Unicode text"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "is no JSON: .*5000 digits"),
        ('{"text": "a", "label": ' + "9" * 50 + "}", "more than 64 bits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "a", "label": NaN}', "must be text or an integer"),
        ('{"text": "a", "label": Infinity}', "must be text or an integer"),
        ('{"text": "a", "label": true}', "must be text or an integer, and is true"),
        ('{"text": "a", "label": null}', "must be text or an integer"),
        ('{"text": "a", "label": "b"}', "is text, that of .*line 1 is a number"),
        ('{"text": "a", "text": "b", "label": 1}', "the key 'text' stands twice"),
        ('{"text": " ", "label": 1}', "'text' is empty"),
        ('{"text": "a\nb", "label": 1}', "is no JSON"),
    ],
)
def test_lines_that_make_no_sense_are_named(tmp_path: Path, line: str, words: str):
    first = '{"text": "a", "label": 0, "other": NaN}\n'
    (tmp_path / "a.jsonl").write_text(first + line, encoding="utf-8")
    with pytest.raises(FleetError, match=rf"(?s)x: .*a\.jsonl, line 2.*{words}"):
        read_json_lines([tmp_path / "a.jsonl"], TEXT, "x")


# --- round trips and noise --------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
_label = _text.map(functools.partial(unicodedata.normalize, "NFC"))
_owner = _label.map(lambda text: " ".join(text.split())).filter(bool)
_rows = st.lists(st.tuples(_text.filter(str.strip), _label, _owner), min_size=1, max_size=8)


@given(_rows, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_texts_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    ascii_only: bool,
    end: str,
    last: bool,
):
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    told = [dict(zip(("text", "label", "who"), row, strict=True)) for row in rows]
    content = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in told)
    path.write_bytes((content + end * last).encode())
    raw = read_json_lines([path], Columns("text", "label", "who"), "x")
    assert raw.groups is not None
    got = zip(raw.items.tolist(), called(raw), raw.groups.tolist(), strict=True)
    assert list(got) == rows


@given(_rows, st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_tables_and_arrays_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], as_bytes: bool
):
    folder = tmp_path_factory.getbasetemp()
    labels, owners = [row[1] for row in rows], [row[2] for row in rows]
    stored = [label.encode() for label in labels] if as_bytes else labels
    raw = read_parquet([table(folder / "r.parquet", stored, who=owners)], OWNED, "x")
    assert raw.groups is not None
    assert (called(raw), raw.groups.tolist()) == (labels, owners)
    values = [int(np.asarray(open_image(content, "x"))[0, 0]) for content in raw.items]
    assert values == list(range(len(rows)))
    numbers = [abs(hash(label)) % 1000 for label in labels]
    raw = read_arrays([npz(folder / "r.npz", numbers, who=np.array(numbers))], OWNED, "x")
    assert raw.groups is not None
    assert (raw.labels.tolist(), raw.groups.tolist()) == (numbers, numbers)
    assert raw.items[:, 0, 0].tolist() == list(range(len(rows)))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(
    st.binary(max_size=40)
    | st.lists(
        st.dictionaries(st.sampled_from(["text", "label", "who", "x"]), _json), max_size=3
    ).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
def test_no_lines_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    try:
        raw = read_json_lines([path], Columns("text", "label", "who"), "x")
    except FleetError as error:
        told = str(error)
        if "any.jsonl" not in told:
            raise AssertionError(told) from error
        return
    assert all(isinstance(text, str) and text.strip() for text in raw.items)


@given(st.sampled_from(["npz", "parquet"]), st.integers(0, 2000), st.binary(min_size=1, max_size=6))
@settings(max_examples=60)
def test_no_damaged_file_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: int, noise: bytes
):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    if kind == "npz":
        npz(path, [0, 1, 2], label_names=np.array(NAMES), who=np.array(["a", "b", "c"]))
    else:
        table(path, [0, 1, 2], features(NAMES), who=["a", "b", "c"])
    content = path.read_bytes()
    place %= len(content)
    path.write_bytes(content[:place] + noise + content[place + len(noise) :])
    try:
        read: Any = read_arrays if kind == "npz" else read_parquet
        raw = read([path], OWNED, "x")
    except FleetError:
        return
    assert len(raw.items) == len(raw.labels)


_columns = st.sampled_from(
    [
        pa.array([0, 1]),
        pa.array([0.5, None]),
        pa.array(["a", "b"]),
        pa.array(["a", None]),
        pa.array([b"a", b"\xff"]),
        pa.array([[1], [2]]),
        pa.array([{"bytes": image(0), "path": None}, {"bytes": None, "path": "x"}]),
        pa.array([{"bytes": image(0)}, {"bytes": image(0)}]),
        pa.array([image(0), image(1)]),
        pa.array([image(0), None]),
        pa.array([True, False]),
        pa.array([1, 2], pa.timestamp("ns")),
        pa.array([1, 2], pa.duration("ns")),
        pa.array([1, 2], pa.decimal128(5)),
        pa.array(["x", "y"]).dictionary_encode(),
        pa.nulls(2),
    ]
)


@given(_columns, _columns, _columns, _json)
@settings(max_examples=120)
def test_no_table_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, item: Any, label: Any, who: Any, about: Any
):
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    metadata = {"huggingface": json.dumps(about)}
    content = pa.table({"image": item, "label": label, "who": who})
    pq.write_table(content.replace_schema_metadata(metadata), path)
    try:
        raw = read_parquet([path], OWNED, "x")
    except FleetError:
        return
    assert len(raw.items) == 2


def test_own_and_test_data_by_name(tmp_path: Path):
    """A test class that training lacks, and owners of another kind, are named."""
    train = table(tmp_path / "a.parquet", [0, 1] * 6, features(["ant", "bee"]), who=[1, 2] * 6)
    test = table(tmp_path / "b.parquet", [0, 1], features(["cow", "ant"]), who=[1, 2])
    with pytest.raises(FleetError, match=r"data\.test: class cow is not known"):
        load_source(Data(source="parquet", train=train, test=test))
    natural = {"scheme": "natural", "column": "who"}
    text = table(tmp_path / "c.parquet", [0, 1], features(["bee", "ant"]), who=["1", "2"])
    settings_ = {"source": "parquet", "train": train, "test": text, "partition": natural}
    fleet = Fleet.parse(
        {
            "data": {**settings_, "train": str(train), "test": str(text)},
            "clusters": [{"name": "c", "devices": [{"name": "d", "storage": 5}]}],
        }
    )
    source: Source = load_source(fleet.data)
    assert source.test.labels.tolist() == [1, 0]
    with pytest.raises(FleetError, match="numbers in one of"):
        distribute(fleet, source)
