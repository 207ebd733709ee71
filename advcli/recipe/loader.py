"""From YAML text and overrides to a Recipe, and back. Every problem is found at once and placed as `file:line:column`."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from advcli.errors import RecipeError, UsageError
from advcli.recipe import nodes
from advcli.recipe.nodes import Document, Path
from advcli.recipe.schema import Recipe, combination_problems
from advcli.recipe.shipped import find

_WIDTH = 54  # PyYAML breaks a line after the item that passes it: lines end before column 80
_NEXT = "advcli recipe schema prints every key; advcli recipe show quickstart is a working example"


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe called name (a path, or a shipped recipe's name) with overrides `a.b=c` and removals `~a.b` applied."""
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe: {error}", where=str(path)) from None
    return parse(text, source=str(path), overrides=overrides)


def parse(text: str, *, source: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """A Recipe from YAML text. Raises RecipeError with every problem."""
    document = nodes.read(text)
    if not document.problems and not isinstance(document.value, dict):
        document.problems.append((1, 1, "a recipe is a mapping of parts: name, data, model, objective, ..."))
    if document.problems:
        raise RecipeError([f"{source}:{line}:{column}: {message}" for line, column, message in sorted(document.problems)], next=_NEXT)
    changed: dict[Path, str] = {}  # the later of two overrides of one path comes last, and is the one to blame
    for override in overrides:
        for path, origin in _apply(document.value, override):
            changed.pop(path, None)
            changed[path] = origin
    problems: list[tuple[Path, bool, str]]
    try:
        recipe = Recipe.model_validate(document.value)
        problems = [(path, False, message) for path, message in combination_problems(recipe)]
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors(include_url=False)]
        problems += _combinations_of_the_rest(document.value, [path for path, _, _ in problems])
    if problems:
        raise RecipeError(list(_place(problems, document, source, changed)), next=_NEXT)
    return recipe


def _combinations_of_the_rest(value: dict[Any, Any], faulty: list[Path]) -> list[tuple[Path, bool, str]]:
    """Combination problems of a recipe without its faulty keys, where it is one without them: all problems at once."""
    rest = copy.deepcopy(value)
    for path in faulty:
        holder: Any = rest
        for word in path[:-1]:
            holder = _child(holder, word)
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
    try:
        return [(path, False, message) for path, message in combination_problems(Recipe.model_validate(rest))]
    except ValidationError:
        return []


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this package's own reader would take for something else."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    plain = value.isprintable() and nodes.is_plain_text(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every field, defaults included. `parse(dump(r)) == r`."""
    return yaml.dump(
        recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH, default_flow_style=None
    )


def _apply(value: dict[Any, Any], override: str) -> Iterator[tuple[Path, str]]:
    """Change value in place as override says; yield the paths that now come from the command line."""
    key, equals, text = override.removeprefix("~").partition("=")
    removal = override.startswith("~")
    if removal == bool(equals) or not key or not all(key.split(".")):
        raise UsageError(f"{override!r} is no override", next="write part.key=value, or ~part.key to take a key out")
    path: Path = tuple(nodes.scalar(word) if word.isdigit() else word for word in key.split("."))
    holder: Any = value
    for depth, word in enumerate(path[:-1]):
        child = _child(holder, word)
        if child is None and isinstance(holder, dict) and not removal:
            child = holder[word] = {}
            yield path[: depth + 1], override
        if not isinstance(child, dict | list):
            raise UsageError(f"{override!r}: the recipe has no part {'.'.join(map(str, path[: depth + 1]))}", next=_NEXT)
        holder = child
    last = path[-1]
    if removal:
        if _child(holder, last) is None and not (isinstance(holder, dict) and last in holder):
            raise UsageError(f"{override!r}: the recipe has no {key}")
        del holder[last]
        yield path, override
        return
    document = nodes.read(text)
    if document.problems:
        raise UsageError(f"{override!r}: {document.problems[0][2]}")
    if isinstance(holder, list) and not (isinstance(last, int) and last < len(holder)):
        raise UsageError(f"{override!r}: {'.'.join(map(str, path[:-1]))} has entries 0 to {len(holder) - 1}")
    holder[last] = document.value
    yield path, override


