"""The table of runs: folding of seeds, choice of evaluations, what is refused and what is said."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import first, write_attacked_run, write_evaluation, write_run

from advcli.errors import CheckpointError, ResourceError, UsageError
from advcli.evaluation.comparison import gather
from advcli.evaluation.stored import evaluations_in
from advcli.measures import wilson
from advcli.recipe import load
from advcli.report.figures import steps
from advcli.runs.folder import store_probe

Make = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """made(name, *overrides, quick=12, aa=10, ...) -> run folder, under a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return write_attacked_run


@pytest.fixture
def evaluation() -> Make:
    return write_evaluation


def table(*folders: Path, columns: tuple[str, ...] = ()) -> dict[str, Any]:
    found = gather(folders, columns)
    json.dumps(found, allow_nan=False)
    return found


def cell(found: dict[str, Any], row: int, column: str) -> Any:
    return found["rows"][row]["cells"][column]


def test_a_single_seed_is_its_value_with_wilson(made: Make) -> None:
    found = table(made("a", quick=12))
    assert [column["name"] for column in found["columns"]] == ["clean", "quick"]
    assert [column["upper_bound"] for column in found["columns"]] == [False, True]
    for column, right in (("clean", 18), ("quick", 12)):
        part = cell(found, 0, column)
        assert (part["mean"], part["std"], part["ci"], part["seeds"]) == (right / 20, None, list(wilson(right, 20)), 1)
    assert found["rows"][0]["verdict"] == "upper bound"
    assert found["notes"] == []


def test_seeds_fold_to_mean_and_sample_deviation(made: Make) -> None:
    counts = (12, 13, 17)
    found = table(*(made(f"a{k}", f"seed={k}", aa=count) for k, count in enumerate(counts)))
    (row,) = found["rows"]
    assert (row["name"], row["seeds"], len(row["runs"]), row["verdict"]) == ("quickstart", [0, 1, 2], 3, "trustworthy")
    part = row["cells"]["aa"]
    values = [count / 20 for count in counts]
    mean = sum(values) / 3
    assert part["mean"] == pytest.approx(mean)
    assert part["std"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5) == statistics.stdev(values)
    assert (part["ci"], part["seeds"], part["n"]) == (None, 3, 20)
    assert [row["value"] for row in part["evaluations"]] == values


def test_places_and_saving_do_not_make_a_method(made: Make) -> None:
    found = table(made("a", "seed=0", "data.root=/x", quick=9), made("b", "seed=1", "train.save_every=3", quick=9))
    assert len(found["rows"]) == 1


def settled(made: Make, name: str, *asked: str, came_to: tuple[str, ...], aa: int) -> Path:
    """A run of which the changes `asked` were asked, and whose machine made came_to of them."""
    run = made(name, *asked, *came_to, aa=aa)
    store_probe(run, load("quickstart", asked), {"trials": []})
    return run


def test_what_one_machine_could_not_do_is_told_beside_what_others_did(made: Make) -> None:
    found = table(
        settled(made, "a", "seed=0", "train.compile=true", came_to=("train.precision=fp32",), aa=8),
        settled(made, "b", "seed=1", "train.compile=true", came_to=("train.precision=fp32", "train.compile=false"), aa=10),
    )
    assert found["notes"] == ["quickstart: train.compile was settled differently from run to run: true in runs/a; false in runs/b"]


def test_what_machines_made_of_auto_does_not_make_a_method(made: Make) -> None:
    found = table(
        settled(made, "a", "seed=0", came_to=("train.precision=bf16", "train.compile=true"), aa=8),
        settled(made, "b", "seed=1", came_to=("train.precision=fp32", "train.compile=true"), aa=10),
        settled(made, "c", "seed=2", came_to=("train.precision=bf16", "train.compile=true"), aa=9),
    )
    (row,) = found["rows"]
    assert (row["name"], row["seeds"], row["cells"]["aa"]["mean"]) == ("quickstart", [0, 1, 2], 0.45)
    assert found["notes"] == ["quickstart: train.precision was settled differently from run to run: bf16 in runs/a, runs/c; fp32 in runs/b"]


