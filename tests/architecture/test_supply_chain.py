"""A wheel can be made again, and every package that it needs has a licence that is known."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_BUILD = """
import sys
from hatchling.build import build_wheel
print(build_wheel(sys.argv[1]))
"""


@pytest.mark.parametrize("tree", [".", "runtime"])
def test_the_wheel_is_the_same_bytes_twice(tree: str, tmp_path: Path) -> None:
    """At another time, in another umask and zone, with another order of hashes."""
    pytest.importorskip("hatchling")
    digests = set()
    for number, (mask, zone) in enumerate([(0o022, "UTC"), (0o077, "Asia/Tokyo")]):
        out = tmp_path / str(number)
        out.mkdir()
        told = subprocess.run(
            [sys.executable, "-c", _BUILD, out],
            cwd=_ROOT / tree,
            env={**os.environ, "TZ": zone, "PYTHONHASHSEED": str(number)},
            umask=mask,
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0, told.stderr
        wheel = out / told.stdout.splitlines()[-1]
        digests.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_every_pinned_package_has_its_licence_in_the_list() -> None:
    pinned = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (_ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    rows = re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| ([^|]+) \|$", _licences(), re.MULTILINE)
    listed = {name.lower().replace("_", "-"): licence.strip() for name, _, licence in rows}
    assert pinned == listed.keys() - {"package"}
    unknown = [name for name, licence in listed.items() if licence in ("", "unknown")]
    assert not unknown
    copyleft = [name for name, licence in listed.items() if re.search(r"\bA?GPL", licence)]
    assert not copyleft, "a package whose licence would bind what uses it"


def _licences() -> str:
    return (_ROOT / "docs" / "licences.md").read_text()
