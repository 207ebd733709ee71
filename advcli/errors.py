"""The error tree. Each class has its exit code, and each error says what happened, where, and what to do next.

    AdvcliError
      UsageError          2   the command line asks for something that cannot be
        RecipeError       2   a recipe with problems; all of them at once
        ResumeError       2   --resume with another recipe, or another evaluation, than the stored one
      ResourceError       3   something on disk is missing or unfit
        DataError         3   a data set
        CheckpointError   3   a checkpoint, a state or a ledger
      CheckFailedError    4   a check that was asked for did not hold
        NonFiniteError    4   training met a loss that is not a number
      InterruptedRunError 130 stopped by the user, state saved
        LostProcessError  130 another process of the same work has gone

Anything else that escapes is a bug and shows a traceback with exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


def first_line(error: BaseException) -> str:
    """Of what others raise: what one line can tell."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Notice(UserWarning):
    """What a user should know though the work goes on, said where nobody watches; the command line shows it as one line on stderr."""


class AdvcliError(Exception):
    """what: one sentence. where: a file, key or option. next: the command or change that helps."""

    exit_code: ClassVar[int] = 1
    title: ClassVar[str] = "error"

    def __init__(self, what: str, *, where: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.next = next

    def __str__(self) -> str:
        parts = [self.what, f"where: {self.where}" if self.where else "", f"next: {self.next}" if self.next else ""]
        return "\n".join(part for part in parts if part)


class UsageError(AdvcliError):
    exit_code = 2
    title = "cannot do that"


class RecipeError(UsageError):
    """problems: one line each, `file:line:column: message`."""

    title = "the recipe has problems"

    def __init__(self, problems: Sequence[str], *, next: str = "") -> None:
        super().__init__("\n".join(problems), next=next)
        self.problems = tuple(problems)


class ResumeError(UsageError):
    title = "cannot resume"


class ResourceError(AdvcliError):
    exit_code = 3
    title = "missing or unfit"


class DataError(ResourceError):
    title = "data set missing or unfit"


class CheckpointError(ResourceError):
    title = "checkpoint missing or unfit"


class CheckFailedError(AdvcliError):
    exit_code = 4
    title = "a check failed"


class NonFiniteError(CheckFailedError):
    title = "training diverged"


class InterruptedRunError(AdvcliError):
    exit_code = 130
    title = "interrupted"


class LostProcessError(InterruptedRunError):
    """why: what the failed message to the other process said."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"another process of this work has gone ({why})",
            next="the first failure that torchrun lists says which; the same command with --resume goes on, with any number of processes",
        )
