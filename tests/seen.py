"""Pages as a reader's software sees them, and ledgers with something changed."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from advcli.report import page, subject
from advcli.runs.ledger import Ledger


class Seen(HTMLParser):
    """Tags with their attributes, text, and the order in which they came."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute)) is not None]


def draw(path: Path) -> Seen:
    return Seen(page.render(subject.of(path)))


def change_ledger(folder: Path, **changes: Any) -> None:
    """Write an evaluation's ledger again with other header fields; arrays by their name."""
    ledger = Ledger(folder / "ledger")
    arrays, header = ledger.read()
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    ledger.finish(arrays, {**header, **{name: value for name, value in changes.items() if name not in arrays}})
