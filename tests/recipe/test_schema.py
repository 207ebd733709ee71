"""The schema: combinations that make no sense, defaults by objective, closed and frozen parts."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from advcli.recipe import Recipe, load, names, schema
from advcli.recipe.schema import combination_problems, selection_steps, step_size

BASE: dict[str, Any] = {
    "name": "demo",
    "data": {"name": "digits", "validation": 100},
    "threat": {"eps": 0.1},
    "model": {"arch": "small-cnn"},
    "objective": {"name": "pgd-at"},
    "optim": {"lr": 0.1},
    "schedule": {"epochs": 10},
}


def merged(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """base with patch laid over it, part by part."""
    deep = {key for key, value in patch.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return {**base, **{key: merged(base[key], value) if key in deep else value for key, value in patch.items()}}


def recipe(**patch: Any) -> Recipe:
    return Recipe.model_validate(merged(BASE, patch))


def problems(patch: dict[str, Any]) -> list[tuple[str, str]]:
    return [(".".join(map(str, path)), message) for path, message in combination_problems(recipe(**patch))]


AWP = {"name": "awp"}
CAS, FUSION = {"name": "channel-suppression"}, {"name": "hybrid-statistics"}
ANC, SHC = {"name": "negative-contrast"}, {"name": "hypersphere-contrast"}
ARREST = {"name": "arrest", "replay": {"until": 10}}
# The smallest change that makes no sense, where the fault lies, a piece of the message, and the nearest change that makes sense.
COMBINATIONS: list[tuple[dict[str, Any], str, str, dict[str, Any]]] = [
    ({"threat": {"eps": "8"}}, "threat.eps", "did you mean 8/255?", {"threat": {"eps": "8/255"}}),
    ({"threat": {"eps": 1}}, "threat.eps", "allows anything", {"threat": {"norm": "l2", "eps": 1}}),
    ({"craft": {"step_size": 0.21}}, "craft.step_size", "jumps across", {"craft": {"step_size": 0.2}}),
    ({"data": {"name": "folder"}}, "data.name", "needs data.root", {"data": {"name": "folder", "root": "."}}),
    ({"data": {"size": 32}}, "data.size", "only folder", {"data": {"name": "folder", "root": ".", "size": 32}}),
    ({"data": {"limit": 100}}, "data.validation", "nothing to train on", {"data": {"limit": 101}}),
    ({"data": {"augment": ["crop", "crop"]}}, "data.augment", "twice", {"data": {"augment": ["crop"]}}),
    ({"data": {"augment": ["flip"]}}, "data.augment", "mirrored digit", {"data": {"name": "svhn", "augment": ["flip"]}}),
    ({"model": {"mean": [0.5]}}, "model.mean", "go together", {"model": {"mean": [0.5], "std": [0.5]}}),
    ({"model": {"std": [0.5]}}, "model.std", "go together", {"model": {}}),
    ({"model": {"mean": [0.5], "std": [0.5, 0.5]}}, "model.std", "2 values, but mean has 1", {"model": {"mean": [0, 0], "std": [1, 1]}}),
    ({"objective": {"name": "standard"}, "craft": {}}, "craft", "crafts nothing", {"objective": {"name": "standard"}}),
    ({"craft": {"loss": "kl", "start": "none"}}, "craft.start", "no gradient", {"craft": {"loss": "kl", "start": "uniform"}}),
    (
        {"objective": {"name": "standard", "wrapper": AWP}},
        "objective.wrapper",
        "adversarial objective",
        {"objective": {"name": "mart", "wrapper": AWP}},
    ),
    (
        {"objective": {**ARREST, "replay": {"until": 11}}},
        "objective.replay.until",
        "11 epochs of replay, but training has 10",
        {"objective": ARREST},
    ),
    (
        {"objective": ARREST, "craft": {"batch_norm": "train"}},
        "craft.batch_norm",
        "too few for batch statistics",
        {"objective": {"name": "arrest"}, "craft": {"batch_norm": "train"}},
    ),
    ({"schedule": {"points": {1: 1, 11: 0.1}}}, "schedule.points.11", "after the last, 10", {"schedule": {"points": {1: 1, 10: 0.1}}}),
    ({"schedule": {"points": {2: 1}}}, "schedule.points", "epoch 1", {"schedule": {"points": {1: 1}}}),
    (
        {"schedule": {"name": "cosine", "warmup": 10}},
        "schedule.warmup",
        "as long as the training",
        {"schedule": {"name": "cosine", "warmup": 9.5}},
    ),
    (
        {"objective": {"wrapper": {**AWP, "warmup": 10}}},
        "objective.wrapper.warmup",
        "never start",
        {"objective": {"wrapper": {**AWP, "warmup": 9}}},
    ),
    ({"data": {"validation": 0}}, "data.validation", "needs a validation split", {"data": {"validation": 0}, "select": {"metric": "last"}}),
    ({"optim": {"momentum": 0, "nesterov": True}}, "optim.nesterov", "needs momentum", {"optim": {"momentum": 0.1, "nesterov": True}}),
    (
        {"model": {"gates": [CAS, {"name": "reverse-attention"}]}},
        "model.gates.1.at",
        "two gates at features",
        {"model": {"gates": [CAS, {"name": "reverse-attention", "at": ["layer2"]}]}},
    ),
    (
        {"model": {"cells": 2, "gates": [{"name": "channel-prompt", "prototypes": "classifier"}]}},
        "model.gates.0.prototypes",
        "no class prototypes",
        {"model": {"cells": 2, "gates": [{"name": "channel-prompt", "prototypes": "mean"}]}},
    ),
    (
        {"model": {"fusion": {**FUSION, "at": ["features", "features"]}}},
        "model.fusion.at",
        "named twice",
        {"model": {"fusion": {**FUSION, "at": ["layer2", "features"]}}},
    ),
    (
        {"model": {"fusion": FUSION}, "objective": {"name": "standard"}, "craft": None},
        "model.fusion",
        "an image's own features",
        {"model": {"gates": [CAS]}, "objective": {"name": "standard"}, "craft": None},
    ),
    (
        {"objective": {"terms": [ANC, {**ANC, "alpha": 0.5}]}},
        "objective.terms.1.name",
        "negative-contrast is named twice",
        {"objective": {"terms": [ANC, SHC]}},
    ),
    (
        {"objective": {"terms": [ANC]}, "craft": {"batch_norm": "train"}},
        "craft.batch_norm",
        "whose statistics they would change",
        {"objective": {"terms": [{**ANC, "negatives": "random"}]}, "craft": {"batch_norm": "train"}},
    ),
    (
        {"craft": {"batch_norm": "train", "precision": "bf16"}},
        "craft.precision",
        "runs on the network itself",
        {"craft": {"batch_norm": "train"}, "train": {"precision": "bf16"}},
    ),
    (
        {"model": {"gates": [{"name": "channel-prompt"}]}, "objective": {"terms": [ANC]}},
        "objective.terms.0.name",
        "a crafted negative has none",
        {"model": {"gates": [CAS]}, "objective": {"terms": [ANC]}},
    ),
    (
        {"model": {"fusion": FUSION}, "objective": {"terms": [SHC]}},
        "objective.terms.0.name",
        "no twin of the clean ones",
        {"model": {"fusion": FUSION}, "objective": {"terms": [ANC]}},
    ),
    (
        {"objective": {"terms": [{**SHC, "similarity": "infonce", "margin": 2}]}},
        "objective.terms.0.margin",
        "has no margin",
        {"objective": {"terms": [{**SHC, "margin": 2}]}},
    ),
    (
        {"objective": {"ramp": {"epochs": 5}}},
        "objective.ramp",
        "nothing to ramp up",
        {"model": {"gates": [CAS]}, "objective": {"ramp": {"epochs": 5}}},
    ),
    (
        {"model": {"gates": [CAS]}, "objective": {"ramp": {"epochs": 11}}},
        "objective.ramp.epochs",
        "not be on by the last epoch",
        {"model": {"gates": [CAS]}, "objective": {"ramp": {"epochs": 10}}},
    ),
]


@pytest.mark.parametrize(("wrong", "path", "message", "right"), COMBINATIONS, ids=[f"{row[1]}: {row[2]}" for row in COMBINATIONS])
def test_combinations_that_make_no_sense(wrong: dict[str, Any], path: str, message: str, right: dict[str, Any]) -> None:
    """One change triggers one problem, at its place; the nearest sensible change triggers none."""
    (found,) = problems(wrong)
    assert found[0] == path
    assert message in found[1]
    assert problems(right) == []


def test_every_combination_check_has_a_row() -> None:
    """As many different messages above as there are `yield`s in the schema's checks: a new check needs a new row."""
    checks = [ast.parse(inspect.getsource(check)) for check in schema._CHECKS]
    yields = sum(isinstance(node, ast.Yield) for check in checks for node in ast.walk(check))
    same_check = {"allows anything"}  # of `did you mean`; and the two sides of `go together` have one yield
    assert len({message for _, _, message, _ in COMBINATIONS} - same_check) == yields
    defined = {value for name, value in vars(schema).items() if name.startswith("_check_")}
    assert defined == set(schema._CHECKS)


