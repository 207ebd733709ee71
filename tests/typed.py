"""Commands as a user types them, in this process, and the panels that refuse them."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from advcli.cli.app import app


def advcli_(*arguments: object) -> Any:
    """The result of a command in this process; a bug, which leaves as an exception, is raised here."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(code: int, *arguments: object) -> str:
    """stderr of a command that must end with code and print nothing on stdout, its lines joined and its frame taken off."""
    done = advcli_(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80
    return " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in done.stderr.splitlines()).split())
