"""The command lines that make an evaluation, and a run, again: from their receipts alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from advcli.evaluation.stored import Evaluation
from advcli.report.subject import Subject


def recompute(subject: Subject) -> list[tuple[str, str]]:
    """(what it does, command line), the cheapest first."""
    rows = []
    if subject.evaluation:
        rows.append(("check every stored adversarial image again, without an attack", _line("verify", subject.evaluation.folder)))
        rows.append(("attack again", _attack_again(subject.evaluation, subject.model)))
    if subject.run and subject.run.recipe:
        rows.append(("train again", train(subject)))
    rows.append(("draw this page again", _line("report", subject.folder)))
    return rows


def attack(subject: Subject) -> str:
    """The attack that a run calls for."""
    gated = (subject.model.get("architecture") or {}).get("gates")
    return _line("attack", subject.folder, "--suite", "adaptive" if gated else "aa")


def train(subject: Subject) -> str:
    """The training of a run, from its resolved recipe."""
    assert subject.run is not None and subject.run.recipe is not None, "only a run with a recipe can be trained again"
    recipe = subject.run.recipe
    start = recipe.model.init is not None
    command = "pretrain" if recipe.objective.name == "standard" else "finetune" if start else "adv-train"
    return _line(command, subject.run.folder / "recipe.yaml")


def _attack_again(evaluation: Evaluation, model: dict[str, Any]) -> str:
    header, identity = evaluation.header, evaluation.header["identity"]
    words: list[Any] = ["attack", header["checkpoint"], "--suite", header["suite"], "--n", evaluation.n, "--seed", identity["seed"]]
    words += ["--norm", header["threat"]["norm"], "--eps", header["threat"]["eps"], "--batch-size", identity["chunk"]]
    words += ["--split", header["split"]] if header["split"] != "test" else []
    words += ["--head", header["head"]] if header.get("head", "final") != "final" else []
    words += ["--engine", identity["engine"]] if identity["engine"] != "native" else []
    data = header["data"]
    if data.get("name") not in (None, (model.get("data") or {}).get("name")):
        words += ["--data", data["name"]]
    words += ["--data-root", data["root"]] if data.get("root") else []
    own, judged = (model.get("architecture") or {}).get("gates"), identity["architecture"].get("gates") or []
    words += ["--gate", judged[0]["name"]] if own == [] and len(judged) == 1 else []
    words += [word for sha in identity.get("sources", []) for word in ("--source", f"NETWORK-{sha[:8]}")]
    return _line(*words)


def _line(*words: str | int | Path) -> str:
    return shlex.join(["advcli", *map(str, words)])