def test_all_combinations_are_reported_at_once() -> None:
    patch = {"threat": {"eps": 2}, "data": {"augment": ["flip"]}, "optim": {"momentum": 0, "nesterov": True}}
    assert [path for path, _ in problems(patch)] == ["threat.eps", "data.augment", "optim.nesterov"]


@pytest.mark.parametrize("name", names())
def test_shipped_recipes_trigger_no_combination(name: str) -> None:
    assert combination_problems(load(name)) == []


@pytest.mark.parametrize(
    ("objective", "craft", "loss", "start"),
    [
        ("pgd-at", {}, "ce", "uniform"),
        ("trades", {}, "kl", "normal"),
        ("mart", {}, "ce", "normal"),
        ("arrest", {}, "ce", "uniform"),
        ("trades", {"loss": "ce"}, "ce", "normal"),
        ("mart", {"start": "none"}, "ce", "none"),
        ("trades", {"loss": "margin", "start": "uniform"}, "margin", "uniform"),
        ("trades", {"steps": 3}, "kl", "normal"),
    ],
)
def test_crafting_is_the_objectives_own_where_left_out(objective: str, craft: dict[str, Any], loss: str, start: str) -> None:
    made = recipe(objective={"name": objective}, craft=craft).craft
    assert made is not None
    assert (made.loss, made.start) == (loss, start)
    if not craft:
        assert recipe(objective={"name": objective}) == recipe(objective={"name": objective}, craft={}), "no craft part is an empty one"


