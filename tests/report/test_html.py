"""The HTML report: escaped, self-contained, complete, and quiet in a browser."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
from curve_cases import with_curves

from secant.report.charts import escape
from secant.report.html import render_html
from secant.report.wording import PLOT_WORDS

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
    assert len(figures) == 6  # raw and beyond for each model, and both with their controls
    *drawn, panels = sorted(figures, key=lambda figure: "beside its controls" in figure)
    assert all(figure.count('<svg class="plot"') == 1 for figure in drawn)
    assert panels.count('<svg class="plot small"') == 2
    assert all("<title>" in figure for figure in figures)
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


# Curves, radii, pieces, tables --------------------------------------------------------------


@pytest.fixture(scope="module")
def curved() -> dict[str, Any]:
    """One model with curves of real gauges at its sites and of the whole model."""
    report = sample(1, 5)
    report["models"] = [with_curves(report["models"][0], 5)]
    return report


def figure_of(page: str, title: str) -> str:
    found = [one for one in re.findall(r"<figure>.*?</figure>", page, re.S) if title in one]
    assert found, title
    return found[0]


def test_every_curve_is_drawn_and_its_words_are_told(curved):
    page = text_of(curved)
    titles = (
        "Off the chord, against t (features)",
        "Off the chord, against t (inputs)",
        "Off the tangent, against the step (features, data directions)",
        "Off the tangent, against the step (features, random directions)",
        "Off the tangent, against the step (inputs, data directions)",
        "Changes that do not add, against the step (features)",
        "Changes that do not scale, against the step (features)",
        "Radius by site: off the tangent, against the step (features, data directions)",
        "Radius by site: changes that do not add",
        "Pieces along a line (inputs, (model))",
    )
    for title in titles:
        figure = figure_of(page, f"<h3>{title}")
        assert figure.count('<svg class="plot') == 1
    absent = {"context", "weights steps", "kernel", "early and late inputs steps", "eigenvalues",
              "horizon", "memory"}  # fmt: skip
    for kind, (name, words) in PLOT_WORDS.items():
        told = page.count(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>")
        assert told == (kind not in absent)


def test_steps_and_kernels_of_the_weights_are_told(curved):
    model = curved["models"][0]
    of_inputs = [one for one in model["readings"]
                 if (one["variable"], one["gauge"]) == ("inputs", "tangent")]  # fmt: skip
    fresh = {"value": 0.25, "interval": [0.125, 0.375]}
    kernel = {
        "variable": "weights", "site": "(model)", "gauge": "kernel", "variant": "alignment",
        "value": 0.5, "interval": [0.375, 0.625], "controls": {"fresh": fresh}, "details": {},
    }  # fmt: skip
    moved = [one | {"variable": "weights"} for one in of_inputs]
    page = text_of({**curved, "models": [{**model, "readings": [*moved, kernel]}]})
    assert "<dt>Steps in the weights</dt>" in page
    assert "<dt>Kernel and labels</dt>" in page
    assert "step ρ, in norms of each tensor of weights" in page
    assert "Linear in weights? For which" in page
    assert "0.500 [0.375, 0.625] (fresh weights 0.250 [0.125, 0.375])." in page
    figure = figure_of(page, "<h3>Kernel and labels (weights)")
    assert "Alignment 0.500 [0.375, 0.625]; fresh weights 0.250 [0.125, 0.375]." in figure


def test_words_are_said_once_and_only_of_what_is_drawn():
    page = text_of(sample(3))
    assert re.findall(r"<dt>(.*?)</dt>", page) == [
        PLOT_WORDS[kind][0] for kind in ("marks", "raw", "beyond")
    ]
    bare = {"name": "a", "data": "b", "sites": [], "readings": []}
    assert "How to read" not in text_of({"schema": 1, "models": [bare]})


def test_curve_points_lie_where_their_values_say(curved):
    """The heights of the drawn line, read back through the axis' own tick positions."""
    figure = figure_of(text_of(curved), "Off the chord, against t (inputs)")
    ticks = {
        float(label): float(y) - 4
        for y, label in re.findall(r'<text x="65" y="([\d.]+)" text-anchor="end">([\d.]+)<', figure)
    }
    drawn = figure.split("</ul>")[1]
    group = re.search(r'<g class="curve".*?class="line" d="M([^"]+)"', drawn, re.S)
    heights = [float(pair.split()[1]) for pair in group.group(1).split("L")]
    top = max(ticks)
    wanted = [
        one["value"]
        for one in curved["models"][0]["readings"]
        if (one["gauge"], one["variable"]) == ("chord", "inputs")
    ]
    read = [top * ((ticks[0] - y) / (ticks[0] - ticks[top])) ** 2 for y in heights]
    assert "root scale" in figure
    assert ticks[0.1] == pytest.approx(
        ticks[0] - (ticks[0] - ticks[top]) * (0.1 / top) ** 0.5, abs=0.1
    )
    assert read == pytest.approx(wanted, abs=top / 500)


