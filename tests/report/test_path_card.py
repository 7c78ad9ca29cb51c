"""The page of two models compared: its plots, what it says, and that texts are escaped.

Holds: tests of ``secant.report.path_card`` and of the page that holds it.
May import: pytest, ``secant``.
"""

from __future__ import annotations

import re
from typing import Any

from secant.report.html import render_html


def reading(gauge: str, variant: str, value: float | None, site: str = "(model)", **more: Any):
    interval = None if value is None else [value - 0.01, value + 0.01]
    controls = {"random": {"value": 0.25, "interval": [0.2, 0.3]}}
    found = {
        "variable": "weights", "site": site, "gauge": gauge, "variant": variant, "value": value,
        "interval": interval, "samples": {"units": 60}, "controls": controls, "warnings": [],
        "details": {},
    }  # fmt: skip
    return found | more


def report(name: str = "a → b") -> dict[str, Any]:
    losses = ((0.0, 0.1), (0.5, 1.3), (1.0, 0.3))
    readings = [reading("loss", "cross-entropy", v, details={"t": t}) for t, v in losses]
    readings += [
        reading("barrier", "loss", 1.1, details={"worst_t": 0.5, "unit": "nats"}),
        reading("displacement", "relative", 0.7),
        reading("displacement", "relative", 0.4, "net.0.weight"),
        reading("displacement", "relative", None, "net.1.weight", warnings=["A's is zero."]),
        reading("tangent", "raw", 0.2, details={"rho": 0.1}),
        reading("tangent", "raw", 0.9, details={"rho": 1.0}),
        reading("tangent", "explained", 0.19, details={"rho": 1.0}),
    ]
    model = {"name": name, "data": "d", "units": 60, "rows": 60, "sites": [], "readings": readings}
    return {"models": [model], "schema": 1}


def titles(page: str) -> list[str]:
    return re.findall(r"<figure><h3>(.*?)</h3>", page)


def test_what_was_read_is_drawn_and_said_and_nothing_else():
    page = render_html(report())
    assert titles(page) == [
        "Loss along the path", "Off the tangent, along the displacement",
        "Displacement of each tensor",
    ]  # fmt: skip
    assert "Barrier of the loss: 1.100 [1.090, 1.110] nats, highest at t = 0.5" in page
    assert "(random 0.250 [0.200, 0.300])" in page
    assert "The first order explains 0.190" in page
    assert "In short" not in page
    assert "A&#x27;s is zero." in page
    assert "<script" not in page


def test_the_straight_line_joins_the_two_ends():
    lines = {}
    for look in ("dotted", "curve"):
        # The first of a look is its sample in the legend.
        _, drawn, *_ = re.findall(rf'<g class="{look}".*?</g>', render_html(report()), re.S)
        (path,) = re.findall(r'class="line" d="M(.*?)"', drawn)
        lines[look] = path.split("L")
    assert len(lines["curve"]) == 3
    assert lines["dotted"] == [lines["curve"][0], lines["curve"][-1]]


def test_texts_are_escaped_and_a_survey_beside_keeps_its_summary():
    both = report("<b>x</b>")
    both["models"].append({"name": "surveyed", "readings": []})
    page = render_html(both)
    assert "<b>x</b>" not in page
    assert "In short" in page
