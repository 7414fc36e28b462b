"""Coverage-guided inputs for one reader (atheris): ``python tests/fuzz/fuzz.py NAME SECONDS``.

An input that breaks the reader is written to the working directory as ``crash-…``: put it into the
corpus once the reader is mended, where every run of the tests tries it.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from pathlib import Path

import atheris

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
with atheris.instrument_imports(include=["acme_fleet", "acme_fleet_runtime"]):
    from targets import TARGETS


def main(name: str, seconds: str) -> None:
    """Fuzz one reader; what is found new is kept in a folder that git does not know."""
    found = Path("fuzz") / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=20", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *options, str(found), str(_HERE / "corpora" / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
