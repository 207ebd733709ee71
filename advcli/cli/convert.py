"""advcli convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Arch, Data, DataRoot, Device, Json, Mean, NumClasses, Quiet, Size, Std
from advcli.cli.output import print_json


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A .pt, .pth or .safetensors, torchvision:NAME@WEIGHTS, timm:NAME or hf:REPO/FILE.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .safetensors file or a folder, new; left out: under runs/.", show_default=False)
    ] = None,
    data: Data = None,
    data_root: DataRoot = None,
    size: Size = None,
    norm: Annotated[str | None, typer.Option(help="Threat to note in the header: linf or l2.", show_default=False)] = None,
    eps: Annotated[str | None, typer.Option(help="Its radius; left out: 8/255.", show_default=False)] = None,
    arch: Arch = None,
    num_classes: NumClasses = None,
    mean: Mean = None,
    std: Std = None,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Make a checkpoint of advcli's from somebody else's weights; its clean accuracy is printed.

    Example: advcli convert theirs.pt --data cifar10 -o theirs.safetensors
    """
    from advcli.evaluation.conversion import convert as run
    from advcli.evaluation.session import Options
    from advcli.report import terminal
    from advcli.report.progress import AttackProgress
    from advcli.runs.given import Given

    given = Given.typed(arch, num_classes, mean, std)
    options = Options(source, "quick", data=data, data_root=data_root, norm=norm, eps=eps, device=device, given=given, size=size)
    with AttackProgress(quiet=quiet) as progress:
        facts = run(options, out, progress)
    print_json(facts) if json else terminal.show_conversion(facts)
