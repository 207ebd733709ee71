"""Progress with ETA: a bar on a terminal, plain lines elsewhere, nothing when quiet. All of it on stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from advcli.report.terminal import ERR, percent

_EVERY = 10.0  # seconds between plain lines


class _Display:
    """The bar and the clock that both watchers share."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.total = self.first = 0
        self.images = 0
        self.began = self.spoke = time.monotonic()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, what: str, unit: str, done: int, total: int) -> None:
        self.total, self.first, self.began = total, done, time.monotonic()
        if done and not self.quiet:
            ERR.print(f"going on after {unit} {done} of {total}")
        if self.bar is not None:  # a second evaluation: a terminal shows one bar at a time
            self.bar.stop()
        if ERR.is_terminal and not self.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
            self.bar = Progress(*columns, console=ERR, transient=True)
            self.task = self.bar.add_task(what, total=total, completed=done, rate="")
            self.bar.start()

    def move(self, done: int, images: int) -> None:
        self.images += images
        if self.bar is not None:
            self.bar.update(self.task, completed=done, rate=f"{done}/{self.total}, {self.rate():.0f} img/s, {self.left(done)} left")

    def rate(self) -> float:
        """Images a second since the start of this session."""
        return self.images / max(time.monotonic() - self.began, 1e-9)

    def left(self, done: int) -> str:
        """The time that the rest will take at the pace so far."""
        spent, parts = time.monotonic() - self.began, done - self.first
        return duration(spent / parts * (self.total - done)) if parts > 0 else "?"

    def line(self, text: str, *, always: bool = False) -> None:
        """A plain line, at most one every few seconds unless always."""
        now = time.monotonic()
        if self.quiet or not (always or now - self.spoke >= _EVERY):
            return
        self.spoke = now
        (self.bar.console if self.bar is not None else ERR).print(text, soft_wrap=True)


class TrainingProgress(_Display):
    def noted(self, text: str) -> None:
        self.line(text, always=True)

    def started(self, done: int, total: int) -> None:
        self.begin("training", "step", done, total)

    def stepped(self, step: int, images: int) -> None:
        self.move(step, images)
        if self.bar is None:
            self.line(f"step {step} of {self.total}, {self.rate():.0f} img/s, {self.left(step)} left")

    def measured(self, event: dict[str, Any]) -> None:
        parts = [f"epoch {event['epoch']:>3}", f"loss {event['loss']:.4f}", f"lr {event['lr']:.4g}"]
        for name, title in (("validation", "held out"), ("train", "train")):
            if name in event:
                row = event[name]
                parts.append(f"{title} clean {percent(row['clean'])} {row['attack']} {percent(row['robust'])}")
        parts.append(f"{event['seconds']:.1f} s{' *' if event.get('selected') else ''}")
        self.line("  ".join(parts), always=True)


class AttackProgress(_Display):
    """The time left is the engine's estimate of the work left, at the pace at which work was done so far."""

    def planned(self, attacks: int, passes: int, seconds: float) -> None:
        if not self.quiet:
            cost = f"at most {passes:,} passes, about {duration(seconds)} if nothing breaks"
            ERR.print(f"{attacks} attack{'s' * (attacks != 1)}: {cost}", soft_wrap=True)

    def started(self, done: int, total: int) -> None:
        self.begin("attacking", "verdict", done, total)
        self.name, self.standing = "", ""

    def attacking(self, name: str, survivors: int, of: int) -> None:
        self.name, self.standing = name, f"{survivors} of {of} stand"

    def noted(self, text: str) -> None:
        """Said even when quiet where it is a warning."""
        if not self.quiet or "warning" in text:
            ERR.print(text, markup=False, soft_wrap=True)

    def advanced(self, done: int, spent: float, left: float) -> None:
        elapsed = time.monotonic() - self.began
        remaining = duration(elapsed / spent * left) if spent else "?"
        if self.bar is not None:
            self.bar.update(
                self.task, description=f"{self.name}, {self.standing}", completed=spent, total=spent + left, rate=f"{remaining} left"
            )
        else:
            self.line(f"{self.name}: {done} images done, {self.standing}, {remaining} left")


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
