"""Before and after reverse attention: pairs on the same images, adaptive attacks beside the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from written import first, write_evaluation, write_run

from advcli.errors import ResourceError, UsageError
from advcli.measures import wilson
from advcli.report.figures import deploy

N = 100
RA = ("reverse-attention",)


def before(tmp_path: Path, **changes: Any) -> Path:
    folder = tmp_path / "plain"
    weights = write_run(folder)
    attacks = {"fgsm": first(60, N), "pgd-20": first(50, N)}
    write_evaluation(folder / "evals" / "quick-1", clean=first(90, N), attacks=attacks, weights=weights, **changes)
    return folder


def after(tmp_path: Path, name: str = "after", **changes: Any) -> Path:
    """A folder with two evaluations of a gated checkpoint of another origin: quick and adaptive."""
    folder = tmp_path / name
    common: dict[str, Any] = {"clean": first(88, N), "gates": RA, **changes}
    attacks = {"fgsm": first(80, N), "pgd-20": first(85, N), "pgd-20-joint": first(52, N)}
    write_evaluation(folder / "evals" / "quick-1", attacks=attacks, **common)
    write_evaluation(folder / "evals" / "adaptive-1", attacks={"apgd-ce@aux0": first(45, N)}, suite="adaptive", on="survivors", **common)
    return folder


def bars(data: Any) -> dict[tuple[str, str], float]:
    return {(row["attack"], row["side"]): row["accuracy"] for row in data.rows}


def test_attacks_stand_in_pairs_and_adaptive_ones_last(tmp_path: Path) -> None:
    data = deploy.gather([before(tmp_path), after(tmp_path)])
    assert bars(data) == {
        ("clean", "before"): 0.9,
        ("clean", "after"): 0.88,
        ("fgsm", "before"): 0.6,
        ("fgsm", "after"): 0.8,
        ("pgd-20", "before"): 0.5,
        ("pgd-20", "after"): 0.85,
        ("pgd-20-joint", "after"): 0.52,
        ("adaptive", "after"): 0.45,
    }
    row = data.rows[0]
    assert (row["model"], row["low"], row["high"], row["n"]) == ("plain", *wilson(90, N), N)
    assert data.headline == "plain: at most 45.0 % after (adaptive), 50.0 % before"


def test_an_evaluation_folder_is_known_by_its_network(tmp_path: Path) -> None:
    data = deploy.gather([before(tmp_path) / "evals" / "quick-1", after(tmp_path) / "evals" / "quick-1"])
    assert {row["model"] for row in data.rows} == {"plain"}
    assert ("adaptive", "after") not in bars(data)


def test_what_is_drawn_is_the_data(tmp_path: Path) -> None:
    data = deploy.gather([before(tmp_path), after(tmp_path)])
    (axes,) = deploy.draw(data).axes
    heights = [[bar.get_height() for bar in group] for group in axes.containers if hasattr(group, "patches")]
    sides = [[100 * row["accuracy"] for row in data.rows if row["side"] == side] for side in ("before", "after")]
    assert heights == [pytest.approx(side) for side in sides]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["clean", "fgsm", "pgd-20", "pgd-20-joint", "adaptive"]


def test_two_models_have_two_panels(tmp_path: Path) -> None:
    one, two = before(tmp_path), after(tmp_path)
    data = deploy.gather([one, two, one / "evals" / "quick-1", two])
    assert len(data.rows) == 16


def test_what_makes_no_pair_is_refused(tmp_path: Path) -> None:
    plain, gated = before(tmp_path), after(tmp_path)
    with pytest.raises(UsageError, match="make a pair"):
        deploy.gather([plain])
    with pytest.raises(ResourceError, match="has no gate"):
        deploy.gather([gated, plain])
    with pytest.raises(ResourceError, match="not attacked on the same images at one radius"):
        deploy.gather([plain, after(tmp_path, "others", images="others")])
    write_run(tmp_path / "bare")
    with pytest.raises(ResourceError, match="no finished evaluation") as raised:
        deploy.gather([tmp_path / "bare", gated])
    assert "advcli attack" in raised.value.next


def test_another_radius_is_another_experiment(tmp_path: Path) -> None:
    plain = before(tmp_path)
    attacks = {"pgd-20": first(1, N)}
    weights = str(json.loads((plain / "evals/quick-1/identity.json").read_text())["tensors_sha256"])
    write_evaluation(plain / "evals" / "quick-2", clean=first(90, N), attacks=attacks, eps="0.3", weights=weights)
    assert bars(deploy.gather([plain, after(tmp_path)]))["pgd-20", "before"] == 0.5
    with pytest.raises(ResourceError, match="at one radius"):
        deploy.gather([plain / "evals" / "quick-2", after(tmp_path, "b")])


def test_a_folder_of_evaluations_stands_for_all_of_them(tmp_path: Path) -> None:
    assert bars(deploy.gather([before(tmp_path), after(tmp_path) / "evals"])) == bars(
        deploy.gather([tmp_path / "plain", tmp_path / "after"])
    )


def test_only_the_images_that_both_sides_have_are_taken(tmp_path: Path) -> None:
    gated = after(tmp_path)
    write_evaluation(gated / "evals" / "quick-2", clean=[1] * 10, attacks={"pgd-20": [0] * 10}, gates=RA)
    data = deploy.gather([before(tmp_path), gated])
    assert {row["n"] for row in data.rows} == {N}
    assert bars(data)["pgd-20", "after"] == 0.85
