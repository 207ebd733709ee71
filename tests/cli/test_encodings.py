"""What a terminal lacks, Unicode or colour, stops no report and spoils no data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from written import first, write_evaluation

PLACES = {"ascii": {"PYTHONIOENCODING": "ascii"}, "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}


@pytest.fixture(params=PLACES)
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONIO", "PYTHONUTF8", "LC_", "LANG", "COLUMNS"))}
    return {**kept, **PLACES[request.param]}


def said(env: dict[str, str], *arguments: str, code: int = 0) -> str:
    """stdout and stderr of a command, which must be ASCII and no traceback."""
    done = subprocess.run([sys.executable, "-m", "advcli", *arguments], capture_output=True, env=env, check=False)
    assert done.returncode == code, done.stderr.decode()
    text = (done.stdout + done.stderr).decode("ascii")
    assert "Traceback" not in text
    return text


def test_screens_escape_what_the_terminal_lacks(env: dict[str, str], tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evalu\u00e9", clean=first(18), attacks={"fgsm": first(15)})
    lines = said(env, "report", str(folder)).splitlines()
    assert "evalu\\" in lines[0]
    assert lines[-1].startswith("robust 75.0 % [53.1, 88.8]")
    assert "75.0" in (folder / "report.html").read_text(encoding="utf-8")


def test_json_stays_json(env: dict[str, str], tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evalu\u00e9\U0001f600", clean=first(18), attacks={"fgsm": first(15)})
    facts: dict[str, Any] = json.loads(said(env, "report", str(folder), "--json"))
    assert os.fsencode(facts["evaluation"]) == os.fsencode(folder)


def test_an_error_is_a_panel_of_ascii(env: dict[str, str], tmp_path: Path) -> None:
    text = said(env, "report", str(tmp_path / "n\u00e9ant"), code=3)
    assert text.startswith("+- checkpoint missing or unfit -")
    assert max(map(len, text.splitlines())) <= 80


def test_no_colour_where_none_is_wanted() -> None:
    """A terminal that could show colour, and a user who asks for none."""
    code = "import sys; sys.argv = ['advcli', 'report', 'nowhere']; import advcli.cli.app as a; a.app()"
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    coloured = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=False).stderr
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**env, "NO_COLOR": "1"}, check=False).stderr
    assert b"\x1b[31m" in coloured
    assert b"\x1b[31m" not in plain
    assert b"there is no such folder" in plain
