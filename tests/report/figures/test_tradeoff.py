"""Clean against robust accuracy: own runs and the papers' points, sums and ARDist, and where the curve says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import first, write_evaluation, write_run

from advcli.errors import ResourceError, UsageError
from advcli.measures import TRADEOFF_CURVES, ardist, wilson
from advcli.report.figures import style, tradeoff

N = 1000


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(name: str, clean: int, robust: int, *overrides: str, recipe: str = "pgd-at", gated: bool = False) -> Path:
    """A CIFAR-10 run with AutoAttack accuracies in thousandths."""
    folder = Path("runs") / name
    weights = write_run(folder, f"name={name}", *overrides, recipe=recipe)
    if gated:
        (folder / "model.safetensors").unlink()
    data = next((word.partition("=")[2] for word in overrides if word.startswith("data.name=")), "cifar10")
    facts: dict[str, Any] = {"suite": "aa", "weights": weights, "data": data, "eps": "8/255", "gates": ["g"] if gated else []}
    write_evaluation(folder / "evals" / "aa-1", clean=first(clean, N), attacks={"apgd-ce": first(robust, N)}, **facts)
    return folder


def own(data: Any) -> list[dict[str, Any]]:
    return [row for row in data.rows if row["source"] == "own"]


def test_own_runs_have_their_sum_and_distance() -> None:
    data = tradeoff.gather([made("a", 871, 440), made("b", 902, 502, "optim.lr=0.2")])
    assert data.more == {"curve": "cifar10", "column": "aa", "bound": False}
    a, b = own(data)
    assert (a["name"], a["clean"], a["robust"], a["sum"]) == ("a", pytest.approx(87.1), pytest.approx(44.0), pytest.approx(131.1))
    assert (a["ardist"], b["ardist"]) == (ardist(a["clean"], a["robust"], "cifar10"), ardist(b["clean"], b["robust"], "cifar10"))
    assert a["ardist"] == pytest.approx(-1.5, abs=0.1), "about ARREST's AT"
    assert [a["low"], a["high"]] == pytest.approx([100 * end for end in wilson(440, N)])
    assert data.headline == f"b: clean 90.2 + robust 50.2 = 140.4, ARDist {b['ardist']:.3f}"
    assert data.notes == []


def test_the_papers_points_are_arrests_table_and_more() -> None:
    rows = {(row["source"], row["name"], row["network"]): row for row in tradeoff.gather([made("a", 871, 440)]).rows}
    arrest = rows["arrest, table 1", "ARREST", "wrn-34-10"]
    assert (arrest["clean"], arrest["robust"], arrest["sum"]) == (90.24, 50.20, pytest.approx(140.44))
    assert arrest["ardist"] == pytest.approx(3.521, abs=0.0005)
    assert rows["stayfocused, table 1", "StayFocused Head=4", "resnet18"]["robust"] == 67.29
    assert ("arrest, table 2", "ARREST", "wrn-34-10") not in rows, "a network of a paper once"
    assert ("arrest, table 2", "ARREST", "resnet18") in rows
    assert not any("cifar100" in name for _, name, _ in rows)


def test_without_papers_there_are_own_points_alone() -> None:
    assert [row["source"] for row in tradeoff.gather([made("a", 871, 440)], papers=False).rows] == ["own"]


def test_each_data_set_has_its_own_curve_and_others_none() -> None:
    hundred = tradeoff.gather([made("h", 605, 289, "data.name=cifar100")])
    assert hundred.more["curve"] == "cifar100"
    assert {row["clean"] for row in hundred.rows if row["source"].startswith("arrest")} == {59.59, 61.80, 60.38, 63.40, 70.25, 73.05}
    svhn = tradeoff.gather([made("s", 905, 455, "data.name=svhn")])
    assert svhn.more["curve"] == "none"
    assert [row["source"] for row in svhn.rows] == ["own"]
    assert (own(svhn)[0]["ardist"], own(svhn)[0]["sum"]) == (None, pytest.approx(136.0))
    assert svhn.notes == ["no curve and no ARDist: they are for CIFAR-10 and CIFAR-100 at linf 8/255 (--curve draws one all the same)"]
    asked = tradeoff.gather([Path("runs/s")], curve="cifar10")
    assert own(asked)[0]["ardist"] == ardist(own(asked)[0]["clean"], own(asked)[0]["robust"], "cifar10")


def test_outside_the_fitted_range_the_distance_says_nothing() -> None:
    data = tradeoff.gather([made("weak", 400, 200)])
    assert data.notes == ["the ARDist of weak says nothing: the curve was fitted to other clean accuracies"]
    assert "ARDist" not in data.headline
    labels = [text.get_text() for text in tradeoff.draw(data).legends[0].get_texts()]
    assert "weak" in labels


def test_an_upper_bound_is_no_headline_beside_a_worst_case_and_is_hollow() -> None:
    data = tradeoff.gather([made("plain", 871, 440), made("gated", 880, 600, "optim.lr=0.2", gated=True)])
    assert [row["verdict"] for row in own(data)] == ["trustworthy", "upper bound"]
    assert data.headline.startswith("plain:")
    (axes,) = tradeoff.draw(data).axes
    faces = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_marker() in ("o", "s")]
    assert faces == [style.colour(0), "white"]
    assert tradeoff.gather([Path("runs/gated")]).headline.endswith(", an upper bound")


def test_what_is_drawn_is_the_data() -> None:
    data = tradeoff.gather([made("a", 871, 440), made("b", 902, 502, "optim.lr=0.2")])
    figure = tradeoff.draw(data)
    (axes,) = figure.axes
    printed = np.concatenate([points.get_offsets() for points in axes.collections if len(points.get_offsets()) > 2])
    rows = [row for row in data.rows if row["source"] != "own"]
    assert sorted(map(tuple, printed.tolist())) == sorted((row["clean"], row["robust"]) for row in rows)
    marks = [line.get_xydata()[0].tolist() for line in axes.get_lines() if len(line.get_xydata()) == 1]
    assert marks == [[row["clean"], row["robust"]] for row in own(data)]
    curve = np.concatenate([line.get_xydata() for line in axes.get_lines() if len(line.get_xydata()) > 2])
    assert np.allclose(np.polyval(TRADEOFF_CURVES["cifar10"], curve[:, 0]), curve[:, 1])
    note = figure.get_supxlabel()
    assert "An undefended network" in note.replace("\n", " ")
    left, right = axes.get_xlim()
    assert all(left <= row["clean"] <= right for row in own(data))


def test_seeds_fold_and_have_no_interval() -> None:
    data = tradeoff.gather([made("a", 870, 440, "name=x"), made("b", 890, 460, "name=x", "seed=1")])
    (row,) = own(data)
    assert (row["clean"], row["robust"], row["low"]) == (pytest.approx(88.0), pytest.approx(45.0), None)


def test_runs_without_the_number_are_refused_or_named() -> None:
    write_run(Path("runs/bare"), "name=bare", recipe="pgd-at")
    with pytest.raises(ResourceError, match="no run has a number for aa") as raised:
        tradeoff.gather([Path("runs/bare")])
    assert raised.value.next == "no aa evaluation: advcli attack runs/bare --suite aa"
    data = tradeoff.gather([made("a", 871, 440), Path("runs/bare")])
    assert len(own(data)) == 1
    assert "no aa evaluation: advcli attack runs/bare --suite aa" in data.notes
    with pytest.raises(UsageError, match="names no column"):
        tradeoff.gather([Path("runs/a")], column="/worst")
    for column in ("clean", "hours", "average", "aa/classes", "validation"):
        with pytest.raises(UsageError, match="is no robust accuracy"):
            tradeoff.gather([Path("runs/a")], column=column)