def test_what_was_asked_for_does_make_one(made: Make) -> None:
    """`auto` that came to float32 is not float32 that was asked for, and without a receipt the stored recipe is what was asked for."""
    left = settled(made, "a", "seed=0", came_to=("train.precision=fp32",), aa=8)
    said = settled(made, "b", "seed=1", "train.precision=fp32", came_to=(), aa=8)
    old = made("c", "seed=2", "train.precision=fp32", aa=8)
    found = table(left, said, old)
    assert [(row["name"], row["seeds"]) for row in found["rows"]] == [
        ("quickstart (train.precision=auto)", [0]),
        ("quickstart (train.precision=fp32)", [1, 2]),
    ]
    assert found["notes"] == []


def test_a_receipt_of_the_probe_moves_no_other_field(made: Make) -> None:
    run = made("a", aa=8)
    (run / "probe.json").write_text(json.dumps({"asked": {"seed": 5, "train.precision": "auto"}}))
    assert table(run)["rows"][0]["seeds"] == [0]


def test_rows_keep_the_order_of_the_command_line_and_say_what_tells_them_apart(made: Make) -> None:
    runs = [
        made("z", "craft.steps=7", quick=9),
        made("u", "name=other", quick=3),
        made("a", "craft.steps=9", "optim.lr=0.2", quick=9),
        made("z2", "craft.steps=7", "seed=5", quick=9),
    ]
    names = [row["name"] for row in table(*runs)["rows"]]
    assert names == ["quickstart (craft.steps=7, optim.lr=0.1)", "other", "quickstart (craft.steps=9, optim.lr=0.2)"]


def test_a_part_that_one_has_and_the_other_lacks_is_named_once(made: Make) -> None:
    found = table(made("a", quick=9), made("b", "objective.wrapper={name: awp}", quick=9))
    assert found["rows"][0]["name"] == "quickstart"
    assert "objective.wrapper.name=awp" in found["rows"][1]["name"]


def test_one_seed_does_not_count_twice(made: Make) -> None:
    with pytest.raises(UsageError, match="one seed, 4: a mean would count it twice") as raised:
        table(made("a", "seed=4", quick=9), made("b", "seed=4", quick=9))
    assert raised.value.where == "runs/a and runs/b"


def test_columns_are_chosen(made: Make) -> None:
    found = table(made("a", quick=12, aa=10), columns=("quick/fgsm", "aa/worst", "quick", "quick/worst"))
    assert [column["name"] for column in found["columns"]] == ["clean", "quick/fgsm", "aa", "quick"]
    assert [column["upper_bound"] for column in found["columns"]] == [False, True, False, True]
    assert [cell(found, 0, column["name"])["mean"] for column in found["columns"]] == [0.9, 0.7, 0.5, 0.6]
    assert found["rows"][0]["verdict"] == "trustworthy", "that of its strictest column"


def test_one_attack_of_aa_is_an_upper_bound(made: Make) -> None:
    found = table(made("a", aa=10), columns=("aa/apgd-ce",))
    assert (found["columns"][1]["upper_bound"], cell(found, 0, "aa/apgd-ce")["verdict"]) == (True, "upper bound")
    assert found["rows"][0]["verdict"] == "upper bound"


