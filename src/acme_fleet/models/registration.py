"""Registers what ships with transformers' Auto classes, once a process imports these.

``import acme_fleet`` must not wait for torch, and ``AutoModelForImageClassification`` must know a
device's folder. So the import of the Auto classes is waited for, and then for the end of all
imports of transformers and of this package that are under way: none is met half done.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_AWAITED = "transformers.models.auto"
_WATCHED = ("acme_fleet", "transformers")


class _Watch(MetaPathFinder):
    """Finds modules as the other finders do, and registers when the last of them is executed."""

    def __init__(self) -> None:
        self._under_way = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a watched module, whose loader counts; None for all other modules."""
        if fullname.partition(".")[0] not in _WATCHED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: object) -> None:
        execute = loader.exec_module  # pyright: ignore[reportAttributeAccessIssue]

        def counted(module: ModuleType) -> None:
            self._under_way += 1
            try:
                execute(module)
            finally:
                self._under_way -= 1
            if not self._under_way and _AWAITED in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        loader.exec_module = counted  # pyright: ignore[reportAttributeAccessIssue]


def _register() -> None:
    importlib.import_module("acme_fleet.models.auto_classes")
    importlib.import_module("acme_fleet.models.auto_language")


def register_with_transformers() -> None:
    """Register now or as soon as the Auto classes are imported; the end of this package's own."""
    if _AWAITED in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watch())
