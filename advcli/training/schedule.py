"""Learning-rate schedules as a factor of the base rate, a pure function of the step."""

from __future__ import annotations

import math

from advcli.recipe.schema import Cosine, OneCycle, Points, Schedule


def factor(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """The factor for optimiser step `step`, counted from 0 over the whole run."""
    total = schedule.epochs * steps_per_epoch
    match schedule:
        case Points():
            epoch = step // steps_per_epoch + 1
            return float(schedule.points[max(start for start in schedule.points if start <= epoch)])
        case Cosine():
            warmup = float(schedule.warmup) * steps_per_epoch
            if step < warmup:
                return min(1.0, (step + 1) / warmup)
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        case OneCycle():
            peak = float(schedule.peak) * total
            return (step + 1) / peak if step + 1 <= peak else (total - step) / (total - peak + 1)
