"""Write docs/licences.md: the licence of every package that constraints.txt pins.

``python docs/licences.py`` in an environment that has them; those that it lacks keep their line.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

_DOCS = Path(__file__).parent
_PAGE = _DOCS / "licences.md"
_HEAD = """# Licences of dependencies

What `constraints.txt` pins, with the licence that each package's own metadata states.
`python docs/licences.py` writes this page.

| package | version | licence |
|---|---|---|
"""


def licence(name: str) -> str:
    """The SPDX expression, the classifiers, or the first line of the licence's text."""
    told = metadata(name)
    if expression := told["License-Expression"]:
        return expression
    prefix = "License :: "
    found = [c.split(" :: ")[-1] for c in told.get_all("Classifier", []) if c.startswith(prefix)]
    specific = [each for each in found if each != "OSI Approved"]
    first = (told["License"] or "").strip().split("\n")[0][:60]
    return ", ".join(specific) or first or "unknown"


def main() -> None:
    """Write the page."""
    old = (
        re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", _PAGE.read_text(), re.M)
        if _PAGE.exists()
        else []
    )
    before = {name: told for name, _, told in old}
    rows = []
    for line in (_DOCS.parent / "constraints.txt").read_text().splitlines():
        name, pinned, version = line.partition("==")
        if not pinned:
            continue
        try:
            told = licence(name)
        except PackageNotFoundError:
            told = before.get(name, "unknown")
        rows.append(f"| {name} | {version} | {told} |")
    _PAGE.write_text(_HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
