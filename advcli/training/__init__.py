"""The training step, the loop around it, schedules, precision and resumable state."""

from advcli.training.loop import Outcome, Watcher, train
from advcli.training.setup import Assembly, assemble

__all__ = ["Assembly", "Outcome", "Watcher", "assemble", "train"]