def _child(holder: Any, word: str | int) -> Any:
    if isinstance(holder, dict):
        return holder.get(word)
    return holder[word] if isinstance(holder, list) and isinstance(word, int) and word < len(holder) else None


def _place(problems: list[tuple[Path, bool, str]], document: Document, source: str, changed: dict[Path, str]) -> Iterator[str]:
    """Each problem as one line, in the order of the file; those from the command line last, named by their override."""
    placed = []
    for path, of_key, message in problems:
        override = next((origin for start, origin in reversed(changed.items()) if path[: len(start)] == start), None)
        if override is not None:
            placed.append(((1, 0, 0), f"override {override}: {message}"))
        else:
            line, column = document.position(path, of_key=of_key)
            placed.append(((0, line, column), f"{source}:{line}:{column}: {message}"))
    yield from (text for _, text in sorted(placed))


_SPELT = {"True": "true", "False": "false"}  # as a recipe has them


def _explain(detail: ErrorDetails) -> tuple[Path, bool, str]:
    """(path without union tags, whether the key itself is at fault, message) of one pydantic error."""
    path, part = _resolve(detail["loc"])
    name, kind, context = ".".join(map(str, path)), detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return path, True, f"unknown key {name}{_hint(str(path[-1]), part, name)}"
    if kind == "missing":
        return path, False, f"{name} is missing"
    if kind in ("literal_error", "union_tag_invalid"):
        known = [
            _SPELT.get(word.strip(" '"), word.strip(" '"))
            for word in str(context.get("expected_tags") or context.get("expected")).replace(" or ", ", ").split(",")
        ]
        given = context.get("tag", detail["input"])
        if kind == "union_tag_invalid":
            path = (*path, "name")
        return path, False, f"{'.'.join(map(str, path))} is one of {', '.join(known)}; got {given!r}{_close(str(given), known)}"
    if kind == "union_tag_not_found":
        return path, False, f"{name} needs a name"
    of_key = detail["loc"][-1] == "[key]" or kind == "invalid_key"
    message = detail["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    given = "" if kind in ("number", "value_error") else f", got {detail['input']!r}"
    return path, of_key, f"{name}: {message}{given}" if name else f"{message}{given}"


def _resolve(loc: tuple[str | int, ...]) -> tuple[Path, type[BaseModel] | None]:
    """The path in the file that a pydantic location means, which also names union tags, and the part that holds its end."""
    path: list[str | int] = []
    parts: list[type[BaseModel]] = [Recipe]
    for word in loc:
        tagged = [part for part in parts if word in _tags(part)]
        if len(parts) > 1 and tagged:
            parts = tagged
            continue
        if word == "[key]":
            continue
        path.append(word)
        if word == loc[-1] and len(path) and not any(word in part.model_fields for part in parts):
            return tuple(path), parts[0] if parts else None
        parts = [p for part in parts if word in part.model_fields for p in _parts(part.model_fields[str(word)].annotation)] or parts[:1]
    return tuple(path), parts[0]


def _tags(part: type[BaseModel]) -> tuple[Any, ...]:
    field = part.model_fields.get("name")
    return get_args(field.annotation) if field is not None else ()


def _parts(annotation: Any) -> list[type[BaseModel]]:
    """The schema classes that an annotation can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for argument in get_args(annotation) for part in _parts(argument)]


def _hint(word: str, part: type[BaseModel] | None, refused: str) -> str:
    """` (did you mean ...?)`: a like-named key of the same part, else the one place elsewhere with exactly this name."""
    close = _close(word, list((part or Recipe).model_fields))
    if close:
        return close
    elsewhere = sorted(
        {f"{name}.{word}" for name, field in Recipe.model_fields.items() for p in _parts(field.annotation) if word in p.model_fields}
        - {refused}
    )
    return f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else ""


def _close(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {match[0]}?)" if match else ""
