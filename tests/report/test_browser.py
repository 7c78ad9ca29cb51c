"""A real survey's page in headless Chromium: every plot is drawn, and nothing complains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from curve_cases import with_curves

from secant.report.html import render_html
from secant.uses.survey import survey

BROWSER = shutil.which("chromium")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
# Run in a copy of the page whose policy against scripts is taken out: opens what is folded and
# measures every plot and every mark in it, as the browser laid them out.
PROBE = """<script>
document.querySelectorAll("details").forEach(one => one.open = true);
const size = one => { const b = one.getBoundingClientRect(); return [b.width, b.height]; };
const found = [...document.querySelectorAll("svg.plot")].map(svg => ({
  name: svg.getAttribute("aria-label"), size: size(svg),
  marks: [...svg.querySelectorAll(".line,.dot,.out,.rug,.na")].map(size)}));
const page = document.documentElement;
document.body.dataset.found = JSON.stringify({plots: found,
  colour: getComputedStyle(document.body).backgroundColor,
  over: page.scrollWidth - page.clientWidth});
</script>"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on the PATH: `make screenshots` installs Debian's"
)


def dump(path: Path, *flags: str) -> tuple[str, str]:
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run(
        [str(BROWSER), *FLAGS, profile, *flags, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def page() -> str:
    report = survey(["demo:mlp"], rows=300).as_dict()
    report["models"] = [with_curves(model, 3) for model in report["models"]]
    return render_html(report)


def probe(page: str, folder: Path, *flags: str) -> dict:
    open_page, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert policies == 1
    path = folder / "probe.html"
    path.write_text(open_page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dom, _ = dump(path, *flags)
    return json.loads(unescape(re.search(r'data-found="([^"]*)"', dom).group(1)))


def test_every_plot_is_drawn(page, tmp_path):
    found = probe(page, tmp_path)
    assert len(found["plots"]) == page.count('<svg class="plot') > 20
    for one in found["plots"]:
        assert min(one["size"]) > 30, one["name"]
        assert one["marks"], one["name"]
        # A level line has no height and a dot has both; no mark may be without extent.
        assert all(max(mark) > 0 for mark in one["marks"]), one["name"]


def test_no_console_message(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    dom, log = dump(path)
    assert dom.count('<svg class="plot') == page.count('<svg class="plot')
    assert "CONSOLE" not in log, log


def test_a_script_in_the_page_is_refused_and_said(page, tmp_path):
    """The policy holds, and a console message would be seen by the test above."""
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    dom, log = dump(path)
    assert "data-found" not in dom
    assert "CONSOLE" in log


def test_a_phone_scrolls_in_one_direction_and_dark_is_dark(page, tmp_path):
    assert probe(page, tmp_path, "--window-size=390,844")["over"] <= 0
    light = probe(page, tmp_path)["colour"]
    dark = probe(page, tmp_path, "--blink-settings=preferredColorScheme=0")["colour"]
    assert [sum(map(int, re.findall(r"\d+", one))) > 600 for one in (light, dark)] == [True, False]
