"""Run and evaluation folders written by hand, whose numbers are known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from advcli.recipe import load
from advcli.runs import atomic, container
from advcli.runs.folder import store_recipe
from advcli.runs.ledger import Ledger

Right = Sequence[int]  # 0 or 1 an image


def write_evaluation(
    folder: Path,
    *,
    clean: Right,
    attacks: dict[str, Right],
    suite: str = "quick",
    on: str = "all",
    eps: str = "0.15",
    protocol: str = "1 native",
    images: str = "images",
    weights: str = "weights",
    split: str = "test",
    data: str = "digits",
    seed: int = 0,
    sources: Sequence[str] = (),
    head: str = "final",
    gates: Sequence[str] = (),
    checkpoint: Path | None = None,
) -> Path:
    """A finished evaluation; attacks: NAME=who is still right after that attack alone."""
    correct = np.array(clean, bool)
    arrays: dict[str, Any] = {"index": np.arange(len(clean)) * 3, "label": np.zeros(len(clean), np.int64)}
    arrays |= {"clean_margin": np.where(correct, -1, 1).astype(np.float32), "found_by": np.full(len(clean), -1)}
    for position, (name, right) in enumerate(attacks.items()):
        broken = correct & ~np.array(right, bool)
        arrays |= {f"broken.{name}": broken, f"steps.{name}": np.where(broken, 7, -1), f"run.{name}": np.zeros(len(clean), np.int64)}
        arrays |= {f"margin.{name}": np.where(broken, 1, -1).astype(np.float32)}
        arrays |= {f"{what}.{name}": np.ones(len(clean), np.int64) for what in ("forwards", "backwards")}
        arrays["found_by"] = np.where((arrays["found_by"] < 0) & broken, position, arrays["found_by"])
    kept = np.flatnonzero(arrays["found_by"] >= 0)
    arrays |= {"adversarial_index": arrays["index"][kept], "adversarial": np.zeros((len(kept), 1, 8, 8), np.float32)}
    arrays["clean"] = np.full((len(kept), 1, 8, 8), 20, np.uint8)
    norm, radius = "linf", 8 / 255 if eps == "8/255" else float(eps)
    identity = {
        "tensors_sha256": weights,
        "images_sha256": hashlib.sha256(f"{images} {len(clean)}".encode()).hexdigest(),
        "threat": {"norm": norm, "eps": radius, "bounds": [0.0, 1.0]},
        "suite": suite,
        "seed": seed,
        "engine": "native",
        "chunk": 64,
        "architecture": {"gates": list(gates)},
        "digest": "d" * 64,
        **({"sources": list(sources)} if sources else {}),
    }
    header = {
        "checkpoint": str(checkpoint or folder.parent.parent / "model.safetensors"),
        "classes": ["zero", "one"],
        "threat": {"norm": norm, "eps": eps, "bounds": [0, 1]},
        "data": {"name": data},
        "split": split,
        "head": head,
        "gated": bool(gates),
        "suite": suite,
        "protocol": f"{suite}/{protocol}",
        "notes": [],
        "identity": identity,
        "bound": 0.01,
        "entries": [{"name": name, "about": name, "on": on, "targeted": False, "readings": [[name, 2**31]]} for name in attacks],
    }
    atomic.make_folder(folder)
    atomic.write_json(folder / "identity.json", identity)
    Ledger(folder / "ledger").finish(arrays, header)
    return folder


def write_run(folder: Path, *overrides: str, weights: float | None = 1.0, recipe: str | None = "quickstart") -> str:
    """A run folder with a model of one number; returns the digest that its evaluations must name."""
    atomic.make_folder(folder)
    if recipe:
        store_recipe(folder, load(recipe, list(overrides)))
    if weights is None:
        return "weights"
    tensors = {"w": np.array([weights, *map(ord, folder.name)], np.float32)}
    digest = container.tensors_digest(save(tensors))
    atomic.write_bytes(folder / "model.safetensors", save(tensors, metadata=container.seal({"architecture": {}}, "model", digest)))
    return digest


def first(right: int, n: int = 20) -> list[int]:
    """The first images are right, the others wrong."""
    return [1] * right + [0] * (n - right)


def write_attacked_run(name: str, *overrides: str, recipe: str | None = "quickstart", n: int = 20, clean: int = 18, **robust: int) -> Path:
    """runs/NAME, trained with overrides, with worst cases robust (SUITE=count) of n images, the first `clean` of them right."""
    folder = Path("runs") / name
    weights = write_run(folder, *overrides, recipe=recipe)
    for suite, count in robust.items():
        attacks = {"fgsm": first(count + 2, n), "pgd-20": first(count, n)} if suite == "quick" else {"apgd-ce": first(count, n)}
        write_evaluation(
            folder / "evals" / f"{suite}-1", clean=first(clean, n), attacks=attacks, suite=suite, weights=weights, on="survivors"
        )
    return folder
