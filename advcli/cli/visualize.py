"""advcli visualize KIND: a command a kind of figure, with the options of that kind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from advcli.cli.options import Arch, Data, DataRoot, Device, Mean, NumClasses, Size, Std
from advcli.cli.output import print_json
from advcli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from advcli.evaluation.specimens import Request
    from advcli.report.figures.data import FigureData


class _Kinds(TyperGroup):
    """Names the kinds where an unknown one is asked for."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None and not ctx.resilient_parsing:
            raise UsageError(
                f"there is no figure {cmd_name!r}", where="advcli visualize", next=f"one of {', '.join(sorted(self.list_commands(ctx)))}"
            )
        return found


app = typer.Typer(
    cls=_Kinds,
    no_args_is_help=True,
    help="Figures from run folders: PNG, SVG and the data behind them.",
    epilog="Example: advcli visualize perturbations runs/quickstart",
)

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Run folders, or model files; of images also others' weights.", show_default=False)
]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Folder; left out: RUN/figures, of several runs figures.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the data, and the files, as one JSON object.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print the rows of data as CSV.")]
N = Annotated[int, typer.Option(min=1, help="Test images, a seeded, stratified part.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1)]
Attack = Annotated[
    str, typer.Option(help="Adversarial images: stored (newest evaluation, PGD-20 where it has none), a suite's newest, or pgd-20.")
]
Eps = Annotated[str | None, typer.Option(help="Radius, such as 8/255; left out: as trained.", show_default=False)]


def present(
    gather: Callable[[], FigureData], draw: Callable[[FigureData], Figure], runs: list[Path], out: Path | None, *, json: bool, csv: bool
) -> None:
    """Gather and draw into the folder; then print the files and the headline, or the data."""
    from advcli.report import terminal
    from advcli.report.figures import style

    if json and csv:
        raise UsageError("one of --json and --csv", where="--json, --csv")
    data = gather()
    run = runs[0].parent if runs[0].is_file() else runs[0]
    own = len(runs) == 1 and run.is_dir()  # what is fetched by name has no folder
    files = style.save(draw(data), out or (run / "figures" if own else Path("figures")), data.kind)
    if json:
        print_json(data.to_json() | {"files": [str(path) for path in files]})
    elif csv:
        sys.stdout.write(data.to_csv())
    else:
        terminal.show_figure(data.notes, [str(path) for path in files], data.headline)


def _request(*arguments: Any, **others: Any) -> Request:
    """Which images, with a word on stderr about each checkpoint of others."""
    from advcli.evaluation.specimens import Request
    from advcli.report import terminal

    others["noted"] = lambda text: terminal.ERR.print(text, markup=False)
    return Request(*arguments, **others)


def _of_images(kind: str, n: int, about: str) -> None:
    """The command of a kind that needs a network, n test images and nothing else."""

    def command(
        runs: Runs,
        n: N = n,
        seed: Seed = 0,
        attack: Attack = "stored",
        data: Data = None,
        data_root: DataRoot = None,
        size: Size = None,
        eps: Eps = None,
        arch: Arch = None,
        num_classes: NumClasses = None,
        mean: Mean = None,
        std: Std = None,
        out: Out = None,
        json: Json = False,
        csv: Csv = False,
        device: Device = "auto",
    ) -> None:
        from advcli.runs.given import Given

        module, given = import_module(f"advcli.report.figures.{kind}"), Given.typed(arch, num_classes, mean, std)
        request = _request(n, seed, attack, data, data_root, device, given=given, size=size, eps=eps)
        present(lambda: module.gather(runs, request), module.draw, runs, out, json=json, csv=csv)

    app.command(kind, help=about)(command)


_of_images("cam", 200, "Class activation maps, and how much of an image the attribution span covers. Two runs: what one alone looks at.")
_of_images("channels", 200, "Mean channel magnitudes on clean and adversarial images, sorted.")
_of_images("distances", 200, "Histograms of L2 distance and cosine of features, to adversarial images and to other classes'.")
_of_images("perturbations", 8, "Images, what an attack adds, the adversarial images, and both predictions.")


@app.command()
def embedding(
    runs: Runs,
    n: N = 300,
    seed: Seed = 0,
    method: Annotated[Literal["tsne", "umap"], typer.Option(help="umap: needs advcli[umap].")] = "tsne",
    noisy: Annotated[bool, typer.Option("--noisy", help="Also images with uniform noise of the threat's size.")] = False,
    only: Annotated[str | None, typer.Option("--class", help="Images of this class alone.", show_default=False)] = None,
    attack: Attack = "stored",
    data: Data = None,
    data_root: DataRoot = None,
    size: Size = None,
    eps: Eps = None,
    arch: Arch = None,
    num_classes: NumClasses = None,
    mean: Mean = None,
    std: Std = None,
    out: Out = None,
    json: Json = False,
    csv: Csv = False,
    device: Device = "auto",
) -> None:
    """Features of clean and adversarial images in two dimensions, with their silhouette."""
    from advcli.report.figures import embedding as kind
    from advcli.runs.given import Given

    given = Given.typed(arch, num_classes, mean, std)
    request = _request(n, seed, attack, data, data_root, device, only, given=given, size=size, eps=eps)
    present(lambda: kind.gather(runs, request, method=method, noisy=noisy), kind.draw, runs, out, json=json, csv=csv)
