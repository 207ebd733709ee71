"""The command lines that make an evaluation, and a run, again: from their receipts alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from advcli.evaluation.stored import Evaluation
from advcli.recipe import Recipe
from advcli.report.subject import Subject


def recompute(subject: Subject) -> list[tuple[str, str]]:
    """(what it does, command line), the cheapest first."""
    rows = []
    if subject.evaluation:
        rows.append(("check every stored adversarial image again, without an attack", _line("verify", subject.evaluation.folder)))
        rows.append(("attack again", _attack_again(subject.evaluation, subject)))
    if subject.run and subject.run.recipe:
        rows.append(("train again", _train_again(subject.run.folder, subject.run.recipe)))
    return rows


def attack(subject: Subject) -> str:
    """The attack that a run calls for."""
    gated = (subject.model.get("architecture") or {}).get("gates")
    return _line("attack", subject.folder, "--suite", "adaptive" if gated else "aa")


def page(subject: Subject) -> str:
    return _line("report", subject.folder)


def _train_again(folder: Path, recipe: Recipe) -> str:
    command = "pretrain" if recipe.objective.name == "standard" else "finetune" if recipe.model.init is not None else "adv-train"
    return _line(command, folder / "recipe.yaml")


def _attack_again(evaluation: Evaluation, subject: Subject) -> str:
    header, identity, model = evaluation.header, evaluation.header["identity"], subject.model
    stored = Path(header["checkpoint"])  # where it lay; a run folder that moved has taken it along
    checkpoint = subject.run.folder / stored.name if subject.run else stored
    words: list[Any] = ["attack", checkpoint, "--suite", header["suite"], "--n", evaluation.n, "--seed", identity["seed"]]
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
