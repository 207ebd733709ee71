"""report.html: one self-contained page from an evaluation or a run folder. No script, no network, the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import advcli
from advcli.errors import UsageError
from advcli.evaluation.stored import Evaluation
from advcli.measures import wilson
from advcli.recipe import dump
from advcli.report import commands, pictures, references
from advcli.report.plots import plots
from advcli.report.subject import Subject, clock
from advcli.report.terminal import percent
from advcli.runs import atomic, log

_TEMPLATES = Path(__file__).parent / "templates"


def write(subject: Subject, file: Path | None = None) -> Path:
    """Draw the page into file; None: report.html in the folder, which is replaced. UsageError where another file would be."""
    if file is not None and file.exists():
        raise UsageError("there is a file already, and nothing is overwritten", where=str(file), next="-o names another")
    file = file or subject.folder / "report.html"
    atomic.make_folder(file.parent)
    atomic.write_bytes(file, render(subject).encode("utf-8", "backslashreplace"))  # file names may be no UTF-8
    return file


def render(subject: Subject) -> str:
    """The page as HTML; everything in it that came from a file is escaped."""
    return environment().get_template("page.html").render(**facts(subject))


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["percent"] = percent
    made.globals["measure"] = _measure
    made.globals["style"] = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))  # our own, so not escaped
    return made


def facts(subject: Subject) -> dict[str, Any]:
    """What the template says: plain values, and figures as SVG."""
    evaluation, run = subject.evaluation, subject.run
    report = evaluation.report if evaluation else None
    return {
        "version": advcli.__version__,
        "name": subject.name,
        "about": _about(subject),
        "report": report,
        "verdict": _verdict(report) if report else None,
        "scale": _scale(report) if report else [],
        "measured": (subject.model.get("selection") or {}).get("measured"),
        "attacks": _attacks(evaluation) if evaluation else [],
        "flags": _flags(report) if report else None,
        "classes": _classes(report) if report else [],
        "plots": plots(run) if run else {},
        "examples": pictures.examples(evaluation) if evaluation else [],
        "others": [_other(e) for e in subject.others],
        "recipe": dump(run.recipe) if run and run.recipe else None,
        "machine": _machine(subject),
        "receipts": _receipts(subject),
        "commands": [*commands.recompute(subject), ("draw this page again", commands.page(subject))],
        "attack_command": commands.attack(subject),
        "references": [
            references.of_software(advcli.__version__),
            *references.of_method(subject.model),
            *(references.of_suite(evaluation.suite) if evaluation else []),
        ],
        "notes": [*subject.notes, *(f"{folder.name}: {why}" for folder, why in (run.passed_over if run else ()))],
    }


def _about(subject: Subject) -> list[tuple[str, str]]:
    """(what, value) of the line under the title."""
    model = subject.model
    architecture = model.get("architecture") or (subject.evaluation.header["identity"]["architecture"] if subject.evaluation else {})
    gates = [gate["name"] for gate in architecture.get("gates") or [] if isinstance(gate, dict)]
    objective = model.get("objective") or {}
    parts = [objective.get("name"), *(term["name"] for term in objective.get("terms") or []), (objective.get("wrapper") or {}).get("name")]
    width = architecture.get("width", 1)
    rows = [
        ("network", f"{architecture.get('arch', '')}{f', width {width:g}' if width != 1 else ''}"),
        ("gates", ", ".join(gates)),
        ("trained by", " + ".join(part for part in parts if part)),
    ]
    report = subject.evaluation.report if subject.evaluation else None
    if report:
        rows += [("images", f"{report['data'] or 'own images'}, {report['split']} split, n = {report['n']}")]
        rows += [("threat", f"{report['threat']['norm']}, eps {report['threat']['eps']}"), ("suite", report["protocol"])]
    return [(what, value) for what, value in rows if value]


_BADGE = {"trustworthy": "trustworthy", "upper bound": "an upper bound", "masked": "not to be trusted"}
_MEANING = {
    "trustworthy": "The worst case per image over all attacks: AutoAttack ran whole, and no sign of masked gradients was seen.",
    "upper bound": "The worst case per image over the attacks that were run, and an upper bound: harder attacks may break more images.",
    "masked": "Gradients look masked: the attacks were misled, and the network is likely weaker than this number. Do not trust it.",
}


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """The headline and what it is worth, in words."""
    kind = report["verdict"]
    head = "" if report["head"] == "final" else f" by head {report['head']}"
    standing = f"{round(report['robust'] * report['n'])} of {report['n']} images are classified right{head}"
    sentence = f"{standing} and stay so under every attack of suite {report['suite']}."
    reasons = list(dict.fromkeys([*report.get("reasons", []), *report["notes"]]))
    worst = [(name, value) for name, value in (report.get("worst") or {}).items() if isinstance(value, float)]
    return {"kind": kind, "badge": _BADGE[kind], "meaning": _MEANING[kind], "sentence": sentence, "reasons": reasons, "worst": worst}


def _scale(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Clean and robust accuracy with their intervals, for the scale under the headline."""
    n = report["n"]
    clean = {"name": "clean", "value": report["clean"], "ci": wilson(round(report["clean"] * n), n)}
    return [clean, {"name": "robust", "value": report["robust"], "ci": report["ci"]}]


