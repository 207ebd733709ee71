"""What deploy-ra says about a gate: rows read from the right attacks, differences paired, and the sentence that follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written import first, write_evaluation

from advcli.evaluation import retrofit
from advcli.evaluation.stored import open_evaluation
from advcli.runs.checkpoint import load_network

PAPER = {"fgsm": 60, "pgd-40@0.007": 50, "cw-40@0.007": 48}


def rows(tmp_path: Path, after: dict[str, int], before: dict[str, int], *, n: int = 100, clean: int = 90) -> dict[str, dict[str, Any]]:
    """Both evaluations by hand: NAME=how many of the first images that attack leaves right."""
    folders = [
        write_evaluation(tmp_path / name / "evals" / "full-1", clean=first(clean, n), attacks={k: first(v, n) for k, v in attacks.items()})
        for name, attacks in (("before", before), ("after", after))
    ]
    return retrofit.differences(*map(open_evaluation, folders))


def test_rows_are_read_from_their_attacks(tmp_path: Path) -> None:
    after = {"fgsm": 80, "pgd-40@0.007": 79, "cw-40@0.007": 78, "apgd-ce": 70, "square": 60, "pgd-40-joint@0.007": 55, "apgd-ce@aux0": 46}
    found = rows(tmp_path, after, {**PAPER, "apgd-ce": 46, "square": 47})
    values = {name: (round(100 * row["first"]), round(100 * row["this"]), round(100 * row["difference"])) for name, row in found.items()}
    assert values == {
        "clean": (90, 90, 0),
        "FGSM": (60, 80, 20),
        "PGD-40": (50, 79, 29),
        "C&W": (48, 78, 30),
        "AutoAttack, final logits": (47, 60, 13),
        "final + auxiliary loss": (50, 55, 5),
        "worst case, adaptive": (46, 46, 0),
    }
    assert all(row["ci"][0] <= row["difference"] <= row["ci"][1] for row in found.values())


def test_rows_that_were_not_attacked_are_left_out(tmp_path: Path) -> None:
    assert list(rows(tmp_path, {"apgd-ce": 40}, {"apgd-ce": 41})) == ["clean", "AutoAttack, final logits", "worst case, adaptive"]


@pytest.mark.parametrize(
    ("shown", "worst", "says"),
    [
        ((50, 80), (46, 46), "none is shown to survive attacks that know it: +0.0 [+0.0, +0.0]."),
        ((50, 80), (46, 61), "50 % survive attacks that know it: +15.0"),
        ((50, 80), (46, 40), "none is shown to survive attacks that know it: -6.0"),
        ((50, 52), (40, 60), "100 % survive"),
        ((50, 48), (46, 44), "Even under PGD-40 on the final logits reverse attention gains nothing here (-2.0 points"),
    ],
)
def test_the_verdict_follows_from_the_rows(shown: tuple[int, int], worst: tuple[int, int], says: str, tmp_path: Path) -> None:
    before, after = ({"pgd-40@0.007": a, "apgd-ce": b} for a, b in zip(shown, worst, strict=True))
    sentence = retrofit.verdict(rows(tmp_path, after, before))
    assert says in sentence
    assert "+30.0 points" in sentence or shown != (50, 80)
    assert "+31.2 on PGD-AT, +31.3 on TRADES, +18.1 on MART" in sentence
    assert "\n" not in sentence


def test_without_the_papers_attack_the_verdict_is_the_worst_case(tmp_path: Path) -> None:
    assert "changes the worst case by -6.0" in retrofit.verdict(rows(tmp_path, {"apgd-ce": 40}, {"apgd-ce": 46}))


def test_what_was_measured_while_training_is_another_networks(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_network(checkpoint)
    assert loaded.header["selection"]["measured"]
    header = retrofit._header(loaded)
    assert "selection" not in header
    assert header["retrofit"] == {"gate": "reverse-attention", "of": str(checkpoint)}
    assert header["epoch"] == loaded.header["epoch"]
