"""Adversarial examples on a page: the ledger's own, told apart by eye."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from seen import change_ledger, draw

from advcli.evaluation.stored import open_evaluation
from advcli.report import pictures
from advcli.runs.ledger import Ledger


def pixels(uri: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_examples_are_the_ledger_s_images(run: Path) -> None:
    folder = run / "evals" / "quick-1"
    kept = len(Ledger(folder / "ledger").read()[0]["adversarial_index"])
    clean = np.arange(kept * 64, dtype=np.uint8).reshape(kept, 1, 8, 8)
    adversarial = np.clip(clean.astype(np.float32) / 255 + 0.15 * np.where(np.arange(8) % 2, 1, -1), 0, 1).astype(np.float32)
    change_ledger(folder, clean=clean, adversarial=adversarial)
    found = pictures.examples(open_evaluation(folder), 4)
    assert len(found) == 4
    for number, example in enumerate(found):
        assert example.clean is not None
        assert example.perturbation is not None
        assert (pixels(example.clean) == clean[number, 0]).all()
        assert (pixels(example.adversarial) == np.round(adversarial[number, 0] * 255)).all()
        inside = (clean[number, 0] > 40) & (clean[number, 0] < 215)
        assert (pixels(example.perturbation)[inside] == np.where(np.arange(8) % 2, 255, 0)[None].repeat(8, 0)[inside]).all()


def test_a_ledger_without_clean_images_shows_the_others_and_says_so(run: Path) -> None:
    folder = run / "evals" / "aa-1"
    ledger = Ledger(folder / "ledger")
    arrays, header = ledger.read()
    ledger.finish({name: array for name, array in arrays.items() if name != "clean"}, header)
    seen = draw(folder)
    assert "keeps no clean ones" in seen.text
    assert len(seen.all("img")) == 7


def test_classes_take_turns() -> None:
    assert pictures._spread(np.array([2, 2, 0, 1, 2, 0])) == [2, 3, 0, 5, 1, 4]


@pytest.mark.parametrize(("norm", "ends"), [("linf", (0.25, 0.75)), ("l2", (0.0, 1.0))])
def test_perturbations_are_magnified(norm: str, ends: tuple[float, float]) -> None:
    shown = pictures.perturbation(np.array([[[-0.1, 0.0, 0.1]]]), norm, 0.2)
    assert shown[0, 0].tolist() == pytest.approx([ends[0], 0.5, ends[1]])