def _attacks(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row a reading: clean first, then in the order of the suite."""
    report, n = evaluation.report, evaluation.n
    about = {name: entry["about"] for entry in evaluation.header["entries"] for name, _ in entry["readings"]}
    rows = [{"name": "none", "about": "clean images", "on": "all", "accuracy": report["clean"]}]
    rows += [{"name": name, "about": about[name], **row} for name, row in report["attacks"].items()]
    return [{**row, "ci": wilson(round(row["accuracy"] * n), n)} for row in rows]


def _flags(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Checks for masked gradients; a report of an older version holds those alone that were raised."""
    flags = [{**flag, "raised": flag.get("raised", True)} for flag in report["flags"]]
    return {"raised": [flag for flag in flags if flag["raised"]], "passed": [flag for flag in flags if not flag["raised"]]}


def _measure(flag: Mapping[str, Any]) -> str:
    """What was measured, at which threshold, and who proposed the check."""
    rows = [(word, flag.get(key)) for word, key in (("measured", "value"), ("threshold", "threshold"), ("p", "p"))]
    told = ", ".join(
        f"{word} {value:.4g}" if isinstance(value, int | float) else f"{word} {value}" for word, value in rows if value is not None
    )
    return "; ".join(part for part in (told, flag.get("source")) if part)


def _classes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weakest class first."""
    rows = [{"name": name, **row, "ci": wilson(round(row["robust"] * row["n"]), row["n"])} for name, row in report["per_class"].items()]
    return sorted(rows, key=lambda row: row["robust"])


def _other(evaluation: Evaluation) -> dict[str, Any]:
    return {"folder": evaluation.folder.name, **evaluation.report}


def _machine(subject: Subject) -> list[tuple[str, str]]:
    """(what, value) of what the numbers were made with."""
    rows: list[tuple[str, str]] = []
    if subject.evaluation:
        report, time = subject.evaluation.report, clock(subject.evaluation.folder / "timing.json")
        rows.append(("attack", f"{report['forwards']:,} forward and {report['backwards']:,} backward passes of an image"))
        if "seconds" in time:
            threads = f", threads {time['threads']}" if "threads" in time else ""
            rows.append(("attack took", f"{time['seconds']:,.0f} s on {time.get('device', 'an unknown device')}{threads}"))
        rows.append(("attacked with", _versions(subject.evaluation.header)))
    epochs = list(log.read(subject.run.folder / "timing.jsonl")) if subject.run and subject.run.recipe else []
    if epochs:
        devices = ", ".join(dict.fromkeys(str(row.get("device", "an unknown device")) for row in epochs))
        total = sum(row["seconds"] for row in epochs)
        rows.append(("training took", f"{total:,.0f} s for {len(epochs)} epochs on {devices}"))
    rows.append(("trained with", _versions(subject.model)))
    return [(what, value) for what, value in rows if value]


def _versions(header: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in (header.get("versions") or {}).items())


def _receipts(subject: Subject) -> list[tuple[str, str, str]]:
    """(what, SHA-256, where it stands)."""
    rows: list[tuple[str, str | None, str]] = []
    model = subject.model
    if subject.evaluation:
        header = subject.evaluation.header
        identity = header["identity"]
        rows += [
            ("verdicts and adversarial images", header.get("tensors_sha256"), "ledger/ledger.safetensors"),
            ("identity of the evaluation", identity["digest"], "identity.json"),
            ("images, labels and their numbers", identity["images_sha256"], "identity.json"),
            ("weights that were attacked", identity["tensors_sha256"], "identity.json"),
            *((f"network that attack {k} was crafted on", sha, "identity.json") for k, sha in enumerate(identity.get("sources", []), 1)),
        ]
    elif model:
        rows.append(("weights", model["tensors_sha256"], "model.safetensors"))
    rows.append(("recipe", model.get("recipe_sha256"), "model.safetensors"))
    return [(what, digest, where) for what, digest, where in rows if digest]
