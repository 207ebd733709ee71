"""advcli attack."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from advcli.cli.options import Device, Json, Out, Quiet
from advcli.cli.output import print_json


def attack(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A model.safetensors or its folder; left out: the newest under runs/.", show_default=False)
    ] = None,
    suite: Annotated[
        str, typer.Option(help="quick, paper, fast, aa, aa-plus, adaptive or transfer. adaptive knows a network's gates.")
    ] = "quick",
    n: Annotated[
        int | None, typer.Option(min=1, help="Attack this many images, a seeded, stratified part; left out: all.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    split: Annotated[Literal["test", "train"], typer.Option()] = "test",
    data: Annotated[str | None, typer.Option(help="Another data set than the checkpoint's.", show_default=False)] = None,
    data_root: Annotated[str | None, typer.Option(help="Where it lies.", show_default=False)] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2; left out: as trained.", show_default=False)] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radius, such as 8/255, or several: 2/255,4/255; left out: as trained.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once; left out: what suits the device.", show_default=False)
    ] = None,
    head: Annotated[
        str, typer.Option(help="Which decision is judged: final, open (all gates open) or aux:0, aux:1, ... (a gate's own).")
    ] = "final",
    gate: Annotated[
        str | None, typer.Option(help="Put this gate on the network first: reverse-attention, which has no weights.", show_default=False)
    ] = None,
    engine: Annotated[Literal["native", "reference"], typer.Option(help="reference: suite aa by the authors' package.")] = "native",
    search_precision: Annotated[
        Literal["auto", "fp32", "folded", "bf16"],
        typer.Option(help="How attacks search; verdicts are float32's. auto: the quickest that agrees with float32 on a probe."),
    ] = "auto",
    source: Annotated[
        list[Path] | None, typer.Option(metavar="CKPT", help="Of suite transfer: craft on this network. Repeatable.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an evaluation that was stopped.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 unless the verdict is trustworthy.")] = False,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Attack a checkpoint with a suite and report the worst case per image.

    Example: advcli attack runs/quickstart/model.safetensors --suite aa
    """
    from advcli.evaluation import curve, session
    from advcli.report import terminal
    from advcli.report.progress import AttackProgress

    path = session.find_checkpoint(checkpoint)
    if checkpoint is None and not quiet:
        terminal.ERR.print(f"no checkpoint was named: taking the newest, {path}", markup=False)
    sources = tuple(source or ())
    options = session.Options(
        *(path, suite, n, seed, split, data, data_root, norm, eps, batch_size, engine, out, resume, device, head, gate, sources),
        search=search_precision,
    )
    with AttackProgress(quiet=quiet) as progress:
        if curve.is_list(eps):
            report = curve.run(options, progress)
            show = partial(terminal.show_curve, report)
        else:
            folder, report = session.run(options, progress)
            show = partial(terminal.show_attack, report, str(folder))
    print_json(report) if json else show()
    if strict:
        session.check_trustworthy(report)