@pytest.mark.parametrize(
    ("column", "says"),
    [("quick/pgd-21", "suite quick has no reading 'pgd-21'"), ("/worst", "names no column"), ("quick/", "names no column")],
)
def test_a_column_that_cannot_be_is_refused(made: Make, column: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        table(made("a", quick=12), columns=(column,))
    assert raised.value.next


def test_missing_evaluations_are_said(made: Make) -> None:
    found = table(made("a", quick=12, aa=8), made("b", "name=b", quick=3), made("c", "name=c"))
    assert cell(found, 1, "aa") is None
    assert cell(found, 2, "clean") is None
    assert "no aa evaluation: advcli attack runs/b --suite aa" in found["notes"]
    assert (found["rows"][1]["verdict"], found["rows"][2]["verdict"]) == ("upper bound", None)
    assert table(Path("runs/c"))["notes"] == ["no evaluation: advcli attack runs/c --suite aa"]


def test_a_seed_without_its_evaluation_leaves_the_mean_and_is_counted(made: Make) -> None:
    found = table(made("a", "seed=0", aa=8), made("b", "seed=1", aa=10), made("c", "seed=2"))
    assert (cell(found, 0, "aa")["seeds"], cell(found, 0, "aa")["mean"]) == (2, 0.45)
    assert "aa of quickstart: 2 of 3 seeds" in found["notes"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": "2 native"}, "quick/2 native"),
        ({"sources": ["a" * 64]}, "from aaaaaaaa"),
        ({"clean": [1] * 9, "attacks": {"pgd-20": [1] * 9}}, "n = 9"),
        ({"images": "x"}, "images"),
    ],
)
def test_evaluations_under_other_conditions_do_not_fold(made: Make, evaluation: Any, changes: dict[str, Any], says: str) -> None:
    one = made("a", "seed=0", quick=8)
    two = made("b", "seed=1", quick=8)
    weights = json.loads((two / "evals/quick-1/identity.json").read_text())["tensors_sha256"]
    whole = {"clean": [1] * 20, "attacks": {"pgd-20": [1] * 20}, "weights": weights, **changes}
    evaluation(two / "evals/quick-1", **whole)
    with pytest.raises(ResourceError, match="no mean over them means anything") as raised:
        table(one, two)
    assert says in raised.value.what
    assert "runs/a: " in raised.value.what


def test_the_condition_that_all_have_is_taken_before_the_larger_one(made: Make, evaluation: Any) -> None:
    one, two = made("a", quick=8), made("b", "name=b", quick=6)
    weights = json.loads((one / "evals/quick-1/identity.json").read_text())["tensors_sha256"]
    evaluation(one / "evals/quick-2", clean=[1] * 30, attacks={"pgd-20": [1] * 30}, weights=weights)
    assert cell(table(one, two), 0, "quick")["n"] == 20
    assert cell(table(one), 0, "quick")["n"] == 30


def test_rows_under_other_conditions_are_said(made: Make, evaluation: Any) -> None:
    found = table(made("a", quick=8), made("b", "name=b", quick=6, n=40))
    assert "quick: rows differ in n: quickstart 20, b 40" in found["notes"]
    found = table(Path("runs/a"), made("c", "name=c", "threat.eps=0.2"))
    evaluation(Path("runs/c/evals/quick-1"), clean=[1] * 20, attacks={"pgd-20": [1] * 20}, eps="0.2", weights=_weights(Path("runs/c")))
    assert "quick: rows differ in threat: quickstart linf eps 0.15, c linf eps 0.2" in table(Path("runs/a"), Path("runs/c"))["notes"]


def test_a_reading_that_a_network_cannot_have_is_not_called_missing(made: Make, evaluation: Any) -> None:
    """Joint losses exist for networks with auxiliary heads; the others' suite ran whole without."""
    plain, gated = made("a", quick=8), made("b", "name=b")
    attacks = {"pgd-20": [1] * 20, "pgd-20-joint": [0] * 20}
    evaluation(Path("runs/b/evals/quick-1"), clean=[1] * 20, attacks=attacks, weights=_weights(Path("runs/b")))
    found = table(plain, gated, columns=("quick/pgd-20-joint",))
    assert cell(found, 0, "quick/pgd-20-joint") is None
    assert cell(found, 1, "quick/pgd-20-joint")["mean"] == 0
    assert not [note for note in found["notes"] if "no quick evaluation" in note]


def _weights(run: Path) -> str:
    from advcli.runs.container import read_header

    return str(read_header(run / "model.safetensors", "model")["tensors_sha256"])


