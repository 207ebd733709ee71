"""The loader: every problem at once and exactly where it stands, overrides, hints, and the way back to YAML."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcli.errors import AdvcliError, RecipeError, UsageError
from advcli.recipe import Recipe, dump, find, load, names, nodes, parse

GOOD = """\
# A demonstration.
name: demo
data:
  name: cifar10
  augment: [crop, flip]
threat: {norm: linf, eps: 8/255}
model: {arch: resnet18}
objective: {name: pgd-at, wrapper: {name: awp, gamma: 0.005}}
craft: {steps: 10}
optim: {lr: 0.1, weight_decay: 5e-4}
schedule: {epochs: 110, points: {1: 1.0, 100: 0.1}}
train: {batch_size: 128}
select: {metric: pgd-10}
"""


def place(text: str, needle: str) -> str:
    """`line:column`, counted from 1, of the first letter of needle, which stands in text exactly once."""
    assert text.count(needle) == 1, f"{needle!r} stands {text.count(needle)} times"
    before = text[: text.index(needle)]
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def refused(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse(text, source="my.yaml", overrides=overrides)
    assert caught.value.exit_code == 2
    assert "advcli recipe schema" in caught.value.next
    return caught.value.problems


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} stands {GOOD.count(old)} times"
    return GOOD.replace(old, new)


def test_the_good_recipe_is_good() -> None:
    recipe = parse(GOOD)
    assert (recipe.name, recipe.threat.eps, recipe.threat.eps.text, recipe.optim.weight_decay) == ("demo", 8 / 255, "8/255", 5e-4)
    assert recipe.schedule.points == {1: 1.0, 100: 0.1}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "needle", "message"),
    [
        ("lr: 0.1", "lrr: 0.1, lr: 0.1", "lrr", "unknown key optim.lrr (did you mean lr?)"),
        ("batch_size: 128", "batchsize: 128", "batchsize", "unknown key train.batchsize (did you mean batch_size?)"),
        (
            "batch_size: 128",
            "weight_decay: 1e-3",
            "weight_decay: 1e-3",
            "unknown key train.weight_decay (did you mean optim.weight_decay?)",
        ),
        ("batch_size: 128", "validation: 5", "validation", "unknown key train.validation (did you mean data.validation?)"),
        ("name: demo", "name: demo\nepochs: 3", "epochs: 3", "unknown key epochs (did you mean schedule.epochs?)"),
        ("batch_size: 128", "quux: 1", "quux", "unknown key train.quux"),
        ("gamma: 0.005", "gama: 0.005", "gama", "unknown key objective.wrapper.gama (did you mean gamma?)"),
        ("select:", "selekt:", "selekt", "unknown key selekt (did you mean select?)"),
        ("resnet18", "resnet19", "resnet19", "(did you mean resnet18?)"),
        ("resnet18", "transformer", "transformer", "model.arch is one of small-cnn, resnet18,"),
        (
            "name: pgd-at",
            "name: pgdat",
            "pgdat",
            "objective.name is one of standard, pgd-at, trades, mart, arrest; got 'pgdat' (did you mean pgd-at?)",
        ),
        ("epochs: 110", "name: cosin, epochs: 110", "cosin", "(did you mean cosine?)"),
        ("name: awp", "name: awq", "awq", "objective.wrapper.name is one of awp; got 'awq' (did you mean awp?)"),
        ("{name: pgd-at, wrapper: {name: awp, gamma: 0.005}}", "{clean_pass: true}", "{clean_pass", "objective needs a name"),
        ("{name: pgd-at, wrapper: {name: awp, gamma: 0.005}}", "3", "3\ncraft", "objective"),
        ("batch_size: 128", "compile: maybe", "maybe", "train.compile is one of auto, true, false; got 'maybe'"),
        ("batch_size: 128", "compile: 01", "01", "train.compile is one of auto, true, false; got '1'"),
        ("linf", "l3", "l3", "threat.norm is one of linf, l2; got 'l3'"),
        ("8/255", "8:255", "8:255", "threat.eps: expected a number such as 0.1, 1e-3 or 8/255, got '8:255'"),
        ("8/255", "-8/255", "-8/255", "threat.eps: expected greater than 0"),
        ("8/255", "8/0", "8/0", "divides by zero"),
        ("8/255", "8", "8}\nmodel", "did you mean 8/255?"),
        ("5e-4", "small", "small", "optim.weight_decay: expected a number"),
        ("steps: 10", "steps: 1e1", "1e1", "craft.steps: expected a valid integer, got '1e1'"),
        ("steps: 10", "steps: 0", "0}\noptim", "craft.steps: expected greater than or equal to 1, got 0"),
        ("steps: 10", "steps: '10'", "'10'", "craft.steps: expected a valid integer"),
        ("[crop, flip]", "[crop, crup]", "crup", "data.augment.1 is one of crop, flip; got 'crup' (did you mean crop?)"),
        ("[crop, flip]", "crop", "crop", "data.augment: expected"),
        ("[crop, flip]", "[crop, crop]", "[crop, crop]", "an augmentation is named twice"),
        ("100: 0.1", "100: slow", "slow", "schedule.points.100: expected a number"),
        ("100: 0.1", "200: 0.2", "0.2", "epoch 200 is after the last, 110"),
        ("1: 1.0, 100: 0.1", "2: 1.0", "{2: 1.0}", "the factor from epoch 1 on is missing"),
        ("{1: 1.0, 100: 0.1}", "[1.0]", "[1.0]", "schedule.points: expected a valid dictionary"),
        ("{batch_size: 128}", "[128]", "[128]", "train: expected a valid dictionary"),
        ("{batch_size: 128}", "null", "null", "train: expected a valid dictionary"),
        ("  name: cifar10\n", "", "augment", "data.name is missing"),
        ("optim: {lr: 0.1, weight_decay: 5e-4}", "optim: {weight_decay: 5e-4}", "{weight_decay", "optim.lr is missing"),
        ("name: demo\n", "", "data:", "name is missing"),
        ("name: demo", "name: a/b", "a/b", "name: "),
        ("pgd-10", "pgd10", "pgd10", "select.metric: "),
    ],
)
def test_a_problem_stands_where_it_is(old: str, new: str, needle: str, message: str) -> None:
    """One change, one problem, at the line and column of the fault (of the enclosing part where something is left out)."""
    text = changed(old, new)
    (problem,) = refused(text)
    assert problem.startswith(f"my.yaml:{place(text, needle)}: ")
    assert message in problem


@pytest.mark.parametrize(
    ("old", "new", "needle"),
    [("1: 1.0, 100: 0.1", "1: 1.0, 0: 0.1", "0: 0.1"), ("1: 1.0, 100: 0.1", "1: 1.0, late: 0.1", "late"), ("steps: 10", "7: 10", "7: 10")],
)
def test_a_key_that_is_at_fault_is_pointed_at(old: str, new: str, needle: str) -> None:
    """Not the value beside it."""
    text = changed(old, new)
    (problem,) = refused(text)
    assert problem.startswith(f"my.yaml:{place(text, needle)}: ")


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = """\
# Everything wrong.
name: demo
data: {name: cifar10, augmnt: [crop]}
threat:
  norm: l3
  eps: 8:255
