"""Paired differences of evaluations written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from written import write_evaluation

from advcli.errors import CheckpointError, ResourceError
from advcli.evaluation.pairs import compare
from advcli.evaluation.stored import open_evaluation
from advcli.measures import wilson

CLEAN_A, CLEAN_B = [1, 1, 1, 1, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
A = {"fgsm": [1, 1, 1, 1, 1, 0, 0, 0, 0, 0], "pgd": [1, 1, 1, 0, 0, 0, 0, 0, 0, 1]}
B = {"fgsm": [1, 1, 0, 1, 1, 1, 1, 1, 0, 0], "cw": [1, 1, 1, 1, 1, 1, 0, 1, 0, 0]}


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(a: dict[str, Any] | None = None, b: dict[str, Any] | None = None) -> dict[str, Any]:
        one = write_evaluation(tmp_path / "a", **{"clean": CLEAN_A, "attacks": A, **(a or {})})
        two = write_evaluation(tmp_path / "b", **{"clean": CLEAN_B, "attacks": B, **(b or {})})
        return compare([open_evaluation(one), open_evaluation(two)])

    return make


def test_each_has_its_numbers_and_intervals(pair: Callable[..., dict[str, Any]]) -> None:
    one, two = pair()["evaluations"]
    assert (one["clean"], two["clean"]) == (0.9, 0.8)
    assert (one["robust"], two["robust"]) == (0.3, 0.6)  # right after every attack: images 0 to 2; 0, 1, 3, 4, 5 and 7
    assert one["clean_ci"] == list(wilson(9, 10))
    assert two["ci"] == list(wilson(6, 10))
    assert (one["verdict"], one["suite"], one["threat"]["eps"]) == ("upper bound", "quick", "0.15")


def test_differences_are_paired(pair: Callable[..., dict[str, Any]]) -> None:
    (row,) = pair()["comparisons"]
    assert (row["clean"]["only_first"], row["clean"]["only_this"]) == (2, 1)
    assert row["clean"]["difference"] == pytest.approx(-0.1)
    assert row["clean"]["p"] == pytest.approx(stats.binomtest(1, 3).pvalue)
    robust = row["robust"]  # first: 0, 1, 2; this: 0, 1, 3, 4, 5, 7
    assert (robust["only_first"], robust["only_this"]) == (1, 4)
    assert robust["difference"] == pytest.approx(0.3)
    assert robust["ci"][0] <= 0.3 <= robust["ci"][1]
    assert row["attacks"].keys() == {"fgsm"}, "only what both have"
    assert (row["attacks"]["fgsm"]["only_first"], row["attacks"]["fgsm"]["only_this"]) == (1, 3)


def test_equal_evaluations_differ_by_nothing(pair: Callable[..., dict[str, Any]]) -> None:
    (row,) = pair(b={"clean": CLEAN_A, "attacks": A})["comparisons"]
    for part in (row["clean"], row["robust"], *row["attacks"].values()):
        assert (part["difference"], part["ci"], part["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_what_survivors_are_left_of_depends_on_what_came_before(pair: Callable[..., dict[str, Any]]) -> None:
    swapped = dict(reversed(A.items()))
    (row,) = pair(a={"on": "survivors"}, b={"attacks": swapped, "on": "survivors"})["comparisons"]
    assert row["attacks"] == {}
    (row,) = pair(a={"on": "survivors"}, b={"attacks": A, "on": "survivors"})["comparisons"]
    assert row["attacks"].keys() == {"fgsm", "pgd"}
    (row,) = pair(a={"on": "survivors"}, b={"attacks": A, "on": "all"})["comparisons"]
    assert row["attacks"] == {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": "others"}, "10 of the 10 and 10 image numbers are the same"),
        ({"clean": CLEAN_B[:6], "attacks": {"fgsm": B["fgsm"][:6]}}, "n: 10 in the first, 6 in this one"),
        ({"split": "train", "images": "train"}, "split: test in the first, train in this one"),
        ({"data": "svhn", "images": "svhn"}, "data: digits in the first, svhn in this one"),
    ],
)
def test_other_images_are_refused(pair: Callable[..., dict[str, Any]], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ResourceError, match="same images") as raised:
        pair(b=changes)
    assert raised.value.exit_code == 3
    assert says in raised.value.what


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"eps": "0.1"}, "another threat in 1 and 2: linf eps 0.15 and linf eps 0.1"),
        ({"head": "open"}, "another head in 1 and 2: final and open"),
        ({"suite": "aa"}, "another suite in 1 and 2: quick and aa"),
        ({"protocol": "2 native"}, "another protocol in 1 and 2: quick/1 native and quick/2 native"),
        ({"sources": ["a" * 64]}, "another protocol in 1 and 2: quick/1 native and quick/1 native from aaaaaaaa"),
    ],
)
def test_other_conditions_are_said(pair: Callable[..., dict[str, Any]], changes: dict[str, Any], note: str) -> None:
    assert pair()["notes"] == []
    assert pair(b=changes)["notes"] == [note]


def test_a_radius_is_a_number_however_it_was_typed(pair: Callable[..., dict[str, Any]]) -> None:
    assert pair(a={"eps": "8/255"}, b={"eps": repr(8 / 255)})["notes"] == []


def test_more_than_two_go_against_the_first(tmp_path: Path) -> None:
    columns = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]
    folders = [write_evaluation(tmp_path / str(k), clean=[1] * 4, attacks={"fgsm": column}) for k, column in enumerate(columns)]
    table = compare([open_evaluation(folder) for folder in folders])
    assert [(row["evaluation"], row["robust"]["difference"]) for row in table["comparisons"]] == [(1, -0.25), (2, 0.25)]


def test_an_unfinished_and_a_damaged_evaluation_are_refused(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "a", clean=CLEAN_A, attacks=A)
    path = folder / "ledger" / "ledger.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        open_evaluation(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        open_evaluation(folder)


def test_adversarial_images_are_not_kept_in_memory(tmp_path: Path) -> None:
    assert "adversarial" not in open_evaluation(write_evaluation(tmp_path / "a", clean=CLEAN_A, attacks=A)).arrays
