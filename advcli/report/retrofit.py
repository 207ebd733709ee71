"""The screen of a retrofit: one table, before, after and their difference, and one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from advcli.report import terminal
from advcli.report.terminal import percent


def show(found: Mapping[str, Any]) -> None:
    if "verdict" not in found:
        terminal.OUT.print("reverse attention was put on; what that is worth was not evaluated")
        terminal.OUT.print(f"next: advcli attack {escape(found['checkpoint'])} --suite adaptive", soft_wrap=True)
        terminal.OUT.print(f"[bold]{escape(found['checkpoint'])}[/bold]", soft_wrap=True)
        return
    after, threat = found["after"], found["after"]["threat"]
    terminal.OUT.print(f"{escape(found['before']['checkpoint'])} -> {escape(found['checkpoint'])}", soft_wrap=True)
    what = f"{threat['norm']} eps {threat['eps']}, suite {after['suite']}, {after['data']} {after['split']}, n = {after['n']}"
    terminal.OUT.print(escape(what), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name, justify in (("attack", "left"), ("before %", "right"), ("after %", "right"), ("difference", "right"), ("95 %", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name, row in found["differences"].items():
        ends = "[{:+.1f}, {:+.1f}]".format(*(100 * end for end in row["ci"]))
        table.add_row(name, percent(row["first"]), percent(row["this"]), f"{100 * row['difference']:+.1f}", escape(ends))
    terminal.OUT.print(table)
    terminal.OUT.print("paired by image, bootstrap interval; accuracies after the gate are upper bounds")
    terminal.OUT.print(f"[bold]{escape(found['verdict'])}[/bold]")
