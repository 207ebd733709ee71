"""advcli attack."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from advcli.cli import launch
from advcli.cli.options import Arch, Checkpoints, Data, DataRoot, Device, Json, Mean, NumClasses, Out, Quiet, Size, Std
from advcli.cli.output import print_json


def attack(
    checkpoint: Checkpoints = None,
    suite: Annotated[
        str,
        typer.Option(help="quick, paper, fast, aa, aa-plus, aa-rand, adaptive, full or transfer. adaptive knows what hides the gradient."),
    ] = "quick",
    n: Annotated[
        int | None, typer.Option(min=1, help="Attack this many images, a seeded, stratified part; left out: all.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    split: Annotated[Literal["test", "train"], typer.Option()] = "test",
    data: Data = None,
    data_root: DataRoot = None,
    size: Size = None,
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
        Literal["auto", "fp32", "folded", "compiled", "bf16"],
        typer.Option(help="How attacks search; verdicts are float32's. auto: the quickest that agrees with float32 on a probe."),
    ] = "auto",
    source: Annotated[
        list[Path] | None, typer.Option(metavar="CKPT", help="Of suite transfer: craft on this network. Repeatable.", show_default=False)
    ] = None,
    arch: Arch = None,
    num_classes: NumClasses = None,
    mean: Mean = None,
    std: Std = None,
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
    from advcli.evaluation import curve, matrix, session
    from advcli.report import page, subject, terminal
    from advcli.report.progress import AttackProgress
    from advcli.runs.given import Given

    targets, sources = checkpoint or [], tuple(source or ())
    with launch.together(device):
        path = session.find_checkpoint(targets[0] if targets else None)
        if not targets and not quiet:
            terminal.ERR.print(f"no checkpoint was named: taking the newest, {path}", markup=False)
        options = session.Options(
            *(path, suite, n, seed, split, data, data_root, norm, eps, batch_size, engine, out, resume, device, head, gate, sources),
            given=Given.typed(arch, num_classes, mean, std),
            size=size,
            search=search_precision,
        )
        with AttackProgress(quiet=quiet) as progress:
            if len(targets) > 1:
                report = matrix.run(options, targets, progress)
                folders = [Path(row["receipt"]) for row in report["matrix"]]
                show = partial(terminal.show_matrix, report)
            elif curve.is_list(eps):
                report = curve.run(options, progress)
                folders = [Path(point["receipt"]) for point in report["curve"]]
                show = partial(terminal.show_curve, report)
            else:
                folder, report = session.run(options, progress)
                folders = [folder]
                show = partial(terminal.show_attack, report, str(folder))
    if launch.follows():
        return
    for folder in folders:
        page.write(subject.of(folder))
    print_json(report) if json else show()
    if strict:
        session.check_trustworthy(report)
