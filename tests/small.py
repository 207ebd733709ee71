"""A recipe that trains in a fraction of a second, and a watcher that looks away."""

from __future__ import annotations

from collections.abc import Callable

TINY = (
    "data.limit=120",
    "data.validation=30",
    "data.augment=[crop]",
    "model.width=0.125",
    "craft.steps=3",
    "schedule.epochs=2",
    "train.batch_size=30",
    "train.save_every=0",
    "select.metric=pgd-3",
    "select.train_images=20",
)


class Silent:
    """A watcher that looks away."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
