"""The HTML report: escaped, self-contained, complete, and quiet in a browser."""

from __future__ import annotations

import copy
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from secant.report.html import render_html

VARIANTS = ("raw", "beyond", "update", "whitened", "procrustes")


def around(value: float, half: float = 0.02) -> dict[str, Any]:
    return {"value": value, "interval": [value - half, value + half]}


def reading(site: str, variant: str, depth: float, tilt: float) -> dict[str, Any]:
    level = {"raw": 0.98, "beyond": 0.72, "update": 0.8, "whitened": 0.6, "procrustes": 0.99}
    value = level[variant] - tilt * (0.1 + depth) * (0.15 if variant == "raw" else 0.6)
    value += 0.04 * math.sin(9 * depth) * (variant != "raw")
    controls = {
        "residual": 0.55 + 0.42 * depth if variant in ("raw", "beyond") else None,
        "fresh": around(value - 0.12),
        "shuffled": around(value - 0.25),
    }
    return {
        "variable": "features",
        "site": site,
        "gauge": "fit",
        "variant": variant,
        **around(value, 0.015 + 0.03 * (variant == "beyond")),
        "samples": {"units": 1797, "rows": 1797},
        "controls": controls,
        "warnings": [],
        "details": {"ridge": 0.001, "folds": 5},
    }


def sample(models: int = 2, sites: int = 8) -> dict[str, Any]:
    made = []
    for m in range(models):
        names = [f"blocks.{i}" if m % 2 == 0 else f"encoder.layer.{i}.mlp" for i in range(sites)]
        found = [
            reading(name, variant, i / max(1, sites - 1), 0.4 + 0.5 * m / max(1, models))
            for i, name in enumerate(names)
            for variant in VARIANTS
        ]
        made.append(
            {
                "name": ("demo:cnn", "demo:transformer")[m % 2] + (f"-{m}" if m > 1 else ""),
                "data": "demo:digits",
                "units": 1797,
                "rows": 1797,
                "sites": names,
                "readings": found,
            }
        )
    return {
        "schema": 1,
        "created": "2025-01-01T00:00:00Z",
        "seed": 0,
        "versions": {"secant": "0.1.0", "torch": "2.6"},
        "hardware": "one x86-64 core",
        "cost": {"seconds": 1.2},
        "models": made,
    }


def awkward() -> dict[str, Any]:
    """A sample with a missing value, one below the drawn range, and warnings."""
    report = copy.deepcopy(sample())
    for one in report["models"][0]["readings"]:
        if one["site"] == "blocks.3" and one["variant"] in ("raw", "beyond"):
            one |= {"value": None, "interval": None}
            one["warnings"] = ["the output has no variance: every unit gives one vector"]
        if one["site"] == "blocks.7" and one["variant"] == "beyond":
            one |= around(-1.7, 0.3)
            one["warnings"] = ["fewer rows than input directions; ridge at the grid's edge"]
    return report


def text_of(report: dict[str, Any]) -> str:
    page = render_html(report)
    assert page.startswith("<!doctype html>")
    return page


def test_every_text_is_escaped():
    bad = "<script>alert('x')</script>\"&"
    report = sample(2, 3)
    report["hardware"] = report["created"] = bad
    report["versions"] = {bad: bad}
    for model in report["models"]:
        model["name"] = model["data"] = bad
        model["sites"] = [bad, *model["sites"][1:]]
        first = next(iter(model["readings"]))["site"]
        for one in model["readings"]:
            one["site"] = bad if one["site"] == first else one["site"]
            one["warnings"] = [bad]
            one["details"] = {bad: bad}
        model["readings"].append({**model["readings"][0], "variable": bad, "variant": bad})
    page = text_of(report)
    assert "<script" not in page.lower()
    assert "&lt;script&gt;" in page
    assert "\"'" not in page.replace("content=\"default-src 'none'", "")


def test_lone_surrogate_can_be_written():
    report = sample(1, 2)
    report["hardware"] = "broken \ud800 name"
    text_of(report).encode("utf-8")


def test_every_plot_has_an_svg():
    page = text_of(sample(2))
    figures = re.findall(r"<figure>.*?</figure>", page, re.S)
    assert len(figures) == 5  # raw and beyond for each model, and the comparison
    assert all(figure.count('<svg class="plot"') == 1 for figure in figures)
    assert all("<title>" in figure and 'class="words"' in figure for figure in figures)
    assert text_of(sample(1)).count("<figure>") == 2


def test_null_is_shown_with_its_reason_and_breaks_the_line():
    page = text_of(awkward())
    assert '<td class="n">n/a</td>' in page
    assert "n/a (the output has no variance" in page
    raw = page.split('aria-label="Raw R² by site"')[1].split("</figure>")[0]
    line = re.findall(r'class="line" d="(M[^"]+)"', raw)[-1]
    assert line.count("M") == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_no_number_reads_as_not_available(value: float | None):
    report = sample(1, 2)
    for one in report["models"][0]["readings"]:
        one |= {"value": value, "interval": None, "controls": {}}
    page = text_of(report)
    assert "n/a at every site" in page
    assert "no reason was recorded" in page
    assert not re.search(r"[\s\">](nan|inf)[\s<\"]", page)


def test_points_outside_the_range_are_counted_and_drawn_as_arrows():
    page = text_of(awkward())
    assert "1 point lies outside the drawn" in page
    assert 'class="out"' in page
    assert 'class="out"' not in text_of(sample())


def test_empty_reports_render():
    assert "no models" in text_of({"schema": 1, "models": []})
    bare = {"name": "a", "data": "b", "sites": [], "readings": []}
    assert "No fit readings" in text_of({"schema": 1, "models": [bare]})


def test_controls_stand_beside_the_reading():
    page = text_of(sample(1))
    for name in ("residual alone", "fresh weights", "shuffled weights"):
        assert name in page


def test_readings_that_share_a_site_are_not_hidden():
    report = sample(1, 2)
    report["models"][0]["readings"].append(report["models"][0]["readings"][0])
    assert "1 further readings share a site" in text_of(report)


def test_large_report_stays_small():
    report = sample(10, 100)
    assert len(text_of(report).encode()) < 6_000_000


def test_nothing_is_fetched():
    page = text_of(awkward())
    assert not re.search(r"https?://|\b(?:src|href)=|@import|url\(", page)


def test_chromium_opens_it_without_complaint(tmp_path: Path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed, so the page cannot be opened here")
    path = tmp_path / "report.html"
    path.write_text(render_html(awkward()), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser, *flags, profile, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('<svg class="plot"') == 5
    assert "CONSOLE" not in done.stderr, done.stderr
