"""The screen of `doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from advcli.report.progress import duration
from advcli.report.terminal import OUT, literal, percent


def show_doctor(result: Mapping[str, Any]) -> None:
    """A line a fact, problems with their ways out below; the last line says whether there are any."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _facts(result):
        table.add_row(f"[dim]{name}[/dim]", literal(text))
    for problem in result["problems"]:
        table.add_row("[red]problem[/red]", literal(problem["what"]))
        table.add_row("[dim]next[/dim]", literal(problem["next"]))
    OUT.print(table)
    count = len(result["problems"])
    OUT.print(f"[bold]{f'{count} problem' + 's' * (count != 1) if count else 'nothing stands in the way'}[/bold]")


def _facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "versions", ", ".join(f"{name} {version or 'broken'}" for name, version in result["versions"].items())
    for device in result["devices"]:
        yield device["device"], _device(device)
    low = result["bf16"]
    if low:
        yield "bf16", f"convolutions on {low['device']} {low['gain']:.2f} x as fast as in float32, gradients agree to {low['cosine']:.4f}"
    yield "compile", _compile(result["compile"])
    yield "processes", f"several can train together over {', '.join(result['backends'])}" if result["backends"] else "one alone"
    if result["data"]:
        yield "data", _listed(result["data"])
    for extra in result["extras"]:
        yield extra["package"], f"{extra['version'] or 'pip install adds it'}; for {extra['for']}"
    if result["disk"]:
        yield "disk", f"{result['disk']['free_bytes'] / 1e9:,.0f} GB free in {result['disk']['folder']}"
    if result.get("recipe"):
        yield "recipe", _recipe(result["recipe"])
        for line in result["recipe"]["probe"]["lines"]:
            yield "probe", line


def _device(device: Mapping[str, Any]) -> str:
    memory = f"{device['memory_bytes'] / 1e9:,.0f} GB" if device["memory_bytes"] else "memory unknown"
    if "capability" in device:
        return f"{device['name']}, {memory}, capability {device['capability']}"
    return f"{device['name']}, {device['threads']} thread{'s' * (device['threads'] != 1)} on {device['cores']} cores, {memory}"


def _compile(facts: Mapping[str, Any]) -> str:
    lacking = [text for there, text in ((facts["compiler"], "no C++ compiler"), (facts["headers"], "no Python.h")) if not there]
    cpu = f"not on CPUs ({', '.join(lacking)})" if lacking else "on CPUs"
    return f"torch.compile could work {cpu}, {'on GPUs' if facts['triton'] else 'not on GPUs (no Triton)'}"


def _listed(data: Mapping[str, Any]) -> str:
    there, missing = ([name for name, found in data["found"].items() if found is wanted and name != "digits"] for wanted in (True, False))
    told = [f"{word} {', '.join(names)}" for word, names in (("has", there), ("lacks", missing)) if names]
    return f"digits built in; {data['root']} {', '.join(told)}"


def _recipe(recipe: Mapping[str, Any]) -> str:
    estimate, precision = recipe["estimate"], recipe["precision"]
    images = " on random images" if recipe["data"]["synthetic"] else ""
    crafts = f"crafts in {precision['craft']}, " if recipe["image_steps_per_second"] else ""
    return (
        f"{recipe['recipe']}{images}: about {duration(estimate['total'])}, {estimate['steps']:,} steps of "
        f"{recipe['seconds']['step']['median']:.3g} s; {crafts}scores in {precision['train']}; "
        f"{percent(recipe['share_of_peak'])} % of the machine's peak"
    )