def test_first_middle_and_last_are_highlighted_and_the_rest_faint(curved):
    figure = figure_of(text_of(curved), "Off the chord, against t (features)")
    assert figure.count('<g class="curve"') == 3 * 1 + 3  # drawn, and in the legend
    assert figure.count('<g class="faint"') == 2 + 1
    assert "2 other sites" in figure
    assert all(f"blocks.{i}, fresh weights" in figure for i in (0, 2, 4))
    assert figure.count("<span>fresh weights, same colour</span>") == 1
    assert 'class="band"' in figure


def test_each_site_stands_beside_both_controls(curved):
    page = text_of(curved)
    panels = page.split("Each site beside its controls")[1].split("</details>")[0]
    assert panels.count('<svg class="plot small"') == 5
    assert panels.count('<g class="dashed"') == panels.count('<g class="dotted"') == 5 + 1


def test_the_radius_is_marked_where_the_curve_passes_the_threshold(curved):
    page = text_of(curved)
    figure = figure_of(page, "Off the tangent, against the step (inputs, data directions)")
    (one,) = (
        one
        for one in curved["models"][0]["readings"]
        if one["variable"] == "inputs"
        and (one["gauge"], one["variant"]) == ("tangent", "radius")
        and one["details"]["direction"] == "data"
    )
    level = re.search(r'class="level" d="M72 ([\d.]+)H', figure).group(1)
    ring = re.search(r'<g class="hollow"[^>]*><g><title>[^<]*</title><circle[^>]*>', figure).group()
    assert f'cy="{level}"' in ring
    assert f"(model), radius: {one['value']:.3f}" in ring
    assert f"Radius, where the curve passes 0.10: {one['value']:.3f}" in figure


def test_censored_radii_are_open_arrows_and_break_the_line(curved):
    figure = figure_of(text_of(curved), "Radius by site: off the tangent, against the step (feat")
    radii = [
        one
        for one in curved["models"][0]["readings"]
        if (one["gauge"], one["variant"]) == ("tangent", "radius beyond")
        and one["details"]["direction"] == "data"
    ]
    held = [one["details"] for one in radii]
    held += [beside for one in radii for beside in one["controls"].values()]
    past = sum(one["censored"] == "past the grid" for one in held)
    assert past > 0
    assert figure.count('class="out open"') == past
    assert figure.count(": past the grid (at least ") == past


def radius_reading(report: dict[str, Any], value: float | None, **details: Any) -> None:
    """Sets every radius of the report's first model, and those of its controls."""
    for one in report["models"][0]["readings"]:
        if one["variant"].startswith("radius"):
            ends = details["at_least"], details["at_most"]
            interval = None if None in (value, *ends) else list(ends)
            one |= {"value": value, "interval": interval}
            one["details"] = one["details"] | {"lower": 0.1, "upper": 1.0} | details
            held = {"value": value, "interval": interval, **details}
            one["controls"] = dict.fromkeys(("fresh", "shuffled"), held)


