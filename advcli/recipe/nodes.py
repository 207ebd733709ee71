"""YAML text to plain values with the position of every key and value.

PyYAML parses; its own construction is not used, since it reads `1e-3` and `8/255` as text, `no` as False and lets a
repeated key win silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_BOOLEAN_TRAPS = {"yes", "no", "on", "off"}


@dataclass
class Document:
    """value: dicts, lists and scalars. keys, values: (line, column), counted from 1, of each path. problems: (line, column, message)."""

    value: Any = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    problems: list[tuple[int, int, str]] = field(default_factory=list)

    def position(self, path: Path, *, of_key: bool = False) -> tuple[int, int]:
        """Where a path stands; the nearest enclosing part where the path itself was left out."""
        for end in range(len(path), -1, -1):
            table = self.keys if of_key and end == len(path) else self.values
            if path[:end] in table:
                return table[path[:end]]
        return (1, 1)


def read(text: str) -> Document:
    """The document that text holds. YAML's own errors and repeated keys become problems; nothing is raised."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        document.problems.append((line, column, f"not valid YAML: {error.problem or error.context}"))
        return document
    except yaml.YAMLError as error:
        document.problems.append((1, 1, f"not valid YAML: {error}".replace("\n", " ")))
        return document
    except RecursionError:
        document.problems.append((1, 1, "not a recipe: nested without end"))
        return document
    if node is not None:
        document.value = _build(node, (), document, set())
    return document


def scalar(text: str) -> Any:
    """A plain (unquoted) scalar: null, true, false, an integer, a decimal number, else text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 100 else text
    return float(text) if _FLOAT.fullmatch(text) and "e" not in text.lower() else text


def is_plain_text(text: str) -> bool:
    """Whether text needs no quotes to be read back as itself."""
    return scalar(text) == text and text.lower() not in _BOOLEAN_TRAPS


def _build(node: yaml.Node, path: Path, document: Document, seen: set[int]) -> Any:
    position = (node.start_mark.line + 1, node.start_mark.column + 1)
    document.values[path] = position
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and node.value.lower() in _BOOLEAN_TRAPS:
            document.problems.append(
                (*position, f"{node.value!r} reads as text or as a truth value depending on the tool: write true, false or quotes")
            )
        return scalar(node.value) if node.style is None else node.value
    if id(node) in seen:
        document.problems.append((*position, "aliases (*name) are not used in recipes: write the part out"))
        return None
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*path, i), document, seen) for i, child in enumerate(node.value)]
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
        key = scalar(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str | int) or isinstance(key, bool):
            document.problems.append((line, column, "a key is a word or a whole number"))
            continue
        if key in result:
            first = document.keys[(*path, key)]
            document.problems.append((line, column, f"{key!r} is given twice, first on line {first[0]}"))
            continue
        document.keys[(*path, key)] = (line, column)
        result[key] = _build(value_node, (*path, key), document, seen)
    return result
