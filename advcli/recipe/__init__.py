"""Recipes: the schema of every part's arguments and the loader that reads YAML. Neither needs torch."""

from advcli.recipe.loader import dump, load, parse
from advcli.recipe.schema import Recipe
from advcli.recipe.shipped import find, names

__all__ = ["Recipe", "dump", "find", "load", "names", "parse"]
