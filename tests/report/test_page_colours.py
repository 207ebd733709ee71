"""Text can be read by those who see less contrast."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from advcli.report import page


def tokens() -> list[dict[str, str]]:
    """The colours of each scheme: light, dark, paper."""
    css = (Path(page.__file__).parent / "templates" / "page.css").read_text()
    return [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]


def luminance(colour: str) -> float:
    """WCAG 2.1's relative luminance."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_as_wcag_counts_it() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "paper"])
def test_text_has_the_contrast_of_wcag_aa(scheme: int) -> None:
    assert len(tokens()) == 3
    own = tokens()[scheme]
    for ground in ("ground", "raised"):
        for ink in ("ink", "muted", "mark", "good", "fair", "bad"):
            assert contrast(own[ink], own[ground]) >= 4.5, (ink, ground)