model: {arch: resnet19,
        width: -1}
objective: {name: pgd-at, wrapper: {name: awp, gama: 0.01}}
optim: {momentum: fast}
schedule: {epochs: 10, points: {1: 1.0, 2: x}}
train: {warmup: 3}
"""
    needles = ["augmnt", "l3", "8:255", "resnet19", "-1}", "gama", "{momentum", "fast", "x}}", "warmup"]
    assert [problem.split(": ")[0] for problem in refused(text)] == [f"my.yaml:{place(text, needle)}" for needle in needles]


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [("name: pgd-at,", "name: pgd-at, beta: 6,", "objective"), ("epochs: 110,", "name: cosine, epochs: 110,", "schedule")],
)
def test_a_hint_never_names_the_key_that_is_refused(old: str, new: str, part: str) -> None:
    """A key of another kind of the same part: `unknown key objective.beta (did you mean objective.beta?)` helps nobody."""
    (problem,) = refused(changed(old, new))
    match = re.search(rf"unknown key ({part}\.\w+)", problem)
    assert match
    assert problem.count(match[1]) == 1


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", "1:1", "a recipe is a mapping"),
        ("# only a comment\n", "1:1", "a recipe is a mapping"),
        ("- name: demo\n", "1:1", "a recipe is a mapping"),
        ("just words\n", "1:1", "a recipe is a mapping"),
        ("name: a\nname: b\n", "2:1", "'name' is given twice, first on line 1"),
        ("data: {name: digits, size: 8,\n  name: svhn}\n", "2:3", "'name' is given twice, first on line 1"),
        ("points: {1: 1.0, 01: 0.1}\n", "1:18", "1 is given twice, first on line 1"),
        ("a: &x {b: 1}\nc: *x\n", "1:4", "aliases"),
        ("a: &x [1]\nc: *x\n", "1:4", "aliases"),
        ("a: &x {b: *x}\n", "1:4", "aliases"),
        ("download: yes\n", "1:11", "'yes' reads as text or as a truth value"),
        ("a: [No, 1]\n", "1:5", "'No' reads as text"),
        ("a:\n  - b: OFF\n", "2:8", "'OFF' reads as text"),
        ("true: 1\n", "1:1", "a key is a word or a whole number"),
        ("a: {null: 1}\n", "1:5", "a key is a word or a whole number"),
        ("1.5: 1\n", "1:1", "a key is a word or a whole number"),
        ("? [a]\n: 1\n", "1:3", "a key is a word or a whole number"),
        ("a: b: c\n", "1:5", "not valid YAML: mapping values are not allowed here"),
        ("a: [1,\n", "2:1", "not valid YAML"),
        ("a: 'open\n", "2:1", "not valid YAML"),
        ("a:\n\t- 1\n", "2:1", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "2:1", "not valid YAML"),
        ("a: *nowhere\n", "1:4", "not valid YAML"),
        ("a: \x07\n", "1:1", "not valid YAML"),
        ("%YAML 9.9\n---\na: 1\n", "1:1", "not valid YAML"),
    ],
)
def test_text_that_is_no_recipe(text: str, position: str, message: str) -> None:
    (problem,) = refused(text)
    assert problem.startswith(f"my.yaml:{position}: ")
    assert message in problem


def test_all_problems_of_the_text_at_once() -> None:
    problems = refused("name: yes\nname: no\ndata: {augment: [on], true: 1}\n")
    assert [problem.split(": ")[0] for problem in problems] == ["my.yaml:1:7", "my.yaml:2:1", "my.yaml:3:18", "my.yaml:3:23"]


def test_text_nested_without_end_is_a_problem_and_no_crash() -> None:
    """nodes.read promises that nothing is raised."""
    assert nodes.read("[" * 2000 + "]" * 2000).problems


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.text("ab01:,-[]{}#&*!|>'\"%@\n\t ~?", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except RecipeError as error:
        assert all(re.match(r"recipe:\d+:\d+: ", problem) for problem in error.problems)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("0.5", 0.5),
        ("1.", 1.0),
        ("1e-3", "1e-3"),
        ("8/255", "8/255"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'yes'", "yes"),
        ("0x10", "0x10"),
        ("0o7", "0o7"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        ("!!python/object:os.system x", "x"),
    ],
)
def test_scalars_have_one_meaning(text: str, value: object) -> None:
    """None of YAML 1.1's surprises: no octal, sexagesimal, date, infinity or constructor."""
    read = nodes.read(f"a: {text}\n").value["a"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.batch_size=64", "train.batch_size", 64),
        ("threat.eps=4/255", "threat.eps", "4/255"),
        ("optim.lr=1e-2", "optim.lr", 0.01),
        ("seed=7", "seed", 7),
        ("train={batch_size: 32, precision: fp32}", "train.batch_size", 32),
        ("data.augment=[]", "data.augment", []),
        ("data.augment=[flip]", "data.augment", ["flip"]),
        ("data.augment.1=crop", "data.augment", None),
        ("~data.augment.0", "data.augment", ["flip"]),
        ("~data.augment", "data.augment", []),
        ("~craft", "craft.steps", 10),
        ("~objective.wrapper", "objective.wrapper", None),
        ("objective.wrapper=null", "objective.wrapper", None),
        ("schedule.points.100=0.5", "schedule.points.100", 0.5),
        ("schedule.points={1: 1.0, 75: 0.1}", "schedule.points.75", 0.1),
        ("~schedule.points.100", "schedule.points", {"1": 1.0}),
        ("data.root=a=b", "data.root", "a=b"),
        ("data.root=/x y/~z", "data.root", "/x y/~z"),
        ("data.root='1'", "data.root", "1"),
        ("data.root=", "data.root", None),
        ("select.metric=last", "select.metric", "last"),
        ("model.width=0.25", "model.width", 0.25),
    ],
)
def test_overrides(override: str, key: str, value: object) -> None:
    if override == "data.augment.1=crop":
        (problem,) = refused(GOOD, override)  # [crop, crop]: the entry was changed in its place
        assert "named twice" in problem
        return
    found = parse(GOOD, overrides=[override]).model_dump(mode="json")
    for word in key.split("."):
        found = found[word] if word in found else found[int(word)]
    assert found == value


