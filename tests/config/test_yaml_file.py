"""YAML that says two things at once is refused, with the key and the line."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.shorthand import profiles_of, read_constants
from acme_fleet.config.yaml_file import read_yaml
from acme_fleet.errors import FleetError
from acme_fleet.network.hosts.site import Site

FLEET = """\
name: t
seed: 1
clusters:
- name: c
  devices:
  - name: d
    storage: 5 MB
    energy:
      power_w: 2
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "f.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("added", "line", "key"),
    [
        (FLEET + "seed: 2\n", 10, "seed"),
        (FLEET + "clusters: []\n", 10, "clusters"),
        (FLEET.replace("  devices:", "  name: e\n  devices:"), 5, "name"),
        (FLEET.replace("    energy:", "    storage: 1 MB\n    energy:"), 8, "storage"),
        (FLEET + "      power_w: 3\n", 10, "power_w"),
        (FLEET + "data: {source: digits, source: digits}\n", 10, "source"),
        (FLEET + 'data: {source: digits, "source": digits}\n', 10, "source"),
    ],
)
def test_a_key_stands_once_at_every_level(tmp_path: Path, added: str, line: int, key: str):
    path = written(tmp_path, added)
    with pytest.raises(FleetError, match=f"line {line}: the key {key} stands twice, first in line"):
        Fleet.from_yaml(path)


def test_the_rule_holds_for_every_yaml_file(tmp_path: Path):
    path = written(tmp_path, "energy:\n  latency_s: 1\n  latency_s: 2\n")
    with pytest.raises(FleetError, match="line 3: the key latency_s stands twice"):
        read_constants(path)
    path = written(tmp_path, "role: device\nrole: edge\n")
    with pytest.raises(FleetError, match="line 2: the key role stands twice"):
        Site.from_yaml(path)
    path = written(tmp_path, "device_types:\n  a: b\n  a: c\n")
    with pytest.raises(FleetError, match="line 3: the key a stands twice"):
        profiles_of(path)
    with pytest.raises(FleetError, match="device_types: Input should be a valid dict"):
        profiles_of(written(tmp_path, "device_types: [a]"))


def test_merge_keys_may_be_overridden_once(tmp_path: Path):
    shared = "base: &base {storage: 1, name: a}\n"
    path = written(tmp_path, shared + "one:\n  <<: *base\n  name: b\n")
    assert read_yaml(path, "file")["one"] == {"storage": 1, "name": "b"}
    path = written(tmp_path, shared + "one:\n  <<: *base\n  <<: *base\n")
    with pytest.raises(FleetError, match="line 4: the key << stands twice"):
        read_yaml(path, "file")


@pytest.mark.parametrize("merge", ["", "<<: "])
def test_aliases_do_not_multiply(tmp_path: Path, merge: str):
    lines = ["a0: &a0 {x0: 1, y0: 1}"]
    for n in range(1, 40):
        names = ", ".join([f"*a{n - 1}"] * 10)
        lines.append(f"a{n}: &a{n} " + (f"{{<<: [{names}]}}" if merge else f"[{names}]"))
    began = time.monotonic()
    with pytest.raises(FleetError, match=r"line \d+: aliases multiply to more than"):
        read_yaml(written(tmp_path, "\n".join(lines)), "file")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "an anchor contains itself"),
        ('a: "x\\0y"', "line 1: 'x\\?y' contains the character NUL"),
        ('{"train": "a\\u0000b.npz"}', "contains the character NUL"),
        ('a:\n- "\\ud83d"', "line 2: half of a surrogate pair"),
        ('"\\ud83d": 1', "half of a surrogate pair"),
        ("? [a, b]\n: 1", "a key is text or a number"),
        ("a: 1\n---\na: 2", "not valid YAML: expected a single document"),
        ("a:\n\tb: 1", "not valid YAML: .*cannot start any token"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("[" * 200 + "]" * 200, "more than 100 levels"),
        ("[" * 100_000, "not valid YAML: it is nested too deeply"),
        (b"a: caf\xe9", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_what_no_reader_can_mean(tmp_path: Path, text: str | bytes, words: str):
    with pytest.raises(FleetError, match=words) as told:
        read_yaml(written(tmp_path, text), "file")
    assert "\n" not in str(told.value)


def test_what_json_may_write_is_read(tmp_path: Path):
    path = written(tmp_path, '{"a": "\\ud83d\\ude00", "b": "\\u2028\\u0085"}'.encode("utf-8-sig"))
    assert read_yaml(path, "file") == {"a": "😀", "b": "\u2028\x85"}


def test_a_pipe_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(FleetError, match=r"pipe\.yaml: it is no regular file"):
        read_yaml(tmp_path / "pipe.yaml", "file")
    with pytest.raises(FleetError, match="the name is too long"):
        read_yaml(tmp_path / ("x" * 300), "file")
    with pytest.raises(FleetError, match="null"):
        read_yaml(Path("a\0b"), "file")


# PyYAML writes these line breaks as they are, and reads them as a space.
_letters = st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029")
_scalars = st.none() | st.booleans() | st.integers() | st.text(_letters)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=15,
)


@given(_values)
def test_what_yaml_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: object):
    if "\0" in repr(value) or "\\x00" in repr(value):
        return
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    assert read_yaml(path, "file") == value


@given(
    st.binary(max_size=60)
    | st.text(alphabet="a: -[]{}&*<>|#!?%@,'\"\n\t\\0un1.~=", max_size=80).map(str.encode)
    | st.tuples(st.integers(0, len(FLEET)), st.text(max_size=4)).map(
        lambda x: (FLEET[: x[0]] + x[1] + FLEET[x[0] :]).encode("utf-8", "surrogatepass")
    )
)
def test_no_file_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    for read in (Fleet.from_yaml, read_constants, Site.from_yaml, profiles_of):
        with suppress(FleetError):
            read(path)
