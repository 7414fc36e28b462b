"""YAML files in which nothing is ambiguous: a key stands once, aliases stay small, text is text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, read_regular, reading

_MOST_VALUES = 2_000_000
"""Values of a file with its aliases written out; a fleet of 100,000 devices has fewer."""
_MOST_LEVELS = 100


def read_yaml(path: Path, kind: str) -> Any:
    """The plain values of a YAML file, which holds one document in UTF-8.

    Args:
        path: the file.
        kind: the file's purpose, for errors.

    Raises:
        FleetError: naming the file, and the line where a key stands twice, a text cannot be
            encoded or aliases multiply.
    """
    with reading(f"cannot read the {kind} {path}"):
        text = read_regular(path)
    with reading(f"{path} is not valid YAML"):
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        try:
            _check(root, loader)
        except _Mistake as mistake:
            raise FleetError(f"{path}, line {mistake.line}: {mistake}") from None
        return loader.construct_document(root)


class _Mistake(Exception):
    def __init__(self, node: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.line = node.start_mark.line + 1


def _check(root: yaml.Node, loader: yaml.SafeLoader) -> None:
    """Check each node once, however often aliases name it, and count it as often as they do."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, level: int) -> int:
        if id(node) in sizes:
            if sizes[id(node)] < 0:
                raise _Mistake(node, "an anchor contains itself")
            return sizes[id(node)]
        if level > _MOST_LEVELS:
            raise _Mistake(node, f"more than {_MOST_LEVELS} levels of nesting")
        sizes[id(node)] = -1
        if isinstance(node, yaml.ScalarNode):
            node.value = _text(node)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, loader)
        total = 1 + sum(size(part, level + 1) for part in _parts(node))
        if total > _MOST_VALUES:
            raise _Mistake(node, f"aliases multiply to more than {_MOST_VALUES:,} values")
        sizes[id(node)] = total
        return total

    size(root, 1)


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.MappingNode, loader: yaml.SafeLoader) -> None:
    """Refuse equal keys; what ``<<`` brings along may be overridden, as YAML says."""
    lines: dict[Any, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _Mistake(key, "a key is text or a number, not a list or mapping")
        merge = key.tag == "tag:yaml.org,2002:merge"
        value = key.value if merge else loader.construct_object(key)
        if value in lines:
            raise _Mistake(
                key,
                f"the key {one_line(str(value), 60)} stands twice, first in line {lines[value]}; "
                f"remove one",
            )
        lines[value] = key.start_mark.line + 1


def _text(node: yaml.ScalarNode) -> str:
    """The scalar's text, halves of surrogate pairs joined as JSON means them."""
    try:
        text = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _Mistake(node, "half of a surrogate pair is no character") from None
    if "\0" in text:
        raise _Mistake(node, f"{one_line(text, 60)!r} contains the character NUL")
    return text
