"""The silhouette by its definition, maps that repeat, and what cannot be mapped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from advcli.errors import DataError, UsageError
from advcli.evaluation.specimens import Request, collect
from advcli.report.figures.embedding import draw, embed, gather, silhouette

RNG = np.random.default_rng(0)


def by_definition(points: np.ndarray, labels: np.ndarray) -> float:
    """(b - a) / max(a, b): a the mean distance within the class, b the least mean distance to another; 0 for a class of one."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    values = []
    for i, label in enumerate(labels):
        own = (labels == label) & (np.arange(len(labels)) != i)
        a = distance[i, own].mean() if own.any() else 0.0
        b = min(distance[i, labels == other].mean() for other in set(labels.tolist()) - {label})
        values.append((b - a) / max(a, b) if own.any() else 0.0)
    return float(np.mean(values))


def test_silhouette_is_its_definition() -> None:
    points, labels = RNG.normal(size=(40, 6)), RNG.integers(0, 4, 40)
    assert silhouette(points, labels) == pytest.approx(by_definition(points, labels), abs=1e-9)
    apart = np.concatenate([points[:20], points[20:] + 1e4])
    assert silhouette(apart, np.repeat([0, 1], 20)) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("labels", [np.zeros(5, np.int64), np.arange(5)])
def test_silhouette_of_one_class_or_of_classes_of_one_is_undefined(labels: np.ndarray) -> None:
    assert silhouette(RNG.normal(size=(5, 3)), labels) is None


def test_a_map_repeats_and_keeps_groups_apart() -> None:
    points = np.concatenate([RNG.normal(size=(30, 8)), RNG.normal(size=(30, 8)) + 40]).astype(np.float32)
    flat = embed(points, "tsne", 0)
    np.testing.assert_array_equal(flat, embed(points, "tsne", 0))
    assert flat.shape == (60, 2)
    score = silhouette(flat, np.repeat([0, 1], 30))
    assert score is not None
    assert score > 0.5


def test_what_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="too few"):
        embed(RNG.normal(size=(4, 3)), "tsne", 0)
    with pytest.raises(DataError, match="the same for every image"):
        embed(np.ones((20, 3)), "tsne", 0)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match="not installed"):
        embed(RNG.normal(size=(20, 3)), "umap", 0)


def test_every_image_is_there_once_an_input(two_runs: list[Path]) -> None:
    data = gather(two_runs, Request(20), noisy=True)
    assert len(data.rows) == 2 * 3 * 20
    specimens = collect(two_runs, Request(20))[1]
    for kind, images in (("clean", specimens.images), ("noisy", specimens.noisy(0)), ("adversarial", specimens.adversarial)):
        rows = [row for row in data.rows if (row["run"], row["input"]) == ("other", kind)]
        seen = specimens.see(images)
        assert [row["index"] for row in rows] == specimens.index.tolist()
        assert [row["prediction"] for row in rows] == [specimens.classes[k] for k in seen.logits.argmax(1)]
        assert data.more["silhouette"]["other"][kind] == pytest.approx(silhouette(seen.pooled, specimens.labels))
    panels = draw(data).axes
    assert [panel.get_title().partition("\n")[0] for panel in panels[3:]] == ["other, clean", "other, noisy", "other, adversarial"]
    shown = {str(points.get_label()): len(points.get_offsets()) for points in panels[5].collections}
    assert [shown[label] for label in data.more["classes"]] == np.bincount(specimens.labels, minlength=10).tolist()


def test_one_class_shows_inputs_in_one_panel(two_runs: list[Path]) -> None:
    data = gather(two_runs[:1], Request(8, only="4"), noisy=True)
    figure = draw(data)
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["clean", "noisy", "adversarial"]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 24
    assert data.headline.endswith("run undefined")
