"""Training curves: what the log says, the gaps it amounts to, and logs that are absent, cut or broken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from written import write_run

from advcli.errors import CheckpointError, ResourceError
from advcli.report.figures import curves, style


def measured(clean: float, robust: float, **more: Any) -> dict[str, Any]:
    return {"n": 50, "clean": clean, "robust": robust, "attack": "pgd-10", **more}


def write_log(folder: Path, *events: dict[str, Any], seconds: float = 1800, recipe: str | None = None) -> Path:
    write_run(folder, recipe=recipe)
    lines = [json.dumps({"event": "epoch", "epoch": k, "step": 20 * k, "lr": 0.1 / k} | event) for k, event in enumerate(events, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "timing.jsonl").write_text("".join(f'{{"epoch": {k + 1}, "seconds": {seconds}}}\n' for k in range(len(events))))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_log(
        tmp_path / "a",
        {"loss": 2.0, "ce": 1.5, "validation": measured(0.8, 0.4), "train": measured(0.9, 0.5), "selected": True},
        {"loss": 1.5, "ce": 1.0},
        {"loss": 1.0, "ce": 0.7, "validation": measured(0.9, 0.3), "train": measured(1.0, 0.7), "selected": False},
    )


def test_rows_are_the_log_with_its_gaps(run: Path) -> None:
    data = curves.gather([run])
    assert [row["epoch"] for row in data.rows] == [1, 2, 3]
    assert [row["loss"] for row in data.rows] == [2.0, 1.5, 1.0]
    assert [row["gap_clean"] for row in data.rows] == [pytest.approx(0.1), None, pytest.approx(0.1)]
    assert [row["gap_robust"] for row in data.rows] == [pytest.approx(0.1), None, pytest.approx(0.4)]
    assert [row["validation_robust"] for row in data.rows] == [0.4, None, 0.3]
    assert [row["lr"] for row in data.rows] == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert data.headline == "a: 40.0 % robust on held-out images in epoch 1, kept; 30.0 % in epoch 3"
    assert data.notes == ["1.5 hours of training in all"]


def drawn(data: Any) -> dict[str, list[tuple[list[float], list[float]]]]:
    """Axis label of each panel to (x, y) of its lines that have points."""
    figure = curves.draw(data)
    lines = {axes.get_ylabel(): [line.get_xydata() for line in axes.get_lines()] for axes in figure.axes}
    return {label: [(xy[:, 0].tolist(), xy[:, 1].tolist()) for xy in found if len(xy)] for label, found in lines.items()}


def test_what_is_drawn_is_the_data(run: Path) -> None:
    panels = drawn(curves.gather([run]))
    assert list(panels) == ["loss", "held-out accuracy, %", "training - held-out, points", "learning rate"]
    assert ([1, 2, 3], [2.0, 1.5, 1.0]) in panels["loss"]
    assert ([1, 2, 3], [1.5, 1.0, 0.7]) in panels["loss"], "a single run shows the parts of its loss"
    accuracies = panels["held-out accuracy, %"]
    assert [line[1] for line in accuracies[:2]] == [pytest.approx([80, 90]), pytest.approx([40, 30])]
    assert accuracies[2] == ([1], [pytest.approx(40)]), "the dot of the kept epoch"


def test_replay_and_the_teacher_have_panels_where_they_were_logged(tmp_path: Path) -> None:
    """ARREST's figure 4: the noisy and the clean variant are told apart in the legend."""
    event = {"loss": 1.0, "replayed": 0.25, "validation": measured(0.9, 0.5, teacher_cosine=0.8), "selected": True}
    runs = []
    for name, override in (("noisy", "objective.replay.input=noise"), ("clean", "objective.replay.input=clean")):
        runs.append(write_log(tmp_path / name, event))
        write_run(tmp_path / name, override, "model.init=x.safetensors", recipe="arrest")
    data = curves.gather(runs)
    assert data.more["replays"] == {"noisy": "noise", "clean": "clean"}
    panels = drawn(data)
    assert panels["replayed images, %"] == [([1], [25])] * 2
    assert panels["cosine to the pretrained"] == [([1], [0.8])] * 2
    (legend,) = curves.draw(data).legends
    assert [text.get_text() for text in legend.get_texts()] == ["noisy, noise replayed", "clean, clean replayed"]


def test_several_runs_are_told_apart_and_one_without_a_log_is_named(run: Path, tmp_path: Path) -> None:
    other = write_log(tmp_path / "b", {"loss": 3.0, "kl": 1.0, "validation": measured(0.5, 0.1), "selected": True})
    write_run(tmp_path / "c", recipe=None)
    data = curves.gather([run, other, tmp_path / "c"])
    assert [row["run"] for row in data.rows] == ["a", "a", "a", "b"]
    assert data.notes == ["c has no training log", "2 hours of training in all"]
    assert {tuple(row) for row in data.rows} == {tuple(data.rows[0])}, "one flat table"
    assert len(drawn(data)["loss"]) == 2, "of several runs the loss alone"


def test_what_is_no_number_leaves_a_gap_and_is_said(tmp_path: Path) -> None:
    folder = write_log(
        tmp_path / "a",
        {"loss": 1.0, "validation": measured(0.9, 0.5), "selected": True},
        {"loss": math.nan, "validation": measured(0.9, math.nan), "selected": False},
    )
    data = curves.gather([folder])
    assert data.notes[0] == "a: loss, validation_robust not a finite number in some epochs"
    assert data.to_json()["rows"][1]["loss"] is None
    assert data.headline == "a: 50.0 % robust on held-out images in epoch 1, kept"
    assert style.png(curves.draw(data)).startswith(b"\x89PNG")


def test_logs_without_measurements_are_drawn(tmp_path: Path) -> None:
    data = curves.gather([write_log(tmp_path / "a", {"loss": 1.0}, {"loss": 0.5})])
    assert list(drawn(data)) == ["loss", "learning rate"]
    assert data.headline == "2 epochs, none of them measured on held-out images"


def test_no_log_at_all_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResourceError, match="no training log to draw") as raised:
        curves.gather([tmp_path / "a" / "model.safetensors", tmp_path / "empty", tmp_path / "absent"])
    assert raised.value.exit_code == 3


def test_a_damaged_log_is_refused(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"epoch": "one"}\n')
    with pytest.raises(CheckpointError, match="damaged"):
        curves.gather([run])
