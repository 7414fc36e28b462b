"""Folders of a clone: what is measured is kept beside the code that measured it."""

from pathlib import Path

RESEARCH = Path(__file__).parents[3]
PAGE, RESULTS, CONFIGS = (RESEARCH / name for name in ("README.md", "results", "configs"))
CANDIDATES = RESULTS / "candidates.json"
EXAMPLES = RESEARCH.parent / "examples"
