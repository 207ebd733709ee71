"""Reports from ledgers written by hand, whose answers are known."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from advcli.evaluation.summary import summarise

BOUND = 0.01


def header(
    *entries: tuple[str, str], suite: str = "aa", split: str = "test", classes: tuple[str, ...] = ("cat", "dog", "owl"), gated: bool = False
) -> dict[str, Any]:
    return {
        "checkpoint": "net.safetensors",
        "classes": list(classes),
        "threat": {"norm": "linf", "eps": "8/255", "bounds": [0, 1]},
        "suite": suite,
        "protocol": f"{suite}/1",
        "identity": {"digest": "d" * 64},
        "bound": BOUND,
        "data": {"name": "digits"},
        "split": split,
        "head": "final",
        "gated": gated,
        "notes": [],
        "entries": [{"name": name, "on": on, "readings": [[name, 2**31]]} for name, on in entries],
    }


def ledger(margins: list[float], labels: list[int], **columns: list[Any]) -> dict[str, Any]:
    """columns: NAME=[margin found, None where the attack did not run]; negative margins beyond the bound are failures."""
    n = len(margins)
    arrays: dict[str, Any] = {"index": np.arange(n), "label": np.array(labels), "clean_margin": np.array(margins, np.float32)}
    found_by = np.full(n, -1)
    for position, (name, values) in enumerate(columns.items()):
        margin = np.array([np.nan if v is None else v for v in values], np.float32)
        broken = margin >= -BOUND
        arrays |= {f"broken.{name}": broken, f"margin.{name}": margin, f"steps.{name}": np.where(broken, 3, -1)}
        ran = np.array([v is not None for v in values])
        arrays |= {f"forwards.{name}": 2 * ran, f"backwards.{name}": 1 * ran}
        found_by = np.where((found_by < 0) & broken, position, found_by)
    return arrays | {"found_by": found_by}


#         right, right, right, right, wrong, right
MARGINS = [-5.0, -4.0, -3.0, -2.0, 1.0, -1.0]
LABELS = [0, 0, 0, 1, 1, 1]


def test_attacks_on_all_stand_alone_and_the_worst_case_joins_them() -> None:
    arrays = ledger(MARGINS, LABELS, a=[1, -1, -1, -1, None, -1], b=[-1, 1, -1, -1, None, -1])
    report = summarise(arrays, header(("a", "all"), ("b", "all")))
    assert report["clean"] == 5 / 6
    assert report["attacks"] == {"a": {"accuracy": 4 / 6, "on": "all"}, "b": {"accuracy": 4 / 6, "on": "all"}}
    assert report["robust"] == 3 / 6
    # Wilson 1927 for 3 of 6: centre 1/2, half width z sqrt(1/24 + z^2/144) / (1 + z^2/6)
    z = 1.959963984540054
    half = z * (1 / 24 + z * z / 144) ** 0.5 / (1 + z * z / 6)
    assert report["ci"] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-12)
    assert (report["forwards"], report["backwards"]) == (6 + 2 * 10, 10)  # one clean forward an image, and what ten attacked ones took
    assert (report["identity"], report["data"], report["split"]) == ("d" * 64, "digits", "test")


def test_attacks_on_survivors_tell_what_is_left() -> None:
    arrays = ledger(MARGINS, LABELS, a=[1, -1, -1, -1, None, -1], b=[None, 1, -1, -1, None, -1], c=[None, None, -1, 1, None, -1])
    report = summarise(arrays, header(("a", "survivors"), ("b", "survivors"), ("c", "survivors")))
    assert [row["accuracy"] for row in report["attacks"].values()] == [4 / 6, 3 / 6, 2 / 6]
    assert report["robust"] == 2 / 6


def test_classes_and_the_worst_of_them() -> None:
    arrays = ledger(MARGINS, LABELS, a=[1, -1, -1, 1, None, 1])
    report = summarise(arrays, header(("a", "all")))
    assert report["per_class"] == {"cat": {"n": 3, "clean": 1.0, "robust": 2 / 3}, "dog": {"n": 3, "clean": 2 / 3, "robust": 0.0}}
    assert report["worst_class"] == "dog"  # owl has no image and no number


@pytest.mark.parametrize(
    ("clean", "found", "right", "left", "near"),
    [
        (-0.02, -0.02, 1, 1, 0),
        (-0.02, -0.005, 1, 0, 1),  # an adversarial margin within rounding: broken, and said so
        (-0.02, 0.005, 1, 0, 1),
        (-0.02, 0.02, 1, 0, 0),
        (-0.005, None, 0, 0, 1),  # the clean image itself
        (0.005, None, 0, 0, 1),
        (0.02, None, 0, 0, 0),
    ],
)
def test_points_within_rounding_are_broken_and_counted(clean: float, found: float | None, right: int, left: int, near: int) -> None:
    report = summarise(ledger([clean, -9.0], [0, 1], a=[found, -9.0]), header(("a", "all")))
    assert (report["clean"], report["robust"], report["borderline"]) == ((right + 1) / 2, (left + 1) / 2, near)


def test_only_the_deciding_attack_makes_an_example_borderline() -> None:
    arrays = ledger([-5.0], [0], a=[2.0], b=[0.001])
    assert summarise(arrays, header(("a", "all"), ("b", "all")))["borderline"] == 0
    assert summarise(ledger([-5.0], [0], b=[0.001], a=[2.0]), header(("b", "all"), ("a", "all")))["borderline"] == 1


def test_flags_reach_the_verdict() -> None:
    n = 100
    margins, labels = [-5.0] * n, [0] * n
    weak, strong = [1.0] * 30 + [-1.0] * 70, [-1.0] * n
    arrays = ledger(margins, labels, **{"fgsm": weak, "pgd-20": strong})
    report = summarise(arrays, header(("fgsm", "all"), ("pgd-20", "all"), suite="quick"))
    assert [flag["name"] for flag in report["flags"] if flag["raised"]] == ["single-step-beats-iterative"]
    assert report["reasons"][0] == report["flags"][0]["message"]
    assert report["verdict"] == "masked"
    assert report["robust"] == 0.7  # the worst case counts what the weaker attack found
    honest = ledger(margins, labels, **{"fgsm": strong, "pgd-20": weak})
    assert summarise(honest, header(("fgsm", "all"), ("pgd-20", "all"), suite="quick"))["verdict"] == "upper bound"


def test_each_part_has_a_worst_case_of_its_own_and_adaptive_has_everybodys() -> None:
    arrays = ledger(MARGINS, LABELS, a=[1, -1, -1, -1, None, -1], p=[-1, 1, 1, -1, None, -1], k=[None, -1, -1, 1, None, -1])
    head = header(("a", "survivors"), ("p", "all"), ("k", "survivors"), suite="full")
    for entry, part in zip(head["entries"], ("aa", "paper", "adaptive"), strict=True):
        entry["part"] = part
    report = summarise(arrays, head)
    assert report["worst"] == {"aa": 4 / 6, "paper": 3 / 6, "adaptive": 1 / 6}
    assert report["robust"] == 1 / 6
    assert summarise(arrays, header(("a", "survivors"), ("p", "all"), ("k", "survivors")))["worst"] == {"aa": 1 / 6}


def test_probes_are_read_from_the_ledger() -> None:
    n = 40
    arrays = ledger([-5.0] * n, [0] * n, a=[-1.0] * n) | {"probe.zero-gradients": np.array([1] * 11 + [0] * 9 + [-1] * 20, np.int8)}
    report = summarise(arrays, header(("a", "survivors")))
    assert [(flag["name"], flag["raised"], flag["value"]) for flag in report["flags"]] == [("zero-gradients", True, 0.55)]
    assert report["verdict"] == "masked"


def test_through_a_gate_any_suite_gives_an_upper_bound() -> None:
    arrays = ledger(MARGINS * 2, LABELS * 2, a=[1, -1, -1, -1, None, -1] * 2)
    assert summarise(arrays, header(("a", "all"), gated=True))["verdict"] == "upper bound"
    assert summarise(arrays, header(("a", "all")))["verdict"] == "trustworthy"


def test_training_images_give_an_upper_bound() -> None:
    arrays = ledger(MARGINS * 2, LABELS * 2, a=[-1, -1, -1, -1, None, -1] * 2)
    assert summarise(arrays, header(("a", "survivors")))["verdict"] == "trustworthy"
    assert summarise(arrays, header(("a", "survivors"), split="train"))["verdict"] == "upper bound"


def test_so_few_images_that_no_flag_can_be_raised_give_an_upper_bound() -> None:
    arrays = ledger(MARGINS, LABELS, a=[-1, -1, -1, -1, None, -1])
    report = summarise(arrays, header(("a", "survivors")))
    assert report["verdict"] == "upper bound"
    assert [reason.split(" are ")[0] for reason in report["reasons"]] == ["6 images"]


def test_a_report_needs_no_torch() -> None:
    code = "import sys; from advcli.evaluation import summary, masking; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_what_attacks_spared_is_told_with_what_came_of_a_sample() -> None:
    """Of an evaluation that kept no such counts, nothing; of an attack that had no occasion, nothing."""
    arrays = ledger(MARGINS, LABELS, a=[-1, -1, -1, -1, None, -1], b=[-1, -1, -1, -1, None, -1])
    entries = header(("a", "survivors"), ("b", "survivors"))
    assert "sparing" not in summarise(arrays, entries)
    for name in ("a", "b"):
        arrays |= {f"{count}.{name}": np.zeros(6, np.int64) for count in ("spared", "sampled", "mistaken")}
    assert "sparing" not in summarise(arrays, entries)
    arrays["spared.a"], arrays["sampled.a"] = np.array([7, 0, 0, 5, 0, 1]), np.array([2, 0, 0, 1, 0, 0])
    assert summarise(arrays, entries)["sparing"] == {"a": {"passes": 13 + 3 * 5, "spared": 13, "sampled": 3, "mistaken": 0}}
    arrays["sampled.b"] = arrays["mistaken.b"] = np.array([0, 0, 0, 0, 0, 1])
    assert summarise(arrays, entries)["sparing"]["b"] == {"passes": 15, "spared": 0, "sampled": 1, "mistaken": 1}
    arrays |= {f"queries_{count}.{name}": np.zeros(6, np.int64) for count in ("sampled", "mistaken") for name in ("a", "b")}
    assert summarise(arrays, entries)["sparing"]["b"].keys() == {"passes", "spared", "sampled", "mistaken"}
    arrays["queries_sampled.a"], arrays["queries_mistaken.a"] = np.arange(6), np.array([0, 0, 0, 2, 0, 0])
    told = {"passes": 13 + 3 * 5, "spared": 13, "sampled": 3, "mistaken": 0, "queries_sampled": 15, "queries_mistaken": 2}
    assert summarise(arrays, entries)["sparing"]["a"] == told
