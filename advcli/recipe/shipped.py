"""The recipes that travel with the package, named without path or ending."""

from __future__ import annotations

import difflib
from pathlib import Path

from advcli.errors import UsageError

_HERE = Path(__file__).resolve().parent


def directory() -> Path:
    """Where the shipped recipes lie: beside the package in a checkout, inside it in a wheel."""
    for candidate in (_HERE / "shipped", _HERE.parents[1] / "recipes"):
        if candidate.is_dir():
            return candidate
    raise UsageError("the shipped recipes are missing from this installation", where=str(_HERE), next="reinstall advcli")


def names() -> list[str]:
    return sorted(path.stem for path in directory().glob("*.yaml"))


def summary(path: Path) -> str:
    """The first comment line of a recipe: what it is."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find(name: str) -> Path:
    """The file of a recipe given by path or, for shipped ones, by name or by the path `recipes/NAME.yaml`."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = directory() / f"{path.stem if path.parent in (Path(), Path('recipes')) else name}.yaml"
    if path.suffix in ("", ".yaml") and shipped.is_file():
        return shipped
    close = difflib.get_close_matches(path.stem, names(), n=1, cutoff=0.5)
    what = f"there is no recipe {name!r}" + (f" (did you mean {close[0]}?)" if close else "")
    raise UsageError(what, where=str(path.absolute()), next="advcli recipe list shows the shipped ones; a path to a YAML file works too")
