"""Columns are named as they are asked for, and nonsense is refused."""

from __future__ import annotations

import pytest

from advcli.errors import UsageError
from advcli.evaluation import columns


@pytest.mark.parametrize("text", ["hours", "average", "clean", "last:clean", "aa", "last:aa/apgd-ce", "aa/class:a/b:c", "validation/clean"])
def test_columns_are_named_as_they_are_asked_for(text: str) -> None:
    assert columns.parse(text).name == text


@pytest.mark.parametrize("text", ["", "last:", "last:hours", "last:average", "/worst", "aa/"])
def test_columns_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no column"):
        columns.parse(text)
