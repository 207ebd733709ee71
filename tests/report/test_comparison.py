"""Comparisons on screens of 80 columns and in Markdown: bounds are called so, nothing is markup."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from advcli.report import comparison, terminal


def cell(mean: float, std: float | None = None, verdict: str | None = "upper bound", **changes: Any) -> dict[str, Any]:
    ci = [mean - 0.05, min(1.0, mean + 0.05)] if std is None else None
    condition = {
        "threat": "linf eps 8/255",
        "protocol": "quick/1 native",
        "data": "cifar10",
        "split": "test",
        "n": 1000,
        "images": "f" * 64,
    }
    return {
        "mean": mean,
        "std": std,
        "ci": ci,
        "seeds": 1 if std is None else 3,
        "verdict": verdict,
        **condition,
        "evaluations": [],
        **changes,
    }


def column(name: str, upper: bool = False) -> dict[str, Any]:
    return {"name": name, "suite": name, "reading": "worst", "upper_bound": upper}


def runs(*names: str, **changes: Any) -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "runs": ["a", "b", "c"][: 3 - 2 * (k % 2)],
            "seeds": [0, 1, 2],
            "verdict": "trustworthy",
            "cells": {
                "clean": cell(0.834, 0.004 if k % 2 == 0 else None, None, n=10_000),
                "quick": cell(0.55, 0.01 if k % 2 == 0 else None),
                "aa": cell(0.487, 0.01, "trustworthy") if k % 2 == 0 else None,
            },
        }
        for k, name in enumerate(names)
    ]
    return {"kind": "runs", "columns": [column("clean"), column("quick", True), column("aa")], "rows": rows, "notes": ["no aa"], **changes}


def evaluations(count: int = 2, verdict: str = "upper bound") -> dict[str, Any]:
    threat = {"norm": "linf", "eps": "8/255", "bounds": [0, 1]}
    facts = {"checkpoint": "c", "suite": "quick", "protocol": "quick/1 native", "threat": threat, "n": 1000, "verdict": verdict}
    numbers = {"clean": 1.0, "clean_ci": [0.996, 1.0], "robust": 0.5, "ci": [0.469, 0.531]}
    part = {"first": 0.5, "this": 0.4, "difference": -0.1, "ci": [-0.123, -0.077], "only_first": 1234, "only_this": 1134, "p": 1.25e-107}
    return {
        "kind": "evaluations",
        "images": {"data": "cifar10", "split": "test", "n": 1000, "sha256": "f" * 64},
        "evaluations": [{"folder": f"runs/{k}/evals/quick-0", **facts, **numbers} for k in range(count)],
        "comparisons": [{"evaluation": k, "clean": part, "robust": part, "attacks": {"pgd-100@eps/10": part}} for k in range(1, count)],
        "notes": [],
        "bootstrap": {"draws": 10_000, "seed": 0},
    }


@pytest.fixture(params=["utf-8", "ascii"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    shown = io.BytesIO()
    file = io.TextIOWrapper(shown, encoding=request.param, write_through=True)
    monkeypatch.setattr(terminal, "OUT", Console(file=file, width=80, highlight=False))
    return shown


def lines(screen: io.BytesIO) -> list[str]:
    return [line.rstrip() for line in screen.getvalue().decode().splitlines()]


def test_runs_fit_and_end_with_the_conditions(screen: io.BytesIO) -> None:
    comparison.show(comparison.page(runs("trades", "ancra with a long name")))
    shown = lines(screen)
    assert max(map(len, shown)) <= 80
    assert shown[-1] == "linf eps 8/255, cifar10 test, n = 10000 for clean, 1000 for quick, 1000 for aa"
    text = "\n".join(shown).replace("±", "+-")
    assert "83.4 +- 0.4" in text
    assert "[50.0, 60.0]" in text
    assert "quick %*" in text
    assert "aa %*" not in text
    assert "* an upper bound" in text
    assert "note no aa" in text


def test_many_columns_still_fit(screen: io.BytesIO) -> None:
    table = runs("a-method-with-a-rather-long-name (objective.wrapper.name=awp)")
    names = ["paper", "aa-plus", "quick/pgd-20", "fast"]
    table["columns"] += [column(name, True) for name in names]
    table["rows"][0]["cells"] |= {name: cell(0.5) for name in names}
    comparison.show(comparison.page(table))
    assert max(map(len, lines(screen))) <= 80


@pytest.mark.parametrize("count", [2, 3])
def test_evaluations_fit_and_end_with_the_difference(screen: io.BytesIO, count: int) -> None:
    comparison.show(comparison.page(evaluations(count)))
    shown = lines(screen)
    assert max(map(len, shown)) <= 80
    assert "robust 2 - 1: -10.0 points of upper bounds, p 1.2e-107" in " ".join(shown)
    assert sum("an upper bound" in line for line in shown) == count
    assert any("[-12.3, -7.7]" in line and "1234/1134" in line for line in shown)
    assert any("pgd-100@eps/10" in line for line in shown) == (count == 2)


@pytest.mark.parametrize(("verdict", "says"), [("masked", " points of masked numbers,"), ("trustworthy", " points, p")])
def test_a_difference_is_called_what_it_is_of(verdict: str, says: str) -> None:
    assert says in comparison.page(evaluations(verdict=verdict)).last


def test_a_number_that_is_a_bound_among_others_that_are_not_is_marked_itself() -> None:
    table = runs("a", "b")
    table["rows"][1]["cells"]["aa"] = cell(0.4)
    table["rows"][0]["cells"]["aa"] = cell(0.4, verdict="masked")
    page = comparison.page(table)
    assert [row[4].split("\n")[0] for row in page.rows] == ["40.0!", "40.0*"]
    assert any(line.startswith("! ") for line in page.below)


def test_markdown_is_one_table_with_escaped_stars_and_bars() -> None:
    text = comparison.markdown(comparison.page(runs("a|b")))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == "| method | seeds | clean % | quick %\\* | aa % | verdict |"
    assert table[1] == "| --- | --- | --- | --- | --- | --- |"
    assert table[2] == "| a\\|b | 3 | 83.4 ± 0.4 | 55.0 ± 1.0 | 48.7 ± 1.0 | trustworthy |"
    assert "\\* an upper bound" in text
    assert not any(line.startswith("* ") for line in text.splitlines())


def test_brackets_in_names_are_not_markup(screen: io.BytesIO) -> None:
    table = runs("[red]x[/red]")
    table["notes"] = ["[bold]n[/bold]"]
    comparison.show(comparison.page(table))
    text = "".join(lines(screen))
    assert "[red]x[/red]" in text
    assert "[bold]n[/bold]" in text


def test_nothing_to_show_is_said() -> None:
    table = runs("a")
    table["rows"][0]["cells"] = dict.fromkeys(table["rows"][0]["cells"])
    table["rows"][0]["verdict"] = None
    page = comparison.page(table)
    assert page.last == "no evaluation to show"
    assert page.rows == [["a", "3", "-", "-", "-", "-"]]