def test_of_several_under_one_condition_the_lowest_is_shown(made: Make, evaluation: Any) -> None:
    run = made("a", quick=8)
    evaluation(run / "evals/quick-2", clean=[1] * 18 + [0] * 2, attacks={"pgd-20": [1] * 6 + [0] * 14}, weights=_weights(run), seed=9)
    found = table(run)
    assert cell(found, 0, "quick")["mean"] == 0.3
    assert "2 quick evaluations of runs/a on these images: the lowest number is shown" in found["notes"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"eps": "0.3"}, "at linf eps 0.3, not the run's linf eps 0.15"),
        ({"split": "train"}, "on train images"),
        ({"data": "svhn"}, "on svhn, not digits"),
        ({"weights": "others"}, "it attacked other weights than those in the model file"),
        ({"head": "open"}, "it judged head open, not the decision"),
        ({"gates": ["reverse-attention"]}, "a gate was put on the network for it"),
    ],
)
def test_other_experiments_are_passed_over_and_said(made: Make, evaluation: Any, changes: dict[str, Any], why: str) -> None:
    run = made("a", quick=8)
    whole = {"clean": [1] * 20, "attacks": {"pgd-20": [0] * 20}, "weights": _weights(run), **changes}
    evaluation(run / "evals/quick-2", **whole)
    found = table(run)
    assert cell(found, 0, "quick")["mean"] == 0.4
    assert f"passed over runs/a/evals/quick-2: {why}" in found["notes"]


def test_an_unfinished_evaluation_is_said(made: Make) -> None:
    run = made("a", quick=8)
    (run / "evals/quick-1/ledger/ledger.safetensors").unlink()
    found = table(run)
    assert "passed over runs/a/evals/quick-1: the quick evaluation is not finished; --resume goes on with it" in found["notes"]


def test_training_that_stopped_is_said(made: Make) -> None:
    run = made("a", quick=8)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"epoch": k}) + "\n" for k in (1, 2, 3)))
    assert "runs/a is not trained to its end: epoch 3 of 40" in table(run)["notes"]
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 40}) + "\n")
    assert table(run)["notes"] == []


def test_masked_wins_over_everything(made: Make, evaluation: Any) -> None:
    run = made("a", aa=15)
    n = 20
    evaluation(
        run / "evals/quick-1", clean=[1] * n, attacks={"fgsm": [0] * n, "pgd-20": [1] * n}, weights=_weights(run)
    )  # one step breaks all, twenty break none
    found = table(run)
    assert (cell(found, 0, "quick")["verdict"], cell(found, 0, "aa")["verdict"]) == ("masked", "trustworthy")
    assert found["rows"][0]["verdict"] == "masked"


def test_a_checkpoint_without_recipe_stands_under_its_folder(made: Make) -> None:
    found = table(made("foreign", recipe=None, quick=8), made("a", quick=9))
    assert [row["name"] for row in found["rows"]] == ["runs/foreign", "quickstart"]
    assert found["rows"][0]["seeds"] == []
    assert gather([Path("runs/foreign/model.safetensors")], [])["rows"][0]["name"] == "runs/foreign"


@pytest.mark.parametrize(
    "damage", ["recipe.yaml", "probe.json", "model.safetensors", "metrics.jsonl", "evals/quick-1/ledger/ledger.safetensors"]
)
def test_a_damaged_run_is_refused(made: Make, damage: str) -> None:
    run = made("a", quick=8)
    (run / damage).write_bytes(b"\x00{nonsense\n")
    with pytest.raises(CheckpointError) as raised:
        table(run)
    assert damage.rpartition("/")[2] in raised.value.where


def test_folders_of_the_wrong_kind_are_refused(made: Make) -> None:
    run = made("a", quick=8)
    with pytest.raises(UsageError, match="do not compare with one another"):
        table(run, run / "evals/quick-1")
    with pytest.raises(UsageError, match="named twice"):
        table(run, Path("runs/../runs/a"))
    with pytest.raises(UsageError, match="compares with nothing"):
        table(run / "evals/quick-1")
    with pytest.raises(UsageError, match="columns are chosen for runs"):
        table(run / "evals/quick-1", columns=("aa",))
    with pytest.raises(ResourceError, match="no such folder"):
        table(Path("runs/absent"))
    Path("runs/empty").mkdir()
    with pytest.raises(ResourceError, match="no run and no evaluation"):
        table(run, Path("runs/empty"))


def places(found: dict[str, Any], column: str) -> list[int | None]:
    return [row["cells"][column] and row["cells"][column]["place"] for row in found["rows"]]


