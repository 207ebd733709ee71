"""advcli deploy-ra."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Arch, Checkpoint, Data, DataRoot, Device, Json, Mean, NumClasses, Quiet, Size, Std
from advcli.cli.output import print_json


def deploy_ra(
    checkpoint: Checkpoint = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .safetensors file or a folder, new; left out: runs/NAME-ra.", show_default=False)
    ] = None,
    n: Annotated[
        int | None, typer.Option(min=1, help="Attack this many images, a seeded, stratified part; left out: all.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    eps: Annotated[str | None, typer.Option(help="Radius, such as 8/255; left out: as trained.", show_default=False)] = None,
    data: Data = None,
    data_root: DataRoot = None,
    size: Size = None,
    arch: Arch = None,
    num_classes: NumClasses = None,
    mean: Mean = None,
    std: Std = None,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Write the checkpoint alone; its header says that it was not evaluated.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command was stopped.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Put parameter-free reverse attention on a trained network, and measure what it is worth to an attacker who knows it.

    Example: advcli deploy-ra runs/pgd-at --n 200
    """
    from advcli.errors import UsageError
    from advcli.evaluation import retrofit, session
    from advcli.report import retrofit as screen
    from advcli.report import terminal
    from advcli.report.progress import AttackProgress
    from advcli.runs.given import Given

    if eps is not None and "," in eps:
        raise UsageError("one radius, not a list", where="--eps", next="advcli attack takes lists")
    path = session.find_checkpoint(checkpoint)
    if checkpoint is None and not quiet:
        terminal.ERR.print(f"no checkpoint was named: taking the newest, {path}", markup=False)
    given = Given.typed(arch, num_classes, mean, std)
    options = session.Options(
        path, retrofit.SUITE, n, seed, data=data, data_root=data_root, eps=eps, resume=resume, device=device, given=given, size=size
    )
    with AttackProgress(quiet=quiet) as progress:
        found = retrofit.deploy(options, out, progress, evaluate=not no_eval)
    print_json(found) if json else screen.show(found)
