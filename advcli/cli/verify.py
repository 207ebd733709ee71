"""advcli verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Device, Json
from advcli.cli.output import print_json


def verify(
    evaluation: Annotated[
        Path, typer.Argument(help="An evaluation folder, such as runs/quickstart/evals/aa-1f3c9a2b.", show_default=False)
    ],
    explain: Annotated[
        int | None, typer.Option(help="Tell what happened to this image instead.", metavar="INDEX", show_default=False)
    ] = None,
    quantize: Annotated[bool, typer.Option("--quantize", help="Check the adversarial images as 8-bit files would hold them.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Where the checkpoint is now, if it moved.", show_default=False)] = None,
    data_root: Annotated[str | None, typer.Option(help="Where the data set is now, if it moved.", show_default=False)] = None,
    export_robustbench: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write what RobustBench asks for.", show_default=False)
    ] = None,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Check every stored adversarial example of an evaluation again, in float32, without running an attack. Exit 4 where one does not hold.

    Example: advcli verify runs/quickstart/evals/aa-1f3c9a2b --explain 17
    """
    from advcli.evaluation import verify as verification
    from advcli.report import terminal
    from advcli.training.device import pick_device

    evidence = verification.gather(evaluation, checkpoint=checkpoint, data_root=data_root)
    if explain is not None:
        story = verification.explain(evidence, explain)
        print_json(story) if json else terminal.show_explanation(story)
        return
    result = verification.check(evidence, device=pick_device(device), quantize=quantize)
    print_json(result) if json else terminal.show_verification(result, str(evaluation))
    verification.require_held(result, evaluation)
    if export_robustbench is not None:
        verification.export_robustbench(evidence, export_robustbench)
