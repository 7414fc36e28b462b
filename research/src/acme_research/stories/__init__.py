"""One module for each table or figure of the paper, with its ``STORY``."""

import ast
from pathlib import Path

NAMES = (
    *("fig1", "table1", "fig7a", "fig7b", "fig8"),
    *("fig9", "fig10", "fig11", "fig12", "fig13", "clinc150"),
    *("stratos-mahjong", "stratos-words", "stratos-switch"),
)


def module_of(name: str) -> str:
    """The module of a story in this package."""
    return name.replace("-", "_")


def read_stories() -> dict[str, str]:
    """Names of all stories, each with the first line of its file; none is imported."""
    folder = Path(__file__).parent
    texts = {name: (folder / f"{module_of(name)}.py").read_text() for name in NAMES}
    docs = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}
