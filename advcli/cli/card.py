"""advcli card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def card(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A model.safetensors, or its run folder.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Left out: printed. Hugging Face calls it README.md.", show_default=False),
    ] = None,
) -> None:
    """A model card in Hugging Face's layout from a checkpoint's header and the evaluations beside it.

    Example: advcli card runs/quickstart -o README.md
    """
    from advcli.report import card as cards
    from advcli.runs.folder import model_file

    path = model_file(checkpoint)
    if out is None:
        sys.stdout.write(cards.render(path))
    else:
        cards.write(path, out)
        sys.stdout.write(f"{out}\n")
