"""Images of a ledger as PNG data URIs, for pages that carry everything inside."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advcli.evaluation.stored import Evaluation
from advcli.runs.ledger import Ledger

SHOWN = 8


@dataclass(frozen=True)
class Example:
    """An image that an attack broke, as data URIs. clean and perturbation: None where the ledger keeps no clean images."""

    index: int
    label: str
    attack: str
    steps: int
    clean: str | None
    perturbation: str | None
    adversarial: str


def examples(evaluation: Evaluation, count: int = SHOWN) -> list[Example]:
    """The first broken image of each class in turn, then the second ones, until there are count."""
    if not (evaluation.arrays["found_by"] >= 0).any():
        return []
    arrays, header = Ledger(evaluation.folder / "ledger").read()
    rows = np.searchsorted(arrays["index"], arrays["adversarial_index"])
    chosen = _spread(arrays["label"][rows])[:count]
    eps = float(header["identity"]["threat"]["eps"])
    found = []
    for kept in chosen:
        row = rows[kept]
        entry = header["entries"][arrays["found_by"][row]]["name"]
        adversarial = arrays["adversarial"][kept]
        clean = arrays["clean"][kept].astype(np.float32) / 255 if "clean" in arrays else None
        difference = None if clean is None else perturbation(adversarial - clean, header["threat"]["norm"], eps)
        found.append(
            Example(
                int(arrays["index"][row]),
                header["classes"][arrays["label"][row]],
                entry,
                int(arrays[f"steps.{entry}"][row]),
                None if clean is None else data_uri(clean),
                None if difference is None else data_uri(difference),
                data_uri(adversarial),
            )
        )
    return found


def _spread(labels: NDArray[Any]) -> list[int]:
    """Positions of labels (M,) in turns: the first of every class, the second of every class, ..."""
    seen: dict[int, int] = {}
    turns = []
    for position, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        turns.append((seen[label], label, position))
    return [position for _, _, position in sorted(turns)]


def perturbation(difference: NDArray[Any], norm: str, eps: float) -> NDArray[Any]:
    """(C, H, W) in [0, 1], grey where nothing changed. linf: -eps is black and eps white; else the largest change is."""
    scale = eps if norm == "linf" else max(float(np.abs(difference).max()), 1e-12)
    return np.clip(difference / (2 * scale) + 0.5, 0, 1)


def data_uri(image: NDArray[Any]) -> str:
    """image (C, H, W) in [0, 1] with 1 or 3 channels."""
    from PIL import Image

    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
