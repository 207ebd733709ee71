"""What `bench` measured: screens of 80 columns, and the same tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from advcli.report.progress import duration
from advcli.report.terminal import OUT, literal, percent

_PRECISIONS = {"fp32": "float32", "tf32": "TF32", "bf16": "bfloat16"}
_PHASES = {
    "data": "batch",
    "craft": "crafting",
    "score": "scoring and backward",
    "rest": "optimiser and the rest",
}


def show_attacks(result: Mapping[str, Any], *, markdown: bool = False) -> None:
    """A row for each peer and numerics; ratios are theirs over ours, medians of rounds with their quartiles."""
    threat = result["threat"]
    OUT.print(literal(str(result["checkpoint"])), soft_wrap=True)
    _say(f"{threat['norm']} eps {threat['eps']}, n = {result['n']}, {result['rounds']} rounds, {_machine(result)}")
    rows = []
    for row in result["rows"]:
        rates = "/".join(percent(row["robust"][side]) for side in ("ours", "theirs"))
        rows.append([row["attack"], row["peer"], row["numerics"], *_times(row), rates])
    _table(["attack", "beside", "as", "ours s", "theirs s", "ratio", "robust %"], rows, left=3, markdown=markdown)
    _end(result)


def show_peers(result: Mapping[str, Any], *, markdown: bool = False) -> None:
    """A row for each peer and numerics: seconds a step, F that a step costs, and how strong what it crafts is."""
    _head(result)
    rows = []
    for row in result["rows"]:
        rows.append([row["peer"], row["numerics"], *_times(row), _both(row["F"]), _both(row["fooled"], 100)])
    _table(["beside", "as", "ours s", "theirs s", "ratio", "F", "fools %"], rows, left=2, markdown=markdown)
    for line in _numerics(result):
        _say(line)
    _say("in all rows ours attacks in eval mode, batch norm folded, and lies channels last")
    _say("theirs: their loops, rewritten from their description")
    _say("ratio: theirs over ours, round by round; F: forwards a step costs, ours/theirs")
    for line in _strength(result):
        _say(line)
    _end(result)
    for peer in dict.fromkeys(row["peer"] for row in result["rows"]):
        gains = [f"{row['ratio']['median']:.2f} x {_under(row['numerics'], result)}" for row in result["rows"] if row["peer"] == peer]
        OUT.print(f"[bold]{literal(peer)}: {', '.join(gains)}[/bold]")


def show_training(result: Mapping[str, Any], *, markdown: bool = False) -> None:
    """Where a step's time goes, how far from the floor it is, and how long the whole recipe takes."""
    _head(result)
    spent, step, precision = result["seconds"], result["seconds"]["step"], result["precision"]
    _table(["", "ms", "%"], _phases(spent), left=1, markdown=markdown)
    _say(f"step: median of rounds, quartiles [{_count(1000 * step['q25'])}, {_count(1000 * step['q75'])}]")
    crafts = f"crafts in {precision['craft']}, " if result["image_steps_per_second"] else ""
    _say(f"{crafts}scores in {precision['train']}")
    for line in result["probe"]["lines"]:
        _say(f"probe: {line}")
    floor, memory, start = result["floor"], result["memory_bytes"], result["start_seconds"]
    _say(f"floor {floor['F']:.1f} F, {floor['craft_F']:.1f} of it crafting; F is one forward, {floor['gflop_forward']:.4g} GFLOP an image")
    peaks = ", ".join(f"{value:,.0f} in {name}" for name, value in result["peak_gflops"].items())
    _say(f"the floor's work goes at {result['goodput_gflops']:,.0f} GFLOP/s; matrix products here reach {peaks}")
    _say(f"peak memory {memory / 1e9:.2f} GB" if memory is not None else "peak memory is not known on this system")
    _say(f"start: assembly {start['assembly']:.1f} s, probe {start['probe']:.1f} s, first step {start['first_step']:.1f} s")
    _say("versions " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    _say(recipe_time(result["estimate"]))
    speed = f"{_count(result['images_per_second'])} images/s"
    if result["image_steps_per_second"]:
        speed = f"{_count(result['image_steps_per_second'])} image-steps/s, {speed}"
    OUT.print(f"[bold]{speed}[/bold], {percent(result['share_of_peak'])} % of the machine's peak")


def recipe_time(estimate: Mapping[str, Any]) -> str:
    total, steps, measuring = (duration(estimate[key]) for key in ("total", "training", "measuring"))
    return f"the whole recipe: about {total}: {estimate['steps']:,.0f} steps in {steps}, measurements at most {measuring}"


def _numerics(result: Mapping[str, Any]) -> Iterator[str]:
    """What the rows that are there compute in."""
    for name, ours in result["precision"].items():
        if name == "shipped":
            yield f"shipped: ours crafts in {ours['craft']}, scores in {ours['train']}; theirs eager {_their_precision(result)}"
        else:
            yield f"{name}: both eager in {_PRECISIONS[name]}" + (", theirs by autocast" if name == "bf16" else "")


def _strength(result: Mapping[str, Any]) -> Iterator[str]:
    """What `fools %` means, and which rows are not of equal strength: over 2 points fewer, and paired p under 0.001."""
    if result["rows"]:
        clean = result["rows"][0]["fooled"]["clean"]
        yield f"fools: of {result['batch_size']} crafted images one network gets wrong, ours/theirs; clean {100 * clean:.0f} %"
    for row in result["rows"]:
        found = row["fooled"]
        if found["ours"] < found["theirs"] - 0.02 and found["p"] < 0.001:
            sides = f"note {row['peer']}, {row['numerics']}"
            yield f"{sides}: ours crafts weaker images, so this is no ratio at equal strength (p {found['p']:.1g})"


def _under(numerics: str, result: Mapping[str, Any]) -> str:
    """A ratio's numerics in words, with both sides' precisions where they may differ."""
    settled = result["precision"][numerics]
    ours = " and ".join(dict.fromkeys(_PRECISIONS[settled[part]] for part in ("craft", "train")))
    return f"as shipped (ours {ours}, theirs {_their_precision(result)})" if numerics == "shipped" else f"in {ours}"


def _both(values: Mapping[str, float], scale: int = 1) -> str:
    return "/".join(f"{scale * values[side]:.0f}" for side in ("ours", "theirs"))


def _their_precision(result: Mapping[str, Any]) -> str:
    return "float32" if result["hardware"]["device"] == "cpu" else "float32 with TF32"


def _phases(spent: Mapping[str, Any]) -> list[list[str]]:
    whole = spent["step"]["median"]
    rows = [["one step", _count(1000 * whole), "100.0"]]
    return rows + [[f"  {title}", _count(1000 * spent[name]), percent(spent[name] / whole)] for name, title in _PHASES.items()]


def _count(value: float) -> str:
    """Three figures at least where there are as many above a thousandth, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "0"


def _head(result: Mapping[str, Any]) -> None:
    data = result["data"]
    images = f"random images in the shape of {data['name']}" if data["synthetic"] else data["name"]
    _say(f"{result['recipe']}: {result['arch']}, {images}, batch {result['batch_size']}")
    rounds, steps = result["rounds"], result["steps"]
    _say(f"{_machine(result)}; {rounds} round{'s' * (rounds != 1)} of {steps} step{'s' * (steps != 1)}")


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["hardware"]
    return f"{machine['name']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}"


def _times(row: Mapping[str, Any]) -> list[str]:
    ratio = row["ratio"]
    times = [f"{row[side]['median']:.3g}" for side in ("ours", "theirs")]
    return [*times, f"{ratio['median']:.2f} [{ratio['q25']:.2f}, {ratio['q75']:.2f}]"]


def _end(result: Mapping[str, Any]) -> None:
    _say("versions " + ", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    for package in result["missing"]:
        _say(f"note {package} is not installed: pip install {package} adds its rows")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int, markdown: bool) -> None:
    """The first `left` columns to the left, the others, numbers, to the right."""
    if markdown:
        marks = ["---"] * left + ["---:"] * (len(header) - left)
        for row in (header, marks, *rows):
            OUT.print(literal(f"| {' | '.join(cell.strip() for cell in row)} |"), soft_wrap=True)
        OUT.print()
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(literal, row))
    OUT.print(table)


def _say(line: str) -> None:
    OUT.print(literal(line))