def test_best_and_second_are_placed_and_ties_share(made: Make) -> None:
    counts = {"a": 9, "b": 12, "c": 8, "d": 12, "e": 9}
    found = table(*(made(name, f"name={name}", quick=count) for name, count in counts.items()))
    assert places(found, "quick") == [2, 1, None, 1, 2]
    assert places(found, "clean") == [None] * 5, "all are equal, and none is best"
    assert places(table(Path("runs/a")), "quick") == [None]


def test_no_bound_is_placed_among_numbers_that_are_none(made: Make, evaluation: Any) -> None:
    made("a", quick=8, aa=8)
    made("b", "name=b", aa=9)
    made("gated", "name=gated")
    gate = {"gates": ["reverse-attention"]}
    weights = _weights(Path("runs/gated"))
    evaluation(Path("runs/gated/evals/aa-1"), clean=[1] * 20, attacks={"apgd-ce": [1] * 20}, suite="aa", weights=weights, **gate)
    (Path("runs/gated") / "model.safetensors").unlink()  # a foreign file: its gates are not known
    found = table(*(Path("runs", name) for name in ("a", "b", "gated")))
    assert [row["cells"]["aa"]["verdict"] for row in found["rows"]] == ["trustworthy", "trustworthy", "upper bound"]
    assert places(found, "aa") == [2, 1, None]


def test_nothing_masked_and_nothing_under_other_conditions_is_placed(made: Make, evaluation: Any) -> None:
    runs = [made(name, f"name={name}", quick=count) for name, count in (("a", 8), ("b", 9))]
    masked = made("masked", "name=masked")
    evaluation(masked / "evals/quick-1", clean=[1] * 20, attacks={"fgsm": [0] * 20, "pgd-20": [1] * 20}, weights=_weights(masked))
    found = table(*runs, masked)
    assert cell(found, 2, "quick")["verdict"] == "masked"
    assert places(found, "quick") == [2, 1, None]
    assert places(table(*runs, made("c", "name=c", quick=9, n=40)), "quick") == [None] * 3


def test_single_networks_are_tested_against_the_best_on_the_same_images(made: Make) -> None:
    found = table(
        made("a", quick=12), made("b", "name=b", quick=4), made("c", "name=c", "seed=0", quick=9), made("c2", "name=c", "seed=1", quick=9)
    )
    assert "against_best" not in cell(found, 0, "quick")
    tested = cell(found, 1, "quick")["against_best"]
    assert tested == {"difference": -0.4, "only_best": 8, "only_this": 0, "p": 2 / 2**8}
    assert "against_best" not in cell(found, 2, "quick"), "a mean over seeds is no network"


def test_classes_and_the_worst_one(made: Make) -> None:
    """All images of the written evaluations are of class zero, so it is the worst one too."""
    found = table(made("a", quick=12), columns=("quick/classes",))
    assert [column["name"] for column in found["columns"]] == ["clean", "quick/class:zero", "quick/worst-class"]
    assert [column["upper_bound"] for column in found["columns"]] == [False, True, True]
    named, lowest = (cell(found, 0, name) for name in ("quick/class:zero", "quick/worst-class"))
    assert (named["mean"], named["ci"], lowest["mean"], lowest["ci"]) == (0.6, list(wilson(12, 20)), 0.6, None)
    with pytest.raises(UsageError, match="has no reading 'class:nine'"):
        table(Path("runs/a"), columns=("quick/class:nine",))


def test_the_worst_class_is_the_lowest(made: Make) -> None:
    run = made("a", quick=12)
    from advcli.runs.ledger import Ledger

    ledger = Ledger(run / "evals/quick-1/ledger")
    arrays, header = ledger.read()
    arrays["label"] = (np.arange(20) >= 10).astype(np.int64)
    ledger.finish(arrays, header)
    found = table(run, columns=("quick/classes",))
    assert [cell(found, 0, f"quick/{name}")["mean"] for name in ("class:zero", "class:one", "worst-class")] == [1.0, 0.2, 0.2]


