"""The error tree: exit codes as documented, text that says what, where and next."""

from __future__ import annotations

import re

import pytest

from advcli import errors
from advcli.errors import AdvcliError, RecipeError, UsageError


def tree(cls: type[AdvcliError]) -> list[type[AdvcliError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in tree(child))]


@pytest.mark.parametrize(
    ("cls", "parent", "code"),
    [
        (errors.UsageError, AdvcliError, 2),
        (errors.RecipeError, errors.UsageError, 2),
        (errors.ResumeError, errors.UsageError, 2),
        (errors.ResourceError, AdvcliError, 3),
        (errors.DataError, errors.ResourceError, 3),
        (errors.CheckpointError, errors.ResourceError, 3),
        (errors.CheckFailedError, AdvcliError, 4),
        (errors.NonFiniteError, errors.CheckFailedError, 4),
        (errors.InterruptedRunError, AdvcliError, 130),
    ],
)
def test_exit_codes(cls: type[AdvcliError], parent: type[AdvcliError], code: int) -> None:
    assert cls.__bases__ == (parent,)
    assert cls.exit_code == code


def test_the_documented_tree_is_the_tree() -> None:
    """Every class below the root stands in the module's docstring with its exit code and its depth, and nothing else does."""
    rows = re.findall(r"^( +)(\w+Error) +(\d+)", errors.__doc__ or "", re.MULTILINE)
    documented = {(name, int(code), len(indent) // 2 - 2) for indent, name, code in rows}
    classes = [cls for cls in tree(AdvcliError)[1:] if cls.__module__ == errors.__name__]
    assert documented == {(cls.__name__, cls.exit_code, len(cls.__mro__) - len(AdvcliError.__mro__)) for cls in classes}


def test_every_kind_has_a_title_of_its_own_code() -> None:
    assert AdvcliError.exit_code == 1, "a bug, unless a subclass says otherwise"
    assert all(cls.title and cls.title != AdvcliError.title for cls in tree(AdvcliError)[1:])


@pytest.mark.parametrize(
    ("where", "next_", "text"),
    [
        ("", "", "what"),
        ("here", "", "what\nwhere: here"),
        ("", "do it", "what\nnext: do it"),
        ("here", "do it", "what\nwhere: here\nnext: do it"),
    ],
)
def test_text(where: str, next_: str, text: str) -> None:
    error = UsageError("what", where=where, next=next_)
    assert str(error) == text
    assert (error.what, error.where, error.next) == ("what", where, next_)


def test_a_recipe_error_lists_every_problem() -> None:
    error = RecipeError(["a.yaml:1:2: one", "a.yaml:3:4: two"], next="fix them")
    assert error.problems == ("a.yaml:1:2: one", "a.yaml:3:4: two")
    assert str(error) == "a.yaml:1:2: one\na.yaml:3:4: two\nnext: fix them"