@pytest.mark.parametrize("objective", ["pgd-at", "trades", "mart", "arrest"])
def test_an_empty_craft_part_is_one_that_is_left_out(objective: str) -> None:
    """`craft:` with nothing after it, which YAML reads as null, must not turn TRADES into another method."""
    assert recipe(objective={"name": objective}, craft=None) == recipe(objective={"name": objective})


def test_arrest_is_plain_finetuning_where_both_constraints_are_left_out() -> None:
    """And the papers' numbers are the defaults of what is there."""
    plain = recipe(objective={"name": "arrest"}).objective
    assert (plain.distillation, plain.replay) == (None, None)
    assert plain == recipe(objective={"name": "arrest", "distillation": None, "replay": None}).objective
    whole = recipe(objective={"name": "arrest", "distillation": {"name": "angular"}, "replay": {}}).objective
    assert (whole.distillation.weight, whole.replay.angle, whole.replay.until, whole.replay.input) == (50, 30, 10, "noise")


def test_standard_training_crafts_nothing() -> None:
    assert recipe(objective={"name": "standard"}).craft is None


@pytest.mark.parametrize(
    ("objective", "select", "metric"),
    [
        ("standard", {}, "clean"),
        ("standard", {"every": 2}, "clean"),
        ("standard", {"metric": "pgd-10"}, "pgd-10"),
        ("pgd-at", {}, "pgd-10"),
    ],
)
def test_epochs_are_selected_as_the_objective_asks(objective: str, select: dict[str, Any], metric: str) -> None:
    made = recipe(objective={"name": objective}, select=select).select
    assert (made.metric, made.every) == (metric, select.get("every", 1))