def test_the_average_is_over_the_robust_columns_seed_by_seed(made: Make) -> None:
    runs = [made("a", "seed=0", quick=12, aa=8), made("b", "seed=1", quick=14, aa=10), made("c", "name=c", quick=12)]
    found = table(*runs, columns=("quick/fgsm", "aa", "aa/worst-class", "average"))
    part = cell(found, 0, "average")
    values = [(14 / 20 + 8 / 20) / 2, (16 / 20 + 10 / 20) / 2]
    assert [row["value"] for row in part["evaluations"]] == pytest.approx(values)
    assert (part["mean"], part["std"], part["verdict"]) == (pytest.approx(0.6), pytest.approx(statistics.stdev(values)), "upper bound")
    assert part["protocol"] == "quick/1 native and aa/1 native"
    assert cell(found, 1, "average") is None, "it lacks aa"


def log_of(run: Path, *events: dict[str, Any], seconds: tuple[float, ...] = ()) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps({"event": "epoch", "epoch": k} | e) + "\n" for k, e in enumerate(events, 1)))
    (run / "timing.jsonl").write_text("".join(json.dumps({"epoch": k, "seconds": s}) + "\n" for k, s in enumerate(seconds, 1)))


def measured(robust: float, selected: bool = False) -> dict[str, Any]:
    return {"validation": {"n": 50, "clean": 0.9, "robust": robust, "attack": "pgd-10"}, "selected": selected}


def test_best_last_and_hours_come_from_the_logs(made: Make) -> None:
    """ANCRA's table IX: what was selected, what the last epoch has, and how long it took."""
    one, two, bare = made("a", "seed=0", quick=9), made("b", "seed=1", quick=9), made("c", "name=c", quick=9)
    log_of(one, measured(0.2, selected=True), measured(0.6, selected=True), {"loss": 1.0}, measured(0.5), seconds=(1800, 1800, 3600))
    log_of(two, measured(0.4, selected=True), measured(0.3), seconds=(3600,))
    log_of(bare, measured(float("nan"), selected=True))
    found = table(one, two, bare, columns=("validation", "validation/clean", "last:validation", "hours"))
    names = ["validation", "validation/clean", "last:validation", "hours"]
    assert [[row["value"] for row in cell(found, 0, name)["evaluations"]] for name in names] == [[0.6, 0.4], [0.9, 0.9], [0.5, 0.3], [2, 1]]
    assert [column["unit"] for column in found["columns"]] == ["percent"] * 4 + ["hours"]
    assert [column["upper_bound"] for column in found["columns"]] == [False, True, False, True, False]
    assert cell(found, 0, "hours")["mean"] == 1.5
    assert (cell(found, 1, "validation"), cell(found, 1, "hours")) == (None, None), "no number, and nothing timed"
    assert found["notes"][-1] == "runs/c is not trained to its end: epoch 1 of 40"
    assert (cell(found, 0, "validation")["split"], cell(found, 0, "validation")["n"]) == ("validation", 50)


def test_rows_that_were_watched_with_other_attacks_are_said(made: Make) -> None:
    one, two = made("a", quick=9), made("b", "name=b", quick=9)
    log_of(one, measured(0.4, selected=True))
    log_of(two, {"validation": {"n": 50, "clean": 0.9, "robust": 0.5, "attack": "pgd-10-joint"}, "selected": True})
    found = table(one, two, columns=("validation",))
    assert "validation: rows differ in protocol: quickstart pgd-10, b pgd-10-joint" in found["notes"]
    assert places(found, "validation") == [None, None]


def test_the_last_epochs_own_evaluations(made: Make, evaluation: Any) -> None:
    run = made("a", quick=9)
    write_attacked_run("other")
    (run / "last.safetensors").write_bytes(Path("runs/other/model.safetensors").read_bytes())
    evaluation(run / "evals/quick-2", clean=[1] * 20, attacks={"pgd-20": [1] * 7 + [0] * 13}, weights=_weights(Path("runs/other")))
    found = table(run, columns=("quick", "last:quick", "last:clean"))
    assert [cell(found, 0, name)["mean"] for name in ("quick", "last:quick", "last:clean")] == [0.45, 0.35, 1.0]
    assert not found["notes"], "it is not passed over"
    found = table(made("b", quick=9), columns=("last:aa",))
    assert found["notes"] == ["no aa evaluation of the last epoch: advcli attack runs/b/last.safetensors --suite aa"]


