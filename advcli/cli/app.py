"""The Typer app. torch is imported by the commands that compute, when they run."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import advcli
from advcli.cli import (
    adv_train,
    attack,
    bench,
    card,
    compare,
    convert,
    deploy_ra,
    doctor,
    finetune,
    launch,
    pretrain,
    recipe,
    report,
    verify,
    visualize,
    visualize_records,
)
from advcli.cli.output import notices_shown
from advcli.errors import AdvcliError, InterruptedRunError


class _Group(TyperGroup):
    """Turns advcli's errors into one panel and their exit code; anything else is a bug and keeps its traceback."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Of several processes all run the commands that they share, and the first alone any other."""
        found = super().resolve_command(ctx, args)
        if launch.follows():
            if found[0] not in launch.SHARED:
                raise typer.Exit
            launch.mute()
        return found

    def invoke(self, ctx: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a class name that the terminal lacks stops no report
        try:
            with notices_shown():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            error: AdvcliError = InterruptedRunError("interrupted")
        except AdvcliError as raised:
            error = raised
        launch.show(error)
        raise typer.Exit(error.exit_code)


app = typer.Typer(
    name="advcli",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adversarial training of image classifiers, and the truth about how robust they are.",
    epilog="Start with: advcli adv-train recipes/quickstart.yaml",
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"advcli {advcli.__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    pass


app.command("pretrain")(pretrain.pretrain)
app.command("adv-train")(adv_train.adv_train)
app.command("finetune")(finetune.finetune)
app.command("attack")(attack.attack)
app.command("deploy-ra")(deploy_ra.deploy_ra)
app.command("convert")(convert.convert)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.command("compare")(compare.compare)
app.command("report")(report.report)
app.command("card")(card.card)
for kind in visualize_records.KINDS:
    visualize.app.command()(kind)
app.add_typer(visualize.app, name="visualize")
app.add_typer(recipe.app, name="recipe")
