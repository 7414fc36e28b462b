"""The shape of the code: who may import whom, what is public, and what no module does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import acme_fleet

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "src").rglob("*.py"))


def test_import_contracts() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_public_names_exist() -> None:
    for name in acme_fleet.__all__:
        assert callable(getattr(acme_fleet, name))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        acme_fleet.nonsense  # noqa: B018


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_modules_are_silent_and_unpickle_nothing(module: Path) -> None:
    text = module.read_text()
    assert not re.search(r"^\s*print\(", text, flags=re.MULTILINE)
    assert not re.search(r"import pickle|allow_pickle=True", text)
    assert "torch.load" not in text
