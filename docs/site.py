"""Puts into the site of ``mkdocs.yml`` those pages of the clone that are not in ``docs/``.

References in docstrings lose the marks of Sphinx, which mkdocstrings shows as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_PAGES = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("examples/README.md", "research/README.md"),
)
_FIGURES = "research/results/*-small.*"
_HERE = re.compile(r"(\]\(|src=\")(?:docs/)")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(<code>)~?")
_ABOVE = re.compile(r"\]\(\.\./")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the figures that they name, under their own names."""
    for path in [*map(_ROOT.joinpath, _PAGES), *_ROOT.glob(_FIGURES)]:
        name = path.relative_to(_ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """In the site ``docs/`` and the clone's root are one folder."""
    if page.file.src_uri in _PAGES:
        if "/" in page.file.src_uri:
            return markdown.replace("](../docs/", "](../")
        return _HERE.sub(r"\1", markdown)
    return _ABOVE.sub("](", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A page as HTML, with names in docstrings alone where they had a role."""
    return _ROLE.sub(r"\1", html)
