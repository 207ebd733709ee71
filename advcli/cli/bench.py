"""advcli bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Device, Json, Quiet
from advcli.cli.output import print_json
from advcli.errors import UsageError


def bench(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A model.safetensors or its folder; left out: the newest under runs/.", show_default=False)
    ] = None,
    attacks: Annotated[bool, typer.Option("--attacks", help="Attacks beside pyautoattack, torchattacks and foolbox.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of aa, fast, pgd-20: this one. Repeatable.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Images, a seeded, stratified part of the split.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each row is run, ours and theirs by turns.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    eps: Annotated[str | None, typer.Option(help="Radius, such as 8/255; left out: as trained.", show_default=False)] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2; left out: as trained.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once; left out: what suits the device.", show_default=False)
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Where the data set lies.", show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Measure how fast this machine attacks, beside the packages that others use.

    Example: advcli bench runs/quickstart --attacks --n 50 --only pgd-20
    """
    if not attacks:
        raise UsageError("nothing to measure was named", next="advcli bench --attacks")
    from advcli.evaluation import bench as benchmark
    from advcli.evaluation import session
    from advcli.report import terminal
    from advcli.report.progress import AttackProgress
    from advcli.training.device import pick_device

    path = session.find_checkpoint(checkpoint)
    options = session.Options(
        path, "aa", n, seed, norm=norm, eps=eps, batch_size=batch_size, data_root=data_root, device=device, search="auto"
    )
    watch = (lambda text: None) if quiet else (lambda text: terminal.ERR.print(text, highlight=False, markup=False))
    job = session.job(options, AttackProgress(quiet=quiet))
    result = benchmark.run(job, tuple(only or benchmark.ATTACKS), rounds, pick_device(device), watch)
    print_json(result) if json else terminal.show_bench(result)
