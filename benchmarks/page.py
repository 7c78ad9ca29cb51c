"""The page: its size, the time to draw it, and the time of `secant --help`.

Run: python benchmarks/page.py REPORT.json

The page of the report, and the page of four models, each with 12 sites of 100 readings, made of
the report's own readings. Draw time: parsing, style and layout as the browser's clock has them at
the page's end, and a whole picture of the page less one of an empty page. Medians of five in turn.
Needs: chromium on the PATH for the draw times.
"""

import copy
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from secant.report.html import render_html

REPEATS, MODELS, SITES, READINGS = 5, 4, 12, 100
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu")
CLOCK = (
    "<script>document.body.getBoundingClientRect();"
    "document.body.dataset.drawn = performance.now()</script>"
)
HELP = "import sys; from secant.cli import main; sys.argv = ['secant', '--help']; main()"


def large(report: dict) -> dict:
    """Four models of 12 sites with 100 readings each, all from the first model's readings."""
    first = report["models"][0]
    sites = [f"encoder.layer.{i}" for i in range(SITES)]
    picked = list(islice(cycle(first["readings"]), READINGS))
    readings = [{**one, "site": site} for site in sites for one in picked]
    models = [
        {**copy.deepcopy(first), "name": f"model-{i}", "sites": sites, "readings": readings}
        for i in range(MODELS)
    ]
    return {**report, "models": models}


def timed(command: list[str]) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def draw_seconds(browser: str, page: str, folder: Path) -> tuple[float, float]:
    """Median seconds to lay the page out, and to make a picture of it less an empty one."""
    base = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    bare, clocked, empty = (folder / f"{name}.html" for name in ("page", "clocked", "empty"))
    bare.write_text(page, encoding="utf-8")
    script = page.replace("default-src 'none';", "").replace("</body>", f"{CLOCK}</body>")
    clocked.write_text(script, encoding="utf-8")
    empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    laid_out, drawn = [], []
    for _ in range(REPEATS):
        _, dom = timed([*base, "--dump-dom", clocked.as_uri()])
        laid_out.append(float(re.search(r'data-drawn="([\d.]+)"', dom).group(1)) / 1000)
        picture = [*base, f"--screenshot={folder / 'picture.png'}"]
        drawn.append(timed([*picture, bare.as_uri()])[0] - timed([*picture, empty.as_uri()])[0])
    return statistics.median(laid_out), statistics.median(drawn)


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    browser = shutil.which("chromium")
    for name, data in (("the report", report), ("4 x 12 x 100", large(report))):
        started = time.perf_counter()
        page = render_html(data)
        seconds = time.perf_counter() - started
        count = sum(len(model["readings"]) for model in data["models"])
        size = len(page.encode()) / 1e6
        print(f"{name}: {count} readings, {size:.2f} MB, rendered in {seconds:.2f} s")
        if browser is None:
            print("  not drawn: chromium is not on the PATH")
            continue
        with tempfile.TemporaryDirectory() as folder:
            laid_out, drawn = draw_seconds(browser, page, Path(folder))
        print(f"  laid out in {laid_out:.2f} s; picture less an empty one {drawn:.2f} s")
    before = os.times()
    helps = [timed([sys.executable, "-c", HELP])[0] for _ in range(REPEATS)]
    after = os.times()
    # On a shared machine the clock also counts the others' work; this process's own share does not.
    own = after.children_user + after.children_system
    own -= before.children_user + before.children_system
    print(f"secant --help: {statistics.median(helps):.2f} s, processor {own / REPEATS:.2f} s")


if __name__ == "__main__":
    main()
