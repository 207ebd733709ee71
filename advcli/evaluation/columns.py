"""The columns of a table of runs, and what each reads off an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advcli.errors import UsageError
from advcli.evaluation.stored import Evaluation

WORST, WORST_CLASS, CLASSES, _CLASS = "worst", "worst-class", "classes", "class:"
VALIDATION = "validation"
_LAST = "last:"


class Tally(NamedTuple):
    """right of n images."""

    right: int
    n: int


class Column(NamedTuple):
    """suite: `` for what no suite has a part in, `validation` for the training log. reading: `worst`, an attack's, or a class's.

    last: of the last epoch's weights, in place of the selected ones.
    """

    suite: str
    reading: str
    last: bool = False

    @property
    def name(self) -> str:
        own = self.suite if self.reading == WORST else f"{self.suite}/{self.reading}" if self.suite else self.reading
        return f"{_LAST}{own}" if self.last else own

    @property
    def clean(self) -> bool:
        """Clean accuracy, which any suite measures."""
        return not self.suite and self.reading == "clean"

    @property
    def of_classes(self) -> bool:
        return self.reading == WORST_CLASS or self.reading.startswith(_CLASS)

    @property
    def logged(self) -> bool:
        """Whether it is read off the training logs, not off evaluations."""
        return self == HOURS or self.suite == VALIDATION

    def right(self, evaluation: Evaluation) -> NDArray[np.bool_] | None:
        """(n,) bool: who is right under this reading; None where the suite has it not, or it is not of all images."""
        if self.clean:
            return evaluation.outcomes.correct
        return evaluation.outcomes.robust if self.reading == WORST else evaluation.outcomes.left.get(self.reading)

    def tally(self, evaluation: Evaluation) -> Tally | None:
        """How many are right; None where the evaluation has it not."""
        if self.of_classes:
            return self._of_class(evaluation)
        right = self.right(evaluation)
        return None if right is None else Tally(int(right.sum()), len(right))

    def _of_class(self, evaluation: Evaluation) -> Tally | None:
        """Worst cases within the class that is named, or within the one where they are fewest."""
        report = evaluation.report
        name = report["worst_class"] if self.reading == WORST_CLASS else self.reading.removeprefix(_CLASS)
        part = report["per_class"].get(name)
        return Tally(round(part["robust"] * part["n"]), part["n"]) if part else None

    def value(self, evaluation: Evaluation) -> float:
        found = self.tally(evaluation)
        assert found is not None, "only evaluations that have the reading are asked"
        return found.right / found.n


CLEAN, HOURS, AVERAGE = Column("", "clean"), Column("", "hours"), Column("", "average")


def parse(text: str) -> Column:
    """[last:]SUITE/READING, SUITE for its worst case, clean; hours, average. A reading's own name may hold a slash or a colon."""
    last, rest = text.startswith(_LAST), text.removeprefix(_LAST)
    special = {column.name: column for column in (CLEAN, HOURS, AVERAGE)}.get(rest)
    suite, _, reading = rest.partition("/")
    if (last and special in (HOURS, AVERAGE)) or (not special and (not suite or (not reading and "/" in rest))):
        hint = "write SUITE/READING, such as quick/pgd-20, aa/worst or aa/worst-class; last: before it; clean, average or hours"
        raise UsageError(f"{text!r} names no column", where="--column", next=hint)
    return (special or Column(suite, reading or WORST))._replace(last=last)


def expand(columns: Iterable[Column], evaluations: Iterable[Evaluation]) -> list[Column]:
    """Each once; SUITE/classes becomes a column for every class that an evaluation of the suite has, and the worst one's."""
    known = list(evaluations)
    found: list[Column] = []
    for column in columns:
        if column.reading != CLASSES:
            found.append(column)
            continue
        names = dict.fromkeys(name for e in known if e.suite == column.suite for name in e.report["per_class"])
        found += [column._replace(reading=f"{_CLASS}{name}") for name in names] + [column._replace(reading=WORST_CLASS)]
    return list(dict.fromkeys(found))