@pytest.mark.parametrize(
    ("value", "side", "at_least", "at_most", "shown", "short"),
    [
        (0.25, None, 0.125, 0.5, "0.250 [0.125, 0.500]", "up to 0.250 [0.125, 0.500]."),
        (0.25, None, None, 0.5, "0.250 (at most 0.500)", "up to 0.250 (at most 0.500)."),
        (None, "past the grid", 0.5, None, "past the grid (at least 0.500)", "(at least 0.500)."),
        (None, "before the grid", None, 0.5, "before the grid (at most 0.500)", "0.500)."),
        (0.25, None, None, None, "0.250", "up to 0.250."),
    ],
)
def test_a_radius_says_how_far_its_interval_reaches(
    curved, value, side, at_least, at_most, shown, short
):
    report = copy.deepcopy(curved)
    radius_reading(report, value, censored=side, at_least=at_least, at_most=at_most)
    page = text_of(report)
    assert f"passes 0.10: {shown}; fresh weights {shown}; shuffled weights {shown}." in page
    figure = figure_of(page, "Radius by site: off the tangent, against the step (feat")
    assert figure.count(f": {shown}</title>") == 5 * 3
    whiskers = [float(y) for y in re.findall(r'class="whisker" d="M[\d.]+ ([\d.]+)V', figure)]
    assert len(whiskers) == (5 if at_least or at_most else 0)
    assert short in page.split("In short")[1].split("</section>")[0]
    cell = {None: "n/a"}.get(at_least or at_most, shown.split("(")[-1].rstrip(")"))
    if value is not None and at_least is not None:
        cell = "0.1250 to 0.5000"
    assert f'<td class="n">{cell}</td>' in page.split("Every reading")[1]


def test_pieces_are_a_rug_with_their_count_and_a_missing_control(curved):
    (one,) = (o for o in curved["models"][0]["readings"] if o["gauge"] == "pieces")
    figure = figure_of(text_of(curved), "Pieces along a line")
    breaks = one["details"]["breakpoints"]
    rug = re.search(r'class="rug" d="([^"]*)"', figure).group(1)
    assert rug.count("M") == len(breaks) > 0
    assert f"{len(breaks) + 1} pieces on the line drawn" in figure
    assert "over 6 lines" in figure
    assert "no shuffled weights here" in text_of(curved)


def test_context_is_drawn_beside_per_position():
    report = sample(1, 4)
    found = report["models"][0]["readings"]
    assert "with context" not in text_of(report)
    found += [
        {**one, "variant": f"context {one['variant']}", **around(0.9)}
        for one in found
        if one["variant"] in ("raw", "beyond")
    ]
    page = text_of(report)
    for title in ("Raw R² by site", "Beyond the residual by site"):
        figure = figure_of(page, title)
        assert figure.count("blocks.1, with context: 0.900") == 1
    assert page.count("The fit also sees neighbours") == 1


def test_the_paired_difference_is_said_in_words():
    report = sample(1, 3)
    for i, one in enumerate(report["models"][0]["readings"]):
        gap = -0.38 if one["site"] == "blocks.1" else 0.001 * (i % 2)
        one["controls"]["fresh"]["difference"] = around(gap)
    page = text_of(report)
    assert "More linear in features (beyond) than with fresh weights?" in page
    assert "less at 1, uncertain at 2 of 3 sites; most at <code>blocks.1</code>, less by" in page
    assert "less by 0.380 [0.360, 0.400]" in page
    assert "intervals overlap" not in page
    assert "Less fresh" in page


@pytest.mark.parametrize(
    ("gap", "half", "words"),
    [
        (0.0, 0.0, "they do not differ, to within 0.0005 at each of 3 sites."),
        (1e-6, 3e-6, "they do not differ, to within 0.0005 at each of 3 sites."),
        (0.01, 0.02, "no difference is certain at any of 3 sites; none exceeds 0.030."),
        (0.01, 0.002, "more at 3 of 3 sites; most at"),
    ],
)
def test_models_that_do_not_differ_say_so_plainly_and_once(gap, half, words):
    report = sample(2, 3)
    for model in report["models"]:
        for one in model["readings"]:
            one["controls"]["fresh"]["difference"] = around(gap, half)
    short = text_of(report).split("In short")[1].split("</section>")[0]
    joined = f"<strong>demo:cnn</strong>, <strong>demo:transformer</strong>: {words}"
    assert (joined in short) == (not words.startswith("more"))
    assert words in short


