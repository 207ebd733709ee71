"""Arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="Changes to the recipe; ~a.b takes a key out.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Out = Annotated[Path | None, typer.Option(help="Folder to write; it must be new or empty.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the newest folder of this recipe's name, or --out, stopped.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe, sizes and cost, run one step, make no run folder.")]

_CHECKPOINT = (
    "A model.safetensors or its folder; somebody else's .pt, .pth or .safetensors, torchvision:NAME@WEIGHTS, timm:NAME or "
    "hf:REPO/FILE; left out: the newest under runs/."
)
Checkpoint = Annotated[Path | None, typer.Argument(metavar="[CKPT]", help=_CHECKPOINT, show_default=False)]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[CKPT...]", help=f"{_CHECKPOINT} Several: a matrix of suite transfer.", show_default=False),
]
Data = Annotated[
    str | None, typer.Option(help="Another data set than the checkpoint's; needed for others' checkpoints.", show_default=False)
]
DataRoot = Annotated[str | None, typer.Option(help="Where it lies.", show_default=False)]
Size = Annotated[int | None, typer.Option(min=1, help="Side in pixels that a folder's images are resized to.", show_default=False)]
Arch = Annotated[
    str | None,
    typer.Option(
        help="Of others' weights: resnet18, wrn-34-20, torchvision:NAME, ...; left out: read from the tensors.", show_default=False
    ),
]
NumClasses = Annotated[int | None, typer.Option(min=1, help="Of others' weights: refuse any other number of classes.", show_default=False)]
Mean = Annotated[
    str | None, typer.Option(help="Of others' weights: normalisation of [0, 1] images, such as 0.49,0.48,0.45.", show_default=False)
]
Std = Annotated[str | None, typer.Option(help="Of others' weights: goes with --mean.", show_default=False)]
