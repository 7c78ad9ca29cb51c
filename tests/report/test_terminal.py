"""The terminal's tables: every interval is there, at 80 columns, and no number is cut."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from secant.readings import ModelReport, Reading
from secant.report.terminal import render_terminal


def reading(gauge: str, variant: str, value: float | None, **more: Any) -> Reading:
    interval = None if value is None else (value - 0.25, value + 0.125)
    whole = {"variable": "features", "site": "encoder.layer.10.mlp", "samples": {}}
    return Reading(**{**whole, "interval": interval, **more}, gauge=gauge, variant=variant,
                   value=value)  # fmt: skip


def radius(gauge: str, value: float | None, **details: Any) -> Reading:
    held = {"direction": "data", "censored": None, "lower": 0.1, "upper": 0.5}
    control = {"value": 0.7, "interval": (0.1, 0.9), "censored": None}
    return reading(
        gauge, "radius beyond", value, controls={"fresh": control, "shuffled": control},
        details=held | details, interval=None,
    )  # fmt: skip


def printed(*readings: Reading) -> str:
    report = ModelReport("m", "d", 9, 9, ["encoder.layer.10.mlp"], list(readings), {})
    out = io.StringIO()
    console = Console(file=out, width=80)
    for part in render_terminal(report):
        console.print(part)
    return out.getvalue()


BESIDE = {"value": 0.875, "interval": (0.5, 1.0)}


def test_every_column_of_the_fits_has_its_interval():
    controls = {"fresh": BESIDE, "shuffled": BESIDE | {"interval": None}, "residual": BESIDE}
    text = printed(
        reading("fit", "raw", 0.5, controls=controls),
        reading("fit", "beyond", 0.25, controls=controls),
        reading("fit", "context beyond", -0.5),
    )
    numbers, halves = (line for line in text.splitlines() if re.search(r"\d\.\d{3}", line))
    found = re.findall(r"-?\d\.\d{3}", numbers)
    assert found == ["0.500", "0.875", "0.250", "-0.500", "0.875", "0.875"]
    assert re.findall(r"±\d\.\d{3}", halves) == ["±0.250", "±0.375", "±0.250", "±0.250", "±0.375"]


@pytest.mark.parametrize(
    ("value", "details", "shown"),
    [
        (0.25, {"at_least": 0.123, "at_most": 1.5}, ["0.250", ".123–1.500"]),
        (0.25, {"at_least": None, "at_most": 0.4567}, ["0.250", "≤ .457"]),
        (0.25, {"at_least": 0.0311, "at_most": None}, ["0.250", "≥ .031"]),
        (0.25, {"at_least": None, "at_most": None}, ["0.250"]),
        (
            None,
            {"censored": "past the grid", "lower": 2.0, "at_least": 1.25, "at_most": None},
            ["> 2", "≥ 1.250"],
        ),
        (
            None,
            {"censored": "past the grid", "lower": 2.0, "at_least": 2.0, "at_most": None},
            ["> 2"],
        ),
        (
            None,
            {"censored": "before the grid", "upper": 0.01, "at_least": None, "at_most": 0.05},
            ["< 0.01", "≤ .050"],
        ),
    ],
)
def test_a_radius_stands_over_its_bounds(value, details, shown):
    chord = reading("chord", "beyond", 0.5, details={"t": 0.5}, controls={"fresh": BESIDE})
    text = printed(chord, radius("tangent", value, **details), radius("sum", 0.111))
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    first, second = (line for line in text.splitlines() if re.search(r"encoder|yer\.10", line))
    over = f"0.500 0.875 n/a {shown[0]} 0.700 0.700 0.111"
    assert " ".join(first.split()[1:]) == over
    assert " ".join(second.split()[1:]) == " ".join(["±0.250", "±0.375", *shown[1:]])


def test_what_is_read_in_weights_is_a_sentence_each():
    control = {"value": 0.7, "interval": (0.1, 0.9), "censored": None}
    longer = {"value": None, "interval": None, "censored": "past the grid"}
    steps = {"direction": "random", "censored": None, "lower": 0.1, "upper": 0.5}
    controls = {"fresh": control, "shuffled": longer}
    held = {"variable": "weights", "site": "(model)", "controls": controls}
    text = printed(
        reading("tangent", "radius", 0.25, details=steps, **held),
        reading("kernel", "alignment", 0.5, **held),
    )
    words = " ".join(text.split())
    assert "random steps up to 0.250 [0.000, 0.375] of every tensor's norm" in words
    assert "(fresh 0.700, shuffled longer)." in words
    assert "classes: 0.500 [0.250, 0.625] (fresh 0.700, shuffled n/a)." in words
    past = steps | {"censored": "past the grid", "lower": 1.0, "upper": None}
    text = printed(reading("tangent", "radius", None, **{**held, "controls": {}, "details": past}))
    assert "steps up to 1 of every tensor's norm and beyond." in " ".join(text.split())
