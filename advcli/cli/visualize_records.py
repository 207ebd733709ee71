"""advcli visualize: the kinds that are drawn from logs, ledgers and reports, without a network."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.visualize import Csv, Json, Out, Runs, present

Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="SUITE/READING", help="As in compare. Repeatable.", show_default=False)
]


class Curve(StrEnum):
    cifar10 = "cifar10"
    cifar100 = "cifar100"
    none = "none"


def curves(runs: Runs, out: Out = None, json: Json = False, csv: Csv = False) -> None:
    """Losses, accuracies, generalisation gaps, learning rate and replay, epoch by epoch."""
    from advcli.report.figures import curves as kind

    present(partial(kind.gather, runs), kind.draw, runs, out, json=json, csv=csv)


def tradeoff(
    runs: Runs,
    column: Annotated[str, typer.Option(metavar="SUITE/READING", help="What counts as robust, as in compare.")] = "aa",
    curve: Annotated[Curve | None, typer.Option(help="ARREST's; left out: that of the runs' data set.", show_default=False)] = None,
    papers: Annotated[bool, typer.Option(help="Draw the papers' points beside the runs.")] = True,
    out: Out = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Clean against robust accuracy, with ARREST's curve, its distance ARDist, and the papers' points."""
    from advcli.report.figures import tradeoff as kind

    gather = partial(kind.gather, runs, column, curve.value if curve else None, papers=papers)
    present(gather, kind.draw, runs, out, json=json, csv=csv)


def security(
    runs: Runs,
    suite: Annotated[str | None, typer.Option(help="Left out: the suite that was run at most radii.", show_default=False)] = None,
    out: Out = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Accuracy against eps, from evaluations with a list of eps (advcli attack RUN --eps 2/255,4/255,8/255)."""
    from advcli.report.figures import security as kind

    present(partial(kind.gather, runs, suite), kind.draw, runs, out, json=json, csv=csv)


def steps(
    runs: Runs,
    suite: Annotated[str, typer.Option(help="Whose attacks.")] = "quick",
    out: Out = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """What accuracy each attack leaves after so many steps."""
    from advcli.report.figures import steps as kind

    present(partial(kind.gather, runs, suite), kind.draw, runs, out, json=json, csv=csv)


def deploy(
    folders: Annotated[list[Path], typer.Argument(metavar="BEFORE AFTER ...", help="Runs or evaluation folders.", show_default=False)],
    out: Out = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Accuracies before and after reverse attention was put on a trained network, adaptive attacks included."""
    from advcli.report.figures import deploy as kind

    present(partial(kind.gather, folders), kind.draw, folders, out, json=json, csv=csv)


def sweep(
    runs: Runs,
    field: Annotated[
        str | None, typer.Option(metavar="a.b", help="Of the recipe; left out: the one that differs.", show_default=False)
    ] = None,
    column: Columns = None,
    out: Out = None,
    json: Json = False,
    csv: Csv = False,
) -> None:
    """Numbers against a field of the recipe, such as model.gates.0.alpha; seeds folded."""
    from advcli.report.figures import sweep as kind

    present(partial(kind.gather, runs, field, column or []), kind.draw, runs, out, json=json, csv=csv)


KINDS = (curves, tradeoff, security, steps, deploy, sweep)
