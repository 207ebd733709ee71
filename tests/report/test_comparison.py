"""Comparisons on screens of 80 columns, in Markdown, LaTeX and CSV: bounds are called so, nothing is markup."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from rich.console import Console

from advcli.report import comparison, formats, terminal


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
    return {"name": name, "suite": name, "reading": "worst", "last": False, "unit": "percent", "upper_bound": upper}


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
    formats.show(comparison.page(runs("trades", "ancra with a long name")))
    shown = lines(screen)
    assert max(map(len, shown)) <= 80
    assert shown[-1] == "linf eps 8/255, cifar10 test, n = 10000 for clean, 1000 for quick and aa"
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
    formats.show(comparison.page(table))
    assert max(map(len, lines(screen))) <= 80


@pytest.mark.parametrize("count", [2, 3])
def test_evaluations_fit_and_end_with_the_difference(screen: io.BytesIO, count: int) -> None:
    formats.show(comparison.page(evaluations(count)))
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
    assert [row[4].text for row in page.rows] == ["40.0!", "40.0*"]
    assert any(line.startswith("! ") for line in page.below)


def test_markdown_is_one_table_with_escaped_stars_and_bars() -> None:
    text = formats.markdown(comparison.page(runs("a|b")))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == "| method | seeds | clean % | quick %\\* | aa % | verdict |"
    assert table[1] == "| --- | --- | --- | --- | --- | --- |"
    assert table[2] == "| a\\|b | 3 | 83.4 ± 0.4 | 55.0 ± 1.0 | 48.7 ± 1.0 | trustworthy |"
    assert "\\* an upper bound" in text
    assert not any(line.startswith("* ") for line in text.splitlines())


def test_brackets_in_names_are_not_markup(screen: io.BytesIO) -> None:
    table = runs("[red]x[/red]")
    table["notes"] = ["[bold]n[/bold]"]
    formats.show(comparison.page(table))
    text = "".join(lines(screen))
    assert "[red]x[/red]" in text
    assert "[bold]n[/bold]" in text


def test_nothing_to_show_is_said() -> None:
    table = runs("a")
    table["rows"][0]["cells"] = dict.fromkeys(table["rows"][0]["cells"])
    table["rows"][0]["verdict"] = None
    page = comparison.page(table)
    assert page.last == "no evaluation to show"
    assert [[entry.text for entry in row] for row in page.rows] == [["a", "3", "-", "-", "-", "-"]]


def marked(**changes: Any) -> dict[str, Any]:
    """Two methods, the first of which is the best in clean accuracy."""
    table = runs("a_1", "[b]*", notes=[])
    for row, place in zip(table["rows"], (1, 2), strict=True):
        row["cells"]["clean"]["place"] = place
    return {**table, **changes}


def test_best_and_second_are_marked_without_colour_too(screen: io.BytesIO) -> None:
    formats.show(comparison.page(marked()))
    text = "\n".join(lines(screen))
    marks = ("¹", "²") if "±" in text else ("(1)", "(2)")
    assert f"83.4{marks[0]} " in text
    assert f"83.4{marks[1]}" in text
    assert comparison.MARKED in " ".join(text.split())


def test_best_and_second_are_bold_and_underlined() -> None:
    page = comparison.page(marked())
    text = formats.markdown(page)
    assert "| **83.4** ± 0.4 |" in text
    assert "| <u>83.4</u> [78.4, 88.4] |" in text
    tex = formats.latex(page)
    assert "\\textbf{83.4} {\\scriptsize $\\pm$ 0.4}" in tex
    assert "\\underline{83.4} {\\scriptsize [78.4, 88.4]}" in tex


def test_latex_is_a_booktabs_table_with_its_footnotes() -> None:
    lines_ = formats.latex(comparison.page(marked())).splitlines()
    assert lines_[:4] == [
        "\\begin{tabular}{lrrrrr}",
        "\\toprule",
        "method & seeds & clean \\% & quick \\%* & aa \\% & verdict \\\\",
        "\\midrule",
    ]
    assert lines_[4].startswith("{}a\\_1 & 3 & ")
    assert lines_[5].startswith("{}[b]* & 1 & "), "not an argument of the line break before it"
    assert lines_[6:8] == ["\\bottomrule", "\\end{tabular}"]
    assert any(line.startswith("* an upper bound") for line in lines_)
    assert all(line.count("{") == line.count("}") for line in lines_)


def test_csv_has_a_line_a_number() -> None:
    rows = list(csv.DictReader(io.StringIO(formats.csv_table(marked()))))
    assert [(row["method"], row["column"]) for row in rows] == [
        *(("a_1", name) for name in ("clean", "quick", "aa")),
        *(("[b]*", name) for name in ("clean", "quick")),
    ]
    assert (rows[0]["mean"], rows[0]["std"], rows[0]["low"], rows[0]["place"]) == ("0.834", "0.004", "", "1")
    assert (rows[3]["std"], float(rows[3]["low"]), rows[3]["n"]) == ("", pytest.approx(0.784), "10000")


def test_csv_of_pairs_has_a_line_a_reading() -> None:
    rows = list(csv.DictReader(io.StringIO(formats.csv_table(evaluations(3)))))
    assert [(row["evaluation"], row["reading"]) for row in rows] == [
        (f"runs/{k}/evals/quick-0", reading) for k in (1, 2) for reading in ("clean", "pgd-100@eps/10", "robust")
    ]
    assert (rows[0]["against"], rows[0]["difference"], rows[0]["low"], rows[0]["p"]) == (
        "runs/0/evals/quick-0",
        "-0.1",
        "-0.123",
        "1.25e-107",
    )


def test_papers_stand_beside_the_column_they_belong_to() -> None:
    entry = {"table": "2", "row": "X", "data": "cifar10", "network": "resnet18", "setting": "", "remark": "odd", "value": 0.4169}
    table = marked(papers=["again", "arrest"])
    for row, same in zip(table["rows"], (True, False), strict=True):
        row["printed"] = {
            "again": {"clean": None, "quick": None, "aa": {**entry, "same": same}},
            "arrest": dict.fromkeys(("clean", "quick", "aa")),
        }
    page = comparison.page(table)
    assert page.header == ["method", "seeds", "clean %", "quick %*", "aa %", "aa in again", "verdict"]
    assert [row[5].text for row in page.rows] == ["41.69", "41.69‡"]
    assert "again: Yin et al., AGAIN, CVPR 2023, table 2 (cifar10, resnet18)" in page.below
    assert "arrest: Suzuki et al., ARREST, ICCV 2023, has none of these methods" in page.below
    assert "note again, a_1: odd" in page.below
    assert any(line.startswith("‡ printed for another") for line in page.below)
    assert "0.4169" in formats.csv_table(table)


def test_tests_against_the_best_are_told() -> None:
    table = marked()
    table["rows"][1]["cells"]["clean"]["against_best"] = {"difference": -0.0123, "only_best": 20, "only_this": 3, "p": 0.00049}
    assert "clean against the best, points and exact McNemar p: [b]* -1.2 (p 0.00049)" in comparison.page(table).below
    assert "against_best_p" in formats.csv_table(table)


def test_hours_are_hours() -> None:
    table = marked()
    table["columns"].append({"name": "hours", "suite": "", "reading": "hours", "last": False, "unit": "hours", "upper_bound": False})
    for row, value in zip(table["rows"], (9.34, 0.017), strict=True):
        row["cells"]["hours"] = {"mean": value, "std": None, "ci": None, "verdict": None, "seeds": 1, "place": None, "evaluations": []}
    page = comparison.page(table)
    assert page.header[5] == "hours"
    assert [row[5].text for row in page.rows] == ["9.3", "0.017"]