def test_an_override_changes_that_key_alone() -> None:
    before, after = (parse(GOOD, overrides=o).model_dump() for o in ([], ["optim.lr=0.2"]))
    assert after["optim"].pop("lr") == 0.2
    before["optim"].pop("lr")
    assert after == before


def test_overrides_apply_in_their_order() -> None:
    assert parse(GOOD, overrides=["seed=1", "seed=2"]).seed == 2
    assert parse(GOOD, overrides=["~train", "train.batch_size=5"]).train.batch_size == 5
    recipe = parse(GOOD, overrides=["objective={name: trades}", "objective.beta=3"])
    assert recipe.objective.beta == 3  # type: ignore[union-attr]


def test_overrides_switch_the_kind_of_a_part() -> None:
    """The crafting follows the objective, since the recipe left loss and start out."""
    changes = ["objective.name=trades", "objective.beta=1", "~schedule.points", "schedule.name=cosine", "schedule.warmup=5"]
    recipe = parse(GOOD, overrides=changes)
    assert (type(recipe.objective).__name__, type(recipe.schedule).__name__) == ("Trades", "Cosine")
    assert recipe.craft is not None
    assert (recipe.craft.loss, recipe.craft.start, recipe.craft.steps) == ("kl", "normal", 10)
    assert recipe.objective.wrapper is not None