def parts(cls: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    """Every schema class below and including cls."""

    def inside(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for argument in get_args(annotation):
            yield from inside(argument)

    yield cls
    for field in cls.model_fields.values():
        for child in inside(field.annotation):
            yield from parts(child)


@pytest.mark.parametrize("cls", sorted(set(parts()), key=lambda cls: cls.__name__))
def test_every_part_is_closed_and_frozen(cls: type[BaseModel]) -> None:
    assert cls.model_config.get("extra") == "forbid"
    assert cls.model_config.get("frozen") is True


def test_a_recipe_cannot_be_changed() -> None:
    r = recipe()
    for part, field in ((r, "seed"), (r.data, "validation"), (r.objective, "aux_weight"), (r.schedule, "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, 1)


def test_the_json_schema_is_closed_everywhere() -> None:
    definitions = Recipe.model_json_schema()
    objects = [part for part in [definitions, *definitions["$defs"].values()] if part.get("type") == "object"]
    assert {part["title"] for part in objects} == {cls.__name__ for cls in parts()}
    assert all(part["additionalProperties"] is False for part in objects)


@pytest.mark.parametrize(
    ("patch", "path", "kind"),
    [
        ({"seed": True}, ("seed",), "int_type"),
        ({"seed": 1.0}, ("seed",), "int_type"),
        ({"seed": "1"}, ("seed",), "int_type"),
        ({"seed": 2**63}, ("seed",), "less_than"),
        ({"schedule": {"epochs": 0}}, ("schedule", "points", "epochs"), "greater_than_equal"),
        ({"threat": {"eps": 0}}, ("threat", "eps"), "greater_than"),
        ({"threat": {"eps": "-1/255"}}, ("threat", "eps"), "greater_than"),
        ({"optim": {"momentum": 1}}, ("optim", "momentum"), "less_than"),
        ({"optim": {"weight_decay": -1e-4}}, ("optim", "weight_decay"), "greater_than_equal"),
        ({"optim": {"nesterov": 1}}, ("optim", "nesterov"), "bool_type"),
        ({"objective": {"name": "arrest", "replay": {"angle": 0}}}, ("objective", "arrest", "replay", "angle"), "greater_than"),
        ({"objective": {"name": "arrest", "replay": {"angle": 90.1}}}, ("objective", "arrest", "replay", "angle"), "less_than_equal"),
        ({"objective": {"name": "arrest", "replay": {"until": 0}}}, ("objective", "arrest", "replay", "until"), "greater_than_equal"),
        ({"objective": {"name": "arrest", "replay": {"input": "blur"}}}, ("objective", "arrest", "replay", "input"), "literal_error"),
        ({"objective": {"name": "arrest", "distillation": {}}}, ("objective", "arrest", "distillation", "name"), "missing"),
        (
            {"objective": {"name": "arrest", "distillation": {"name": "kl"}}},
            ("objective", "arrest", "distillation", "name"),
            "literal_error",
        ),
        (
            {"objective": {"name": "arrest", "distillation": {"name": "angular", "weight": -1}}},
            ("objective", "arrest", "distillation", "weight"),
            "greater_than_equal",
        ),
        ({"train": {"ema": 1}}, ("train", "ema"), "less_than"),
        ({"train": {"batch_size": 0}}, ("train", "batch_size"), "greater_than_equal"),
        ({"model": {"width": 0}}, ("model", "width"), "greater_than"),
        ({"model": {"std": [0], "mean": [0]}}, ("model", "std", 0), "greater_than"),
        ({"select": {"metric": "pgd-0"}}, ("select", "metric"), "string_pattern_mismatch"),
        ({"select": {"split": "test"}}, ("select", "split"), "literal_error"),
        ({"name": "../up"}, ("name",), "string_pattern_mismatch"),
        ({"name": "-x"}, ("name",), "string_pattern_mismatch"),
        ({"name": "a" * 101}, ("name",), "string_pattern_mismatch"),
        ({"name": "a\n"}, ("name",), "string_pattern_mismatch"),
    ],
)
def test_values_out_of_range_are_refused(patch: dict[str, Any], path: tuple[str | int, ...], kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(**patch)
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [(path, kind)]


def test_the_lists_of_names_are_those_of_the_fields() -> None:
    assert set(get_args(schema.Model.model_fields["arch"].annotation)) == set(schema.ARCHITECTURES)
    assert set(get_args(schema.Data.model_fields["name"].annotation)) == set(schema.DATA_SETS)


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        ({"threat": {"eps": "8/255"}}, 2 / 255),
        ({"craft": {"step_size": "1/255"}}, 1 / 255),
        ({"objective": {"name": "standard"}, "threat": {"eps": 0.5}}, 0.125),
    ],
)
def test_the_crafting_step(patch: dict[str, Any], size: float) -> None:
    assert step_size(recipe(**patch)) == pytest.approx(size, rel=1e-15)


@pytest.mark.parametrize(("metric", "steps"), [("pgd-10", 10), ("pgd-7", 7), ("pgd-9999", 9999), ("clean", 10), ("last", 10)])
def test_steps_of_a_selection_metric(metric: str, steps: int) -> None:
    assert selection_steps(recipe(select={"metric": metric}).select.metric) == steps
