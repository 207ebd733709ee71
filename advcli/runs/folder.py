"""Run folders: found, created, never overwritten."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advcli.errors import CheckpointError, RecipeError, ResumeError, UsageError
from advcli.recipe import Recipe, dump, parse
from advcli.runs import atomic

RUNS = Path("runs")
_PROBE = "probe.json"
_DECIDED = (("train", "precision"), ("train", "compile"), ("craft", "precision"))
# Where data lies and how often the state is saved may change between sessions of one run; nothing that changes its numbers may.
_MAY_DIFFER = {("data", "root"), ("data", "download"), ("train", "save_every")}


def create(name: str, out: Path | None) -> Path:
    """A new folder: out, which must not hold anything yet, else runs/NAME, runs/NAME-2, ..."""
    if out is not None:
        check_free(out)
        atomic.make_folder(out)
        return out
    atomic.make_folder(RUNS)
    number = 1
    while True:
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()  # atomic: two processes never get the same one
        except FileExistsError:
            number += 1
        else:
            return folder


def check_free(out: Path) -> None:
    """UsageError where out holds anything but what a kill left of a first write."""
    if not atomic.is_free(out):
        what = "the folder is not empty, and nothing is overwritten"
        raise UsageError(what, where=str(out), next="--resume goes on with the run in it; another --out starts a new one")


def new_model_file(name: str, out: Path | None) -> Path:
    """Where a new checkpoint goes: out, if it ends in .safetensors, else model.safetensors in the folder out, or in a new runs/NAME.

    UsageError where something is there.
    """
    if out is None or out.suffix != ".safetensors":
        return create(name, out) / "model.safetensors"
    if out.exists():
        raise UsageError("there is a file already, and nothing is overwritten", where=str(out), next="-o names another")
    atomic.make_folder(out.parent)
    return out


def newest(name: str) -> Path | None:
    """The newest run folder of a recipe's name, by its number."""
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    found = [(int(match[1] or 1), path) for path in RUNS.glob(f"{name}*") if path.is_dir() and (match := pattern.fullmatch(path.name))]
    return max(found)[1] if found else None


def model_file(path: Path) -> Path:
    """The model file that a path means: itself, or the selected weights of the run folder that it is."""
    return path / "model.safetensors" if path.is_dir() else path


def newest_checkpoint() -> Path:
    """The model.safetensors under runs/ that was written last."""
    found = sorted(RUNS.glob("**/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(
            "no checkpoint was named, and there is none under runs/",
            where=str(RUNS.absolute()),
            next="advcli adv-train recipes/quickstart.yaml makes one in a minute",
        )
    return found[-1]


def store_recipe(folder: Path, recipe: Recipe) -> None:
    atomic.write_text(
        folder / "recipe.yaml", f"# Resolved by advcli: every field, overrides applied, decisions written in.\n{dump(recipe)}"
    )


def stored_recipe(folder: Path) -> Recipe | None:
    """The resolved recipe of a run folder; None where the run was stopped before it was written."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read the stored recipe: {error}", where=str(path)) from None


def check_same(stored: Recipe, given: Recipe, folder: Path) -> None:
    """ResumeError with every difference, unless given continues stored. A field that was decided keeps its decision."""
    rows = [
        f"{'.'.join(key)}: {old!r} in the run, {new!r} now"
        for key, old, new in differences(stored, given)
        if key not in _MAY_DIFFER and not (key in _DECIDED and _asked_for(old, new))
    ]
    if rows:
        raise ResumeError(
            "the run was made with another recipe\n" + "\n".join(rows),
            where=str(folder),
            next="give the same recipe and overrides, or leave out --resume to start a new run",
        )


def _asked_for(stored: object, given: object) -> bool:
    """Whether a stored decision is what became of the given field: of `auto`, or of blocks that could not be compiled."""
    return given == "auto" or (given is True and stored is False)


def as_decided(recipe: Recipe, stored: Recipe) -> Recipe:
    """The recipe with what was decided for the run whose recipe is stored."""
    train = {name: getattr(stored.train, name) for part, name in _DECIDED if part == "train"}
    changed: dict[str, object] = {"train": recipe.train.model_copy(update=train)}
    if recipe.craft is not None and stored.craft is not None:
        own = stored.craft.precision
        changed["craft"] = recipe.craft.model_copy(update={"precision": own if own != "auto" else stored.train.precision})
    return recipe.model_copy(update=changed)


def store_probe(folder: Path, given: Recipe, receipt: dict[str, Any]) -> None:
    """What was measured to settle a recipe, and what it had asked for in each field that was settled."""
    flat = _flat(given.model_dump(mode="json"))
    asked = {".".join(key): flat[key] for key in _DECIDED if key in flat}
    atomic.write_json(folder / _PROBE, {"asked": asked, **receipt})


def as_asked(folder: Path, stored: Recipe) -> Recipe:
    """The recipe of a run folder as it was asked for, `auto` where that was settled; as stored where nothing tells."""
    path = folder / _PROBE
    if not path.is_file():
        return stored
    try:
        asked = json.loads(path.read_text(encoding="utf-8")).get("asked", {})
        changes = [f"{key}={json.dumps(asked[key])}" for key in map(".".join, _DECIDED) if key in asked]
        return parse(dump(stored), overrides=changes)
    except (OSError, ValueError, AttributeError, TypeError, RecipeError) as error:
        next = "remove that file: the stored recipe then counts as what was asked for"
        raise CheckpointError(f"cannot read what the recipe asked for: {error}", where=str(path), next=next) from None


def settled(stored: Recipe) -> dict[str, object]:
    """By `a.b`, what became of the fields that may be left to the machine."""
    return {".".join(key): value for key, value in _flat(stored.model_dump(mode="json")).items() if key in _DECIDED}


def differences(a: Recipe, b: Recipe) -> list[tuple[tuple[str, ...], object, object]]:
    """(key, value in a, value in b) of every field in which two recipes differ."""
    flat_a, flat_b = _flat(a.model_dump(mode="json")), _flat(b.model_dump(mode="json"))
    return [(key, flat_a.get(key), flat_b.get(key)) for key in sorted(flat_a.keys() | flat_b.keys()) if flat_a.get(key) != flat_b.get(key)]


def method(recipe: Recipe) -> str:
    """SHA-256 of a recipe but for its seed and the path of the checkpoint it starts from, which has a seed of its own.

    Runs of one method are repetitions of one another.
    """
    start = "" if recipe.model.init is not None else None
    return digest(recipe.model_copy(update={"seed": 0, "model": recipe.model.model_copy(update={"init": start})}))


def telling_apart(recipes: Sequence[Recipe]) -> list[dict[str, object]]:
    """For each recipe its own values, by `a.b`, of the fields in which they differ; seed and places aside, absent values left out."""
    flats = [_flat(recipe.model_dump(mode="json")) for recipe in recipes]
    keys = sorted({key for flat in flats for key in flat} - _MAY_DIFFER - {("seed",)})
    differing = [key for key in keys if any(flat.get(key) != flats[0].get(key) for flat in flats)]
    return [{".".join(key): flat[key] for key in differing if flat.get(key) is not None} for flat in flats]


def digest(recipe: Recipe) -> str:
    """SHA-256 of everything in a resolved recipe that decides the numbers of its run."""
    flat = {".".join(key): value for key, value in _flat(recipe.model_dump(mode="json")).items() if key not in _MAY_DIFFER}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def _flat(value: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, child in value.items() for key, leaf in _flat(child, (*path, str(name))).items()}
