"""Security curves: a radius each an evaluation of its own, closed over the smaller ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from written import write_evaluation

from advcli.errors import InterruptedRunError, UsageError
from advcli.evaluation import curve, engine
from advcli.evaluation.session import Options
from advcli.evaluation.stored import open_evaluation
from advcli.measures import wilson


def test_what_a_smaller_ball_broke_is_broken_in_every_larger_one(tmp_path: Path) -> None:
    clean = [1, 1, 1, 1, 1, 1, 1, 0]
    #                  broken by 0.1 alone: 0; by 0.1 and 0.2: 1; by 0.2 on: 2; 0.3 misses 0 and 2
    right = {"0.1": [0, 0, 1, 1, 1, 1, 1, 1], "0.2": [1, 0, 0, 1, 1, 1, 1, 1], "0.3": [1, 0, 1, 0, 0, 1, 1, 1]}
    folders = [write_evaluation(tmp_path / eps, clean=clean, attacks={"pgd": column}, eps=eps) for eps, column in right.items()]
    report = curve.summarise([open_evaluation(folder) for folder in folders])
    assert [(p["eps"], p["robust"], p["closed_by_smaller"]) for p in report["curve"]] == [
        ("0.1", 5 / 8, 0),
        ("0.2", 4 / 8, 1),  # 6 - 1 stood, and 0 of them was broken at 0.1
        ("0.3", 2 / 8, 2),
    ]
    assert [p["ci"] for p in report["curve"]] == [list(wilson(k, 8)) for k in (5, 4, 2)]
    assert [row["robust"] for row in report["evaluations"]] == [5 / 8, 5 / 8, 4 / 8], "each evaluation keeps what it measured"
    assert (report["threat"]["eps"], report["clean"], report["verdict"]) == (["0.1", "0.2", "0.3"], 7 / 8, "upper bound")


def options(checkpoint: Path, eps: str, **changes: Any) -> Options:
    return Options(checkpoint, **{"suite": "quick", "n": 24, "device": "cpu", "batch_size": 8, "eps": eps, **changes})


def test_every_radius_has_its_own_receipt(checkpoint: Path, silent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = curve.run(options(checkpoint, "0.3, 0.05,0.15"), silent)
    assert [point["eps"] for point in report["curve"]] == ["0.05", "0.15", "0.3"]
    robust = [point["robust"] for point in report["curve"]]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > robust[-1]
    for point, row in zip(report["curve"], report["evaluations"], strict=True):
        folder = Path(point["receipt"])
        assert json.loads((folder / "report.json").read_text()) == row
        assert folder.parent == checkpoint.parent / "evals"
        identity = json.loads((folder / "identity.json").read_text())
        assert identity["threat"]["eps"] == float(point["eps"])
    assert report["seconds"] > 0
    json.dumps(report, allow_nan=False)
    monkeypatch.setattr(engine, "Run", lambda *args: pytest.fail("it ran again"))
    assert curve.run(options(checkpoint, "0.05,0.15,0.3"), silent) == report, "what is finished is read"


def test_a_list_that_was_stopped_goes_on(checkpoint: Path, silent: Any) -> None:
    class Stop:
        name = ""

        def __getattr__(self, name: str) -> Any:
            return lambda *args: None

        def attacking(self, name: str, survivors: int, of: int) -> None:
            self.name = name

        def advanced(self, done: int, spent: int, left: int) -> None:
            if self.name == "eps 0.15 pgd-20" and done > 8:
                raise KeyboardInterrupt

    work = options(checkpoint, "0.05,0.15,0.3")
    with pytest.raises(InterruptedRunError, match="--resume"):
        curve.run(work, Stop())
    assert len(list((checkpoint.parent / "evals").iterdir())) == 2
    with pytest.raises(UsageError, match="begun and not finished"):
        curve.run(work, silent)
    resumed = curve.run(options(checkpoint, "0.05,0.15,0.3", resume=True), silent)
    assert len(resumed["curve"]) == 3


def test_a_named_folder_holds_a_folder_each(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    curve.run(options(checkpoint, "8/255,0.1", out=tmp_path / "out"), silent)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eps-0.1", "eps-8_255"]
    with pytest.raises(UsageError, match="a single evaluation"):
        curve.run(options(checkpoint, "0.1,0.2", out=tmp_path / "out" / "eps-0.1"), silent)


@pytest.mark.parametrize(
    ("eps", "says"),
    [("0.1,0.1", "given twice"), ("8/255,8.0/255", "given twice"), ("0.1,", "got ''"), ("0.1,8", "allows anything"), ("0.1,x", "'x'")],
)
def test_a_wrong_list_is_refused_before_anything_is_attacked(checkpoint: Path, silent: Any, eps: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        curve.run(options(checkpoint, eps), silent)
    assert not (checkpoint.parent / "evals").exists()
