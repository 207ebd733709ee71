"""advcli bench."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from advcli.cli.options import Device, Json, Overrides, Quiet
from advcli.cli.output import print_json, watcher
from advcli.errors import UsageError

_ATTACKING = ("n", "seed", "eps", "norm", "batch_size", "data_root")
_TRAINING = ("peers", "seconds", "synthetic")


def bench(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|CKPT]",
            help="A recipe; left out with --peers: pgd-at, trades, ancra; with --attacks a model.safetensors or its folder, "
            "left out: the newest under runs/.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    peers: Annotated[bool, typer.Option("--peers", help="A training step beside others' loops, rewritten.")] = False,
    attacks: Annotated[bool, typer.Option("--attacks", help="Attacks beside pyautoattack, torchattacks and foolbox.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --attacks: aa, fast or pgd-20; with --peers: shipped (fp32 comes with it), fp32 or bf16. Repeatable.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each row is run, ours and theirs by turns.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Of training: how long a round lasts at least.")] = 3.0,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Of training: on random images of the data set's shape.")] = False,
    n: Annotated[int, typer.Option(min=1, help="Of attacks: images, a seeded, stratified part of the split.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of attacks.")] = 0,
    eps: Annotated[str | None, typer.Option(help="Of attacks: radius, such as 8/255; left out: as trained.", show_default=False)] = None,
    norm: Annotated[str | None, typer.Option(help="Of attacks: linf or l2; left out: as trained.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Of attacks: images at once; left out: what suits the device.", show_default=False)
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Of attacks: where the data set lies.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table in Markdown.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Measure how fast this machine trains a recipe or attacks a network, alone or beside what others use.

    Example: advcli bench pgd-at data.name=cifar10 --peers
    """
    _check_together(context, overrides or [], attacks=attacks)
    if json and markdown:
        raise UsageError("one of --json and --markdown", where="--markdown", next="leave one out")
    if not attacks:
        what, overrides = _recipe_and_changes(what, overrides or [])
        _check_recipe(what, peers=peers)
    if not attacks and not peers and only:
        raise UsageError("--only chooses rows of --peers or --attacks", where="--only", next="advcli bench RECIPE --peers --only fp32")
    watch = watcher(quiet=quiet)
    results: Iterable[Any]
    if attacks:
        options = {"n": n, "seed": seed, "norm": norm, "eps": eps, "batch_size": batch_size, "data_root": data_root}
        results, show = _attacks(what, only, rounds, device, watch, options, quiet=quiet)
    else:
        how = {"rounds": rounds, "seconds": seconds, "made_up": synthetic, "watch": watch}
        results, show = _training(what, overrides or [], only or [], device, how, peers=peers)
    if json:
        found = list(results)
        print_json({"recipes": found} if peers and what is None else found[0])
        return
    for number, result in enumerate(results):
        if number:
            typer.echo()
        show(result, markdown=markdown)


def _check_together(context: typer.Context, overrides: list[str], *, attacks: bool) -> None:
    """UsageError for an option, or a change, of the other kind of benchmark."""
    others = [name for name in (_TRAINING if attacks else _ATTACKING) if _was_given(context, name)]
    if others:
        option, kind = f"--{others[0].replace('_', '-')}", "training" if attacks else "attacks"
        next = f"leave --attacks out, or {option}" if attacks else f"{_instead(others[0])}; advcli bench CKPT --attacks measures attacks"
        raise UsageError(f"{option} is about {kind}", where=option, next=next)
    if attacks and overrides:
        raise UsageError("a checkpoint has no fields to change", where=overrides[0], next="leave --attacks out to measure a recipe")


def _recipe_and_changes(what: str | None, overrides: list[str]) -> tuple[str | None, list[str]]:
    """`bench --peers a.b=c` names no recipe: its first word is a change."""
    if what is not None and re.match(r"~[\w.]+$|[\w.]+=", what) and not Path(what).exists():
        return None, [what, *overrides]
    return what, overrides


def _check_recipe(what: str | None, *, peers: bool) -> None:
    """UsageError where there is none and none can be left out, or where a checkpoint was named."""
    if what is None and not peers:
        raise UsageError("nothing to measure was named", next="advcli bench pgd-at, advcli bench --peers or advcli bench --attacks")
    if what is not None and (Path(what).suffix == ".safetensors" or (Path(what) / "model.safetensors").is_file()):
        raise UsageError(f"{what} is a checkpoint, and speed of training is a recipe's", where=what, next=f"advcli bench --attacks {what}")


def _training(
    name: str | None, overrides: list[str], only: list[str], device: str, how: dict[str, Any], *, peers: bool
) -> tuple[Iterable[Any], Any]:
    """A result for each recipe, as soon as it is measured; name left out: those that have peers. Misfits are refused before the first."""
    from advcli.recipe import load

    recipes = [load(each, overrides) for each in ([name] if name else _with_peers())]
    from advcli.report import speed
    from advcli.training import side_by_side, throughput
    from advcli.training.device import pick_device

    where, manner = pick_device(device), throughput.How(**how)
    if not peers:
        return (throughput.run(recipe, where, manner) for recipe in recipes), speed.show_training
    for recipe in recipes:
        side_by_side.check(recipe, only)
    return (side_by_side.run(recipe, where, only, manner) for recipe in recipes), speed.show_peers


def _with_peers() -> Sequence[str]:
    from advcli.training.matching import RECIPES

    return RECIPES


def _attacks(
    what: str | None,
    only: list[str] | None,
    rounds: int,
    device: str,
    watch: Callable[[str], None],
    options: dict[str, Any],
    *,
    quiet: bool,
) -> tuple[Iterable[Any], Any]:
    from advcli.evaluation import bench, session
    from advcli.report import speed
    from advcli.report.progress import AttackProgress
    from advcli.training.device import pick_device

    path = session.find_checkpoint(Path(what) if what is not None else None)
    asked = session.Options(path, "aa", device=device, search="auto", **options)
    job = session.job(asked, AttackProgress(quiet=quiet))
    return [bench.run(job, tuple(only or bench.ATTACKS), rounds, pick_device(device), watch)], speed.show_attacks


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _instead(name: str) -> str:
    """The recipe's field that says what an option of attacks would."""
    fields = {"n": "data.limit", "seed": "seed", "eps": "threat.eps", "norm": "threat.norm", "batch_size": "train.batch_size"}
    return f"a recipe says it as {fields.get(name, 'data.root')}=..."
