"""Model cards: Markdown in Hugging Face's layout, from a checkpoint's header and the evaluations beside it; nothing without a receipt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from advcli.errors import CheckpointError, UsageError
from advcli.evaluation.stored import Evaluation
from advcli.report import commands, references
from advcli.report.page import environment
from advcli.report.subject import Subject, of
from advcli.runs import atomic, container


def write(checkpoint: Path, file: Path) -> None:
    """The card into a new file; UsageError where there is one already."""
    if file.exists():
        raise UsageError("there is a file already, and nothing is overwritten", where=str(file), next="-o names another")
    text = render(checkpoint)
    atomic.make_folder(file.parent)
    atomic.write_bytes(file, text.encode("utf-8", "backslashreplace"))


def render(checkpoint: Path) -> str:
    """The card of a model file. CheckpointError where the file or a receipt beside it is damaged."""
    header, _ = container.read(checkpoint, "model")  # the tensors' digest as well, for the card vouches for the weights
    _check(header, checkpoint)
    subject = of(checkpoint)
    evaluations = subject.run.evaluations if subject.run else ()
    made = environment()
    made.filters["literal"] = literal
    return made.get_template("card.md.jinja").render(
        front=front_matter(subject, header, evaluations),
        name=subject.name,
        header=header,
        parts=_parts(header),
        evaluations=[evaluation.report for evaluation in evaluations],
        leading=subject.evaluation.report if subject.evaluation else None,
        classes=", ".join(header["classes"]),
        commands=commands.recompute(subject),
        file=checkpoint.name,
        references=[
            *references.of_method(header),
            *(references.of_suite(subject.evaluation.suite) if subject.evaluation else []),
        ],
    )


def _check(header: dict[str, Any], path: Path) -> None:
    """CheckpointError where the header lacks what a card must tell."""
    needed = {"architecture": ("arch", "channels", "size"), "data": ("name",), "threat": ("norm", "eps")}
    whole = {part: header[part] for part in needed if isinstance(header.get(part), dict)}
    missing = [f"{part}.{key}" for part, keys in needed.items() for key in keys if key not in whole.get(part, {})]
    missing += [] if isinstance(header.get("classes"), list) else ["classes"]
    if missing:
        raise CheckpointError(f"the header does not tell {', '.join(missing)}", where=str(path))


def front_matter(subject: Subject, header: dict[str, Any], evaluations: tuple[Evaluation, ...]) -> str:
    """The YAML that the hub reads, with a model-index whose values are fractions as the ledgers have them."""
    data = header["data"]["name"]
    results = _results([evaluation.report for evaluation in evaluations])
    front = {
        "library_name": "advcli",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", header["architecture"]["arch"], *_parts(header).values()],
        **({"datasets": [data]} if data != "folder" else {}),
        "metrics": ["accuracy"],
        **({"model-index": [{"name": subject.name, "results": results}]} if results else {}),
    }
    return str(yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=120))


def _results(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A result for each data set and split, with the clean accuracy of each n and every robust one."""
    metrics: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for report in reports:
        threat = f"{report['threat']['norm']} eps {report['threat']['eps']}"
        bound = "" if report["verdict"] == "trustworthy" else f", {report['verdict']}"
        robust = f"robust accuracy under {report['protocol']}, {threat}, n = {report['n']}{bound}"
        found = metrics.setdefault((report["data"] or "own images", report["split"]), [])
        clean = {"type": "accuracy", "name": f"clean accuracy, n = {report['n']}", "value": report["clean"]}
        found += [clean] if clean not in found else []
        found.append({"type": "accuracy", "name": robust, "value": report["robust"]})
    task = {"type": "image-classification", "name": "image classification"}
    return [
        {"task": dict(task), "dataset": {"type": data, "name": data, "split": split}, "metrics": rows}
        for (data, split), rows in metrics.items()
    ]


def _parts(header: dict[str, Any]) -> dict[str, str]:
    """What made it, by role: objective, terms, wrapper, gates."""
    objective = header.get("objective") or {}
    named = {
        "objective": [objective],
        "terms": objective.get("terms") or [],
        "wrapper": [objective.get("wrapper") or {}],
        "gates": header["architecture"].get("gates") or [],
    }
    found = {role: ", ".join(part["name"] for part in parts if part.get("name")) for role, parts in named.items()}
    return {role: names for role, names in found.items() if names}


def literal(text: object) -> str:
    """Text as it is, in Markdown: one line, and nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(str(text).split()))