def test_each_model_stands_beside_its_controls_in_one_colour():
    panels = figure_of(text_of(sample(3, 4)), "Each model beside its controls")
    for colour, look in (("--c1", "solid"), ("--fresh", "dashed"), ("--shuffled", "dotted")):
        assert panels.count(f'<g class="{look}" style="--c:var({colour})">') == 3 + 1
    assert "The residual alone stands at 0." in panels
    alone = sample(2, 3)
    for model in alone["models"]:
        for one in model["readings"]:
            one["controls"] = {}
    assert "beside its controls" not in text_of(alone)


def test_in_short_speaks_of_chord_and_radius(curved):
    page = text_of(curved)
    short = page.split("In short")[1].split("</section>")[0]
    readings = curved["models"][0]["readings"]
    (mid,) = (
        one
        for one in readings
        if (one["gauge"], one["variable"]) == ("chord", "inputs") and one["details"]["t"] == 0.5
    )
    low, high = mid["interval"]
    assert f": {25 * mid['value']:.2g} % [{25 * low:.2g}, {25 * high:.2g}].</li>" in short
    assert "For which steps the tangent is right to within 10 %" in short


def test_tables_fold_by_gauge_and_leave_sums_out(curved):
    page = text_of(curved)
    listed = page.split("Every reading")[1]
    for gauge in ("fit", "chord", "tangent", "sum", "homogeneity", "pieces"):
        assert f"<details><summary>demo:cnn, {gauge}: " in listed
    rows = listed.count("<tr>") - listed.count("<thead>")
    assert rows == len(curved["models"][0]["readings"])
    assert "by_group" not in listed
    assert "breakpoints (" in listed
    assert "past the grid" in listed
    assert "at_least" not in listed


def test_hostile_text_in_curves_is_escaped(curved):
    bad = "<img src=x onerror=alert(1)>\"'&"
    report = copy.deepcopy(curved)
    (model,) = report["models"]
    model["sites"] = [bad if site == "blocks.0" else site for site in model["sites"]]
    for one in model["readings"]:
        if one["site"] in ("blocks.0", "(model)"):
            one["site"] = bad
        for control in one["controls"].values():
            if isinstance(control, dict) and control["value"] is None:
                control["missing"] = bad
        one["details"][bad] = bad
        if "direction" in one["details"]:
            one["details"]["direction"] = bad
        if one["gauge"] in ("chord", "pieces"):
            one["variable"] = bad
    page = text_of(report)
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


@pytest.mark.parametrize("held", [None, "?", [], {"t": "x"}, {"rho": -1.0}, {"t": math.nan}])
def test_details_of_another_form_draw_no_curve(held):
    report = sample(1, 2)
    one = report["models"][0]["readings"][0]
    report["models"][0]["readings"] += [
        {**one, "gauge": gauge, "details": held} for gauge in ("chord", "tangent", "pieces")
    ]
    page = text_of(report)
    assert "Off the" not in page
    assert "1 piece on the line drawn" in page


def test_four_models_of_twelve_sites_and_a_hundred_readings_stay_small(curved):
    one = curved["models"][0]
    source = [o for o in one["readings"] if o["site"] == "blocks.0"][:100]
    source += source[: 100 - len(source)]
    assert len(source) == 100
    sites = [f"encoder.layer.{i}" for i in range(12)]
    model = {**one, "sites": sites, "readings": [{**o, "site": s} for s in sites for o in source]}
    report = {**curved, "models": [{**model, "name": f"model-{i}"} for i in range(4)]}
    assert sum(len(m["readings"]) for m in report["models"]) == 4 * 12 * 100
    assert len(text_of(report).encode()) < 6_000_000