def test_what_many_runs_lack_is_said_in_one_line(made: Make) -> None:
    found = table(*(made(f"r{k}", f"name=r{k}", quick=9) for k in range(5)), made("f", "name=f", aa=9))
    assert "no aa evaluation of 5 runs, runs/r0 to runs/r4: advcli attack RUN --suite aa" in found["notes"]


@pytest.mark.parametrize("content", ['{"epoch": 1}\n', '{"epoch": 1, "seconds": "x"}\n', "[]\n", "nonsense\n"])
def test_a_damaged_clock_is_refused(made: Make, content: str) -> None:
    run = made("a", quick=8)
    (run / "timing.jsonl").write_text(content)
    with pytest.raises(CheckpointError) as raised:
        table(run)
    assert "timing.jsonl" in raised.value.where


def write_foreign(file: Path, right: int, weights: str, **more: Any) -> Path:
    """A checkpoint of others with a quick evaluation of 20 images beside it, in a folder that it may share."""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"somebody else's")
    attacks = {"pgd-20": first(right)}
    write_evaluation(file.parent / "evals" / f"quick-{weights}", clean=first(18), attacks=attacks, weights=weights, checkpoint=file, **more)
    return file


def test_checkpoints_of_others_in_one_folder_are_rows_of_their_own(tmp_path: Path) -> None:
    a, b = write_foreign(tmp_path / "theirs" / "a.pt", 15, "aaaa"), write_foreign(tmp_path / "theirs" / "b.pt", 2, "bbbb")
    found = table(a, b)
    assert [row["name"] for row in found["rows"]] == [str(a), str(b)]
    assert [cell(found, row, "quick")["mean"] for row in (0, 1)] == [15 / 20, 2 / 20]
    assert [e.folder.name for e in evaluations_in(b)] == ["quick-bbbb"]
    assert [row["accuracy"] for row in steps.gather([a]).rows][-1] == 15 / 20
    for place in (tmp_path / "theirs", a):  # under one name no two networks' numbers
        write_foreign(a, 3, "cccc")
        with pytest.raises(CheckpointError, match="several networks"):
            table(place)


def test_a_gate_put_on_a_checkpoint_of_others_is_not_its_own_number(tmp_path: Path) -> None:
    file = write_foreign(tmp_path / "a.pt", 10, "aaaa")
    write_foreign(tmp_path / "a.pt", 17, "gated", gates=["reverse-attention"])
    found = table(file)
    assert cell(found, 0, "quick")["mean"] == 10 / 20
    assert any("a gate was put on" in note for note in found["notes"])


def test_the_last_epochs_file_means_its_own_numbers(made: Make) -> None:
    run = made("a", quick=12)
    weights = write_run(Path("last"), weights=2.0)
    shutil.copy("last/model.safetensors", run / "last.safetensors")
    write_evaluation(run / "evals" / "quick-last", clean=first(18), attacks={"pgd-20": first(5)}, weights=weights)
    assert cell(table(run), 0, "quick")["mean"] == cell(table(run / "model.safetensors"), 0, "quick")["mean"] == 12 / 20
    assert cell(table(run / "last.safetensors"), 0, "quick")["mean"] == 5 / 20


def test_a_number_through_a_gate_is_not_the_best_of_those_without(made: Make) -> None:
    """PGD on the final logits of a gated network is the highest number of all, and says the least."""
    runs = [made("a", quick=10), made("b", "name=b", quick=8), made("gated", "name=gated"), made("gated-too", "name=gated-too")]
    for run, right in ((runs[2], 17), (runs[3], 16)):
        (run / "model.safetensors").unlink()
        write_evaluation(run / "evals" / "quick-1", clean=first(18), attacks={"pgd-20": first(right)}, gates=["reverse-attention"])
    assert places(table(*runs, columns=("quick/pgd-20",)), "quick/pgd-20") == [1, 2, None, None]
    assert places(table(*runs[2:], columns=("quick/pgd-20",)), "quick/pgd-20") == [1, 2]