def test_an_override_makes_a_part_that_was_left_out() -> None:
    changes = ["~objective.wrapper", "objective.wrapper.name=awp", "objective.wrapper.gamma=0.01", "~train", "train.ema=0.9"]
    recipe = parse(GOOD, overrides=changes)
    assert recipe.objective.wrapper is not None
    assert (recipe.objective.wrapper.gamma, recipe.train.ema) == (0.01, 0.9)


@pytest.mark.parametrize("override", ["", "=", "=1", "seed", "a..b=1", ".seed=1", "seed.=1", "~", "~seed=1", "~a..b", "~.a", "--resume"])
def test_what_is_no_override_is_refused(override: str) -> None:
    with pytest.raises(UsageError, match="is no override") as caught:
        parse(GOOD, overrides=[override])
    assert "part.key=value" in caught.value.next


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name.first=x", "the recipe has no part name"),
        ("data.augment.crop.x=1", "the recipe has no part data.augment.crop"),
        ("data.augment.5=crop", "data.augment has entries 0 to 1"),
        ("data.augment.-1=crop", "data.augment has entries 0 to 1"),
        ("data.augment.x=crop", "data.augment has entries 0 to 1"),
        ("~data.augment.2", "the recipe has no data.augment.2"),
        ("~data.augment.x", "the recipe has no data.augment.x"),
        ("~train.lr", "the recipe has no train.lr"),
        ("~nothing.at.all", "the recipe has no part nothing"),
        ("data.augment=[crop", "not valid YAML"),
        ("data.download=yes", "write true, false or quotes"),
        ("train={batch_size: 1, batch_size: 2}", "given twice"),
    ],
)
def test_overrides_that_do_not_fit_the_recipe(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse(GOOD, overrides=[override])
    assert repr(override) in caught.value.what


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key optim.lrr (did you mean lr?)"),
        ("modle.arch=resnet18", "unknown key modle (did you mean model?)"),
        ("model.arch=resnet81", "did you mean resnet18?"),
        ("threat.eps=lots", "threat.eps: expected a number"),
        ("threat=null", "threat: expected"),
        ("objective={}", "objective needs a name"),
        ("craft.step_size=1", "jumps across the whole ball"),
        ("schedule.points.x=1", "schedule.points.x: expected a valid integer"),
        ("3=4", "3: "),
    ],
)
def test_a_fault_of_an_override_is_named_by_it(override: str, message: str) -> None:
    (problem,) = refused(GOOD, override)
    assert problem.startswith(f"override {override}: ")
    assert message in problem


def test_faults_of_the_file_come_first() -> None:
    text = changed("linf", "l3")
    problems = refused(text, "model.arch=x")
    assert [problem.partition(": ")[0] for problem in problems] == [f"my.yaml:{place(text, 'l3')}", "override model.arch=x"]


def test_the_last_override_of_a_key_is_the_one_that_is_blamed() -> None:
    (problem,) = refused(GOOD, "objective={name: trades}", "objective.beta=x")
    assert problem.startswith("override objective.beta=x: ")


