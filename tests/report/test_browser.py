"""The page in a real browser, headless: nothing on the console, nothing from elsewhere, the verdict on a phone's screen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from written import first, write_evaluation, write_run

from advcli.report import page, subject

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed (Debian: apt-get install chromium)")

# The page as it is in a frame of a phone's size; srcdoc shares the origin, so that it can be looked into.
LOOK = """<!DOCTYPE html><title>look</title><link rel="icon" href="data:,"><pre id="facts"></pre><script>
const look = () => {{  // when the frame has loaded so have its images
  const page = frame.contentDocument, view = frame.contentWindow;
  const box = query => {{ const r = page.querySelector(query).getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }};
  const wide = [...page.querySelectorAll("*")].filter(e => e.scrollWidth > e.clientWidth + 1);
  const scrolling = wide.filter(e => view.getComputedStyle(e).overflowX == "auto");
  page.querySelector(".skip").focus();
  facts.textContent = JSON.stringify({{
    verdict: page.querySelector(".headline strong").innerText.trim(),
    box: box(".headline strong"), badge: box(".badge"), skip: box(".skip"), width: page.documentElement.scrollWidth,
    images: [...page.images].map(image => image.naturalWidth),
    plots: [...page.querySelectorAll(".plot svg")].map(svg => svg.getBBox().width),
    stuck: scrolling.filter(e => e.tabIndex != 0).map(e => e.outerHTML.slice(0, 80)),
    colours: [view.getComputedStyle(page.body).color, view.getComputedStyle(page.body).backgroundColor],
    requests: view.performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:")),
  }});
}};
</script><iframe id="frame" width="{width}" height="800" style="border:0" onload="look()" srcdoc="{page}"></iframe>"""


def browse(file: Path, *flags: str) -> tuple[str, list[str]]:
    """(DOM after loading, console messages)."""
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking")
    listen = ("--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={file.parent.parent / 'profile'}", "--dump-dom")
    command = [str(BROWSER), *quiet, *listen, *flags, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def look(text: str, folder: Path, width: int, *flags: str) -> dict[str, Any]:
    file = folder / "look.html"
    file.write_text(LOOK.format(width=width, page=html.escape(text)), encoding="utf-8")
    dom, console = browse(file, *flags)
    assert console == []
    found = re.search(r'<pre id="facts">(.+?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    return dict(json.loads(html.unescape(found[1])))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything on it: several radii, a log, broken images, long names."""
    run = tmp_path_factory.mktemp("drawn") / "run"
    weights = write_run(run)
    for number, (eps, left) in enumerate((("0.05", 17), ("0.1", 14), ("0.15", 11))):
        attacks = {"fgsm": first(left + 1), "pgd-20": first(left), "pgd-100@a-source-with-a-long-name-0123abcd": first(left)}
        write_evaluation(run / "evals" / f"quick-{number}", clean=first(18), attacks=attacks, weights=weights, eps=eps)
    row = {"n": 50, "clean": 0.9, "robust": 0.5, "attack": "pgd-10"}
    events = [{"event": "epoch", "epoch": k, "step": k, "lr": 0.1, "loss": 1 / k, "validation": row, "train": row} for k in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return page.render(subject.of(run))


def test_the_console_is_heard(tmp_path: Path) -> None:
    """A control: a page that logs, and one that asks for something its policy forbids, are both told of."""
    head = '<!DOCTYPE html><title>x</title><link rel="icon" href="data:,">'
    file = tmp_path / "loud.html"
    file.write_text(f"{head}<script>console.error('heard')</script>")
    assert any("heard" in line for line in browse(file)[1])
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    file.write_text(f"{head}{policy}<img src='https://example.invalid/x.png'>")
    assert any("example.invalid" in line for line in browse(file)[1])


def test_from_disk_it_is_silent(drawn: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(drawn, encoding="utf-8")
    dom, console = browse(file)
    assert console == []
    assert "Robust accuracy" in dom


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1200, "dark")])
def test_the_verdict_is_on_the_screen_and_everything_is_loaded(drawn: str, tmp_path: Path, width: int, scheme: str) -> None:
    facts = look(drawn, tmp_path, width, f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")
    assert facts["verdict"].replace("\n", "").startswith("55.0")
    for left, top, right, bottom in (facts["box"], facts["badge"]):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= 800
    assert facts["width"] <= width  # nothing makes the page itself scroll sideways
    assert facts["stuck"] == []  # what scrolls can be reached by keyboard
    assert facts["skip"][0] >= 0  # the skip link shows where it has the focus
    assert facts["requests"] == []
    assert facts["images"]
    assert min(facts["images"]) > 0
    assert all(size > 0 for size in facts["plots"])
    assert len(facts["plots"]) == drawn.count('class="plot"')
    ink, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in facts["colours"])
    assert (ink < ground) == (scheme == "light")
