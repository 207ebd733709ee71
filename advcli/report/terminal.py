"""Terminal screens: errors, tables and the one number that matters in the last line. Fits 80 columns; plain off a terminal.

Where the terminal has no Unicode, rich draws in ASCII, and names are written with escapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from advcli.errors import AdvcliError
from advcli.measures import wilson

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)
_KIND = {
    "trustworthy": "worst case",
    "upper bound": "worst case of these attacks alone: an upper bound",
    "masked": "gradients look masked: at best an upper bound",
}
_SHORT = {"trustworthy": "worst case", "upper bound": "an upper bound", "masked": "masked: do not trust it"}  # beside a radius


def literal(text: str) -> str:
    """Text that is no markup, in characters that the terminal has: what it lacks is written as \\u and a number."""
    return escape(text.encode(OUT.encoding, "backslashreplace").decode(OUT.encoding))


def show_error(error: AdvcliError) -> None:
    """One panel on stderr: what, where, and the next command."""
    rows = [literal(error.what)]
    if error.where:
        rows.append(f"[dim]where[/dim] {literal(error.where)}")
    if error.next:
        rows.append(f"[dim]next[/dim]  {literal(error.next)}")
    ERR.print(Panel("\n".join(rows), title=error.title, title_align="left", border_style="red" if error.exit_code != 130 else "yellow"))


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def interval(fraction: float, n: int) -> str:
    """The 95 % Wilson interval of an accuracy over n examples, in percent."""
    low, high = wilson(round(fraction * n), n)
    return f"[{percent(low)}, {percent(high)}]"


def show_attack(report: Mapping[str, Any], folder: str) -> None:
    """The table of an evaluation; the last line is the headline with its verdict."""
    threat, n = report["threat"], report["n"]
    OUT.print(literal(str(report["checkpoint"])), soft_wrap=True)
    what = f"{threat['norm']} eps {threat['eps']}, suite {report['suite']}, {report['data']} {report['split']}, n = {n}"
    OUT.print(literal(what), soft_wrap=True)
    table = Table()
    table.add_column("attack", overflow="fold")  # names of transfer attacks are long
    for name, justify in (("on", "left"), ("accuracy %", "right"), ("95 % interval", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_row("none (clean)", "all", percent(report["clean"]), interval(report["clean"], n))
    for name, row in report["attacks"].items():
        table.add_row(literal(name), row["on"], percent(row["accuracy"]), interval(row["accuracy"], n))
    OUT.print(table)
    _show_classes(report)
    if "search" in report:
        OUT.print(_searched(report["search"]), soft_wrap=True)
    for name, counts in report.get("sparing", {}).items():
        OUT.print(literal(_spared(name, counts)), soft_wrap=True)
    for note in report["notes"]:
        OUT.print(f"note {literal(note)}")
    _show_flags(report["flags"])
    _show_reasons(report)
    took = f" in {report['seconds']:.0f} s" if report.get("seconds") is not None else ""
    OUT.print(f"{report['forwards']:,} forwards, {report['backwards']:,} backwards{took}; {report['borderline']} borderline")
    OUT.print(f"receipt {literal(folder)}")
    OUT.print(f"page {literal(folder)}/report.html", soft_wrap=True)
    _show_headline(report)


def _show_headline(report: Mapping[str, Any]) -> None:
    bounds = literal(interval(report["robust"], report["n"]))
    OUT.print(f"[bold]robust {percent(report['robust'])} %[/bold] {bounds} {_KIND[report['verdict']]}")


def _show_flags(flags: Sequence[Mapping[str, Any]]) -> None:
    """What is raised, and of how many checks."""
    raised = [flag for flag in flags if flag["raised"]]
    for flag in raised:
        where = f" at eps {flag['eps']}" if "eps" in flag else ""
        size = "" if flag["value"] is None else f" ({percent(flag['value'])} points)"
        about = f"{flag['name']}{where}: {flag['message']}{size} [{flag['source']}]"
        OUT.print(f"[red]flag[/red] {literal(about)}")
    if flags:
        OUT.print(f"{len(flags)} checks for masked gradients, {len(raised) or 'none'} raised")


def _show_reasons(report: Mapping[str, Any]) -> None:
    """Why the verdict is what it is, but for the flags, which stand above."""
    said = [flag["message"] for flag in report["flags"]]
    for reason in report["reasons"]:
        if reason not in said:
            OUT.print(f"why {literal(reason)}")


def _searched(search: Mapping[str, Any]) -> str:
    """How attacks searched, and what their audit in float32 says."""
    audited = f"{search['audited']} images audited in float32"
    if search["audited"]:
        audited += f", {percent(search['agreement_verdict'])} % same verdict, {search['missed']} missed"
    signs = f"{percent(search['agreement_sign'])} % same gradient signs"
    return f"searched in {search['precision']}: {signs}; {audited}; {search['judge_calls']:,} judge calls"


def _spared(name: str, counts: Mapping[str, int]) -> str:
    """How many passes an attack left out, and what came of a sample of these."""
    told = f"{name} spared {percent(counts['spared'] / counts['passes'])} % of {counts['passes']:,} passes"
    samples = []
    if counts["sampled"]:
        samples.append(f"{counts['mistaken']} of a sample of {counts['sampled']:,} runs broke the image")
    if counts.get("queries_sampled"):
        samples.append(f"{counts['queries_mistaken']} of {counts['queries_sampled']:,} queries raised the margin")
    return "; ".join([told, ", ".join(samples)]) if samples else told


def show_curve(report: Mapping[str, Any]) -> None:
    """A row for each radius that was attacked; the last line is the headline of the largest one."""
    n, points = report["n"], report["curve"]
    OUT.print(literal(str(report["checkpoint"])), soft_wrap=True)
    what = f"{report['threat']['norm']}, suite {report['suite']}, {report['data']} {report['split']}, n = {n}"
    OUT.print(literal(f"{what}, clean {percent(report['clean'])} % {interval(report['clean'], n)}"))
    table = Table()
    for name, justify in (("eps", "left"), ("robust %", "right"), ("95 % interval", "right"), ("closed", "right"), ("verdict", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for point in points:
        bounds = literal(interval(point["robust"], n))
        table.add_row(literal(point["eps"]), percent(point["robust"]), bounds, str(point["closed_by_smaller"]), point["verdict"])
    OUT.print(table)
    OUT.print("closed: images that this radius left standing and a smaller one broke; they count as broken")
    for note in report["notes"]:
        OUT.print(f"note {literal(note)}")
    _show_flags(report["flags"])
    _show_reasons(report)
    for point in points:
        OUT.print(f"receipt {literal(point['receipt'])}", soft_wrap=True)
    last, bounds = points[-1], literal(interval(points[-1]["robust"], n))
    OUT.print(f"[bold]robust {percent(last['robust'])} %[/bold] {bounds} at eps {literal(last['eps'])}, {_SHORT[last['verdict']]}")


def show_matrix(report: Mapping[str, Any]) -> None:
    """A row a target, a column a source; the last line is the target that stands best, by the source that breaks most of it."""
    n, rows = report["n"], report["matrix"]
    threat = report["threat"]
    what = f"{threat['norm']} eps {threat['eps']}, suite {report['suite']}, {report['data']} {report['split']}, n = {n}"
    OUT.print(literal(what), soft_wrap=True)
    sources = list(dict.fromkeys(source for row in rows for source in row["sources"]))
    table = Table()
    table.add_column("target", overflow="fold")
    for name in ("clean %", *(f"from {number}" for number, _ in enumerate(sources, 1))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [percent(row["sources"][source]["robust"]) if source in row["sources"] else "-" for source in sources]
        table.add_row(literal(row["target"]), percent(row["clean"]), *cells)
    OUT.print(table)
    for number, source in enumerate(sources, 1):
        OUT.print(f"from {number}: {literal(source)}", soft_wrap=True)
    OUT.print("what stands, %, worst case per image over what one source's attacks made; -: the network itself")
    for note in report["notes"]:
        OUT.print(f"note {literal(note)}")
    for row in rows:
        OUT.print(f"receipt {literal(row['receipt'])}", soft_wrap=True)
    lowest = [min(cell["robust"] for cell in row["sources"].values()) for row in rows]
    best = max(range(len(rows)), key=lambda number: lowest[number])
    OUT.print(f"stands best: {literal(rows[best]['target'])}", soft_wrap=True)
    bounds = literal(interval(lowest[best], n))
    OUT.print(f"[bold]robust {percent(lowest[best])} %[/bold] {bounds} by its worst source: an upper bound")


def show_verification(result: Mapping[str, Any], folder: str) -> None:
    """How many receipts were checked and how many hold."""
    how = "rounded to 8 bits" if result["quantize"] else "as stored"
    OUT.print(f"receipt {literal(folder)}: {result['checked']} adversarial images checked in float32, {how}")
    held = "all hold" if not result["failures"] else f"{len(result['failures'])} do not hold"
    OUT.print(f"[bold]robust {percent(result['robust'])} %[/bold]: {held}")


def show_explanation(story: Mapping[str, Any]) -> None:
    """What each attack did to one image, the one whose example is kept last."""
    threat = story["threat"]
    OUT.print(f"image {story['index']}, class {literal(story['label'])}, {threat['norm']} eps {threat['eps']}")
    OUT.print(f"clean margin {-story['clean_margin']:.4f} (over 0: classified right)")
    for row in story["attacks"]:
        target = f" towards {row['target']}" if "target" in row else ""
        outcome = f"broken at step {row['steps']}" if row["broken"] else "not broken"
        OUT.print(literal(f"{row['name']} ({row['about']}): {outcome}{target}, run {row['run'] + 1}, margin {-row['margin']:.4f}"))
    last = f"broken by {story['found_by']}" if story["found_by"] else "robust" if story["robust"] else "wrong without an attack"
    OUT.print(f"[bold]{literal(last)}[/bold]")


def _show_classes(report: Mapping[str, Any]) -> None:
    rows: dict[str, Any] = report["per_class"]
    if not rows:
        return
    worst = report["worst_class"]
    if len(rows) <= 12:
        OUT.print(
            "per class, clean / robust %: "
            + ", ".join(f"{literal(name)} {percent(r['clean'])}/{percent(r['robust'])}" for name, r in rows.items())
        )
    OUT.print(f"worst class {literal(worst)}: {percent(rows[worst]['robust'])} % robust of {rows[worst]['n']}")


def show_training(outcome: Mapping[str, Any]) -> None:
    """The end of a training: the selected epoch, where it lies, what to do with it, and how well it did on held-out images."""
    path = literal(outcome["checkpoint"])
    OUT.print(f"{path} epoch {outcome['best_epoch']} of {outcome['epochs']}", soft_wrap=True)
    suite = "adaptive" if "aux0" in (outcome["measured"].get("train") or outcome["measured"].get("validation") or {}) else "aa"
    OUT.print(f"next: advcli attack {path} --suite {suite}", soft_wrap=True)
    parts = [(title, outcome["measured"].get(name)) for name, title in (("train", "training"), ("validation", "held out"))]
    lines = []
    for title, part in parts:
        if part:
            robust = f"{percent(part['robust'])} % {interval(part['robust'], part['n'])}, an upper bound"
            lines.append(literal(f"{title}, n = {part['n']}: clean {percent(part['clean'])} %, {part['attack']} {robust}"))
            if part.get("seen_by_start"):
                OUT.print("note the checkpoint it started from may have been trained on them: its seed, limit or validation is another")
    *before, last = lines or ["no accuracy was measured"]
    for line in before:
        OUT.print(line)
    OUT.print(f"[bold]{last}[/bold]")


def show_page(file: str, report: Mapping[str, Any] | None) -> None:
    """Where a page lies, and its headline."""
    OUT.print(literal(file), soft_wrap=True)
    if report is None:
        OUT.print("[bold]robust accuracy not known[/bold]: nothing was attacked yet")
    else:
        _show_headline(report)


def show_conversion(facts: Mapping[str, Any]) -> None:
    """Where the checkpoint lies and what it was made from."""
    origin = facts["foreign"]
    OUT.print(literal(f"{origin['source']}, read as {origin['read_as']}, normalisation: {origin['normalized_by']}"), soft_wrap=True)
    OUT.print(f"next: advcli attack {literal(facts['checkpoint'])} --suite aa", soft_wrap=True)
    OUT.print(f"[bold]{literal(facts['checkpoint'])}[/bold]", soft_wrap=True)


def show_dry_run(resolved: str, rows: Sequence[tuple[str, str]], last: str) -> None:
    OUT.print(literal(resolved), soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/dim]", literal(value))
    OUT.print(table)
    OUT.print(f"[bold]{literal(last)}[/bold]")


def show_figure(notes: Sequence[str], files: Sequence[str], headline: str) -> None:
    """What to know of a figure, where it lies, and its headline."""
    for text in notes:
        OUT.print(f"note {literal(text)}")
    for path in files:
        OUT.print(literal(path), soft_wrap=True)
    OUT.print(f"[bold]{literal(headline)}[/bold]")


def show_recipes(rows: Sequence[tuple[str, str]]) -> None:
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("what it is")
    for name, about in rows:
        table.add_row(name, literal(about))
    OUT.print(table)