def test_an_override_that_makes_an_unfinished_part_is_blamed_for_it() -> None:
    """The file holds nothing that is wrong."""
    text = changed(", wrapper: {name: awp, gamma: 0.005}", "")
    (problem,) = refused(text, "objective.wrapper.gamma=0.01")
    assert problem.startswith("override objective.wrapper.gamma=0.01: ")
    assert "objective.wrapper.name is missing" in problem


def test_a_removal_is_blamed_for_what_it_leaves_missing() -> None:
    """The file itself holds the key."""
    assert refused(GOOD, "~optim.lr") == ("override ~optim.lr: optim.lr is missing",)


def test_load_reads_a_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load(str(path)) == parse(GOOD)
    assert load(str(path), ["seed=3"]).seed == 3
    path.write_text(changed("linf", "l3"), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(str(path))
    assert caught.value.problems[0].startswith(f"{path}:{place(changed('linf', 'l3'), 'l3')}: ")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", GOOD.replace("demonstration", "d\xe9monstration").encode("latin-1")])
def test_a_file_that_is_not_utf8_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot read the recipe") as caught:
        load(str(path))
    assert caught.value.where == str(path)


def test_words_beyond_ascii_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load(str(path), ["data.root=/données/Ω"]).data.root == "/données/Ω"


positive = st.sampled_from(["0.5", "8/255", "1e-3", "2", ".25", "1e-5", "3e+2", "0.1"])
VALID = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1).map(str),
        "threat": st.builds("{{norm: l2, eps: {}}}".format, positive),
        "model.width": positive,
        "model.arch": st.sampled_from(["small-cnn", "vgg16-bn", "wrn-28-10"]),
        "optim.lr": positive,
        "optim.weight_decay": positive,
        "train.ema": st.sampled_from(["0.999", "1/2", "1e-9"]),
        "train.save_every": positive,
        "objective": st.sampled_from(["{name: trades, beta: 6}", "{name: mart, beta: 1/3}", "{name: pgd-at, clean_pass: true}"]),
        "schedule": st.sampled_from(
            ["{name: cosine, epochs: 19, warmup: 1/2}", "{name: one-cycle, epochs: 13, peak: 1e-1}", "{epochs: 14}"]
        ),
        "select.metric": st.sampled_from(["last", "clean", "pgd-20"]),
        "data.limit": st.integers(1001, 50_000).map(str),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(names()), VALID)
def test_dump_is_the_inverse_of_parse(name: str, changes: dict[str, str]) -> None:
    """Resolved and written, read again: the same recipe, the same text, the same JSON; fractions stay fractions."""
    text = find(name).read_text(encoding="utf-8")
    if name == "again" and "objective" not in changes:
        changes = {**changes, "objective.ramp.epochs": "13"}
    if name == "standard":
        changes = {key: value for key, value in changes.items() if key != "objective"}
    recipe = parse(text, overrides=["~craft.step_size"] * ("craft: {attack" in text) + [f"{key}={value}" for key, value in changes.items()])
    again = parse(dump(recipe))
    assert again == recipe
    assert again.threat.eps.text == recipe.threat.eps.text or "/" not in recipe.threat.eps.text
    assert dump(again) == dump(recipe)
    assert json.dumps(again.model_dump(mode="json")) == json.dumps(recipe.model_dump(mode="json"))


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("0123456789.+-eE~_:", min_size=1, max_size=5))
def test_any_text_value_survives_the_dump(root: str) -> None:
    """A folder may be called anything."""
    recipe = parse(GOOD)
    recipe = Recipe.model_validate({**recipe.model_dump(), "data": {**recipe.data.model_dump(), "root": root}})
    assert parse(dump(recipe)).data.root == root


LOOKALIKES = ["08", "1e-3", "8/255", "true", "tRUE", "null", "nULL", "~", "yes", "yEs", "1", "1.0", "-.5", "0x1", " ", "", "#", "a: b", "é"]


@pytest.mark.parametrize("word", LOOKALIKES)
def test_text_that_looks_like_something_else_survives_the_dump(word: str) -> None:
    recipe = parse(GOOD, overrides=[f"data.root={json.dumps(word)}"])
    assert recipe.data.root == word
    assert parse(dump(recipe)) == recipe


def test_every_error_of_the_loader_exits_with_2() -> None:
    for text, overrides in (("", []), (GOOD, ["x"]), (GOOD, ["seed=x"])):
        with pytest.raises(AdvcliError) as caught:
            parse(text, overrides=overrides)
        assert caught.value.exit_code == 2
