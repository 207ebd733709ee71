"""What became of `auto`: the recipe, and what was measured and noted on the way to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from advcli.recipe import Recipe

_GAIN = 1.15  # how much quicker a candidate must be, so that noise of the clock decides nothing
_SIGNS = 0.8  # wrong arithmetic gives 0.5; sound bfloat16 0.95 and more
_COSINE = 0.5  # of any one layer's; wrong arithmetic gives 0; sound bfloat16 0.75 and more, on untrained networks


@dataclass(frozen=True)
class Trial:
    """seconds: medians of one go. agreement: share of equal signs in the images' gradient (craft), or the least cosine between the
    gradients of one layer's weights (train, compile)."""

    part: str
    candidate: str
    plain: str
    seconds: float
    plain_seconds: float
    agreement: float

    @property
    def taken(self) -> bool:
        needed = _SIGNS if self.part == "craft" else _COSINE
        return self.agreement >= needed and self.plain_seconds >= _GAIN * self.seconds

    def __str__(self) -> str:
        gain, verdict = self.plain_seconds / self.seconds, "taken" if self.taken else "not taken"
        return f"{self.part}: {self.candidate} is {gain:.2f} x as fast as {self.plain} and agrees to {self.agreement:.3f}, {verdict}"


@dataclass(frozen=True)
class Settled:
    """recipe: every `auto` replaced. notes: what was not tried, and why. compile_seconds: of the first compiled passes, if any."""

    recipe: Recipe
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    compile_seconds: float | None = None

    def lines(self) -> list[str]:
        """For whoever watches."""
        return [*map(str, self.trials), *self.notes]

    def receipt(self) -> dict[str, Any]:
        trials = [{**asdict(trial), "taken": trial.taken} for trial in self.trials]
        return {"trials": trials, "notes": list(self.notes), "compile_seconds": self.compile_seconds}
