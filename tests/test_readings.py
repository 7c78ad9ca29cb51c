"""Reports as data: what is written is read back, and the machine is named."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from secant.errors import LoadError
from secant.readings import ModelReport, Reading, Report, hardware, interval_of, number


def made(name: str = "m") -> Report:
    reading = Reading(
        "features", "a", "fit", "raw", None, (0.25, 1.0), {"units": 3},
        {"fresh": {"value": None, "missing": "why"}}, ["w"], {"t": 0.5, "list": [1, 2.5]},
    )  # fmt: skip
    plain = Reading("inputs", "(model)", "chord", "raw", 0.25, None, {})
    models = [ModelReport(name, "d", 3, 3, ["a"], [reading, plain], {"seconds": 0.5})]
    return Report("2025", 1, {"secant": "0"}, "CPU", {"seconds": 1.0}, models)


def test_what_is_saved_is_loaded(tmp_path: Path):
    path, _ = made().save(tmp_path)
    found = Report.load(path)
    assert found.as_dict() == made().as_dict()
    assert found == made()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_none_and_nothing_else(value: float):
    assert number(value) is None
    assert number(0.5) == 0.5
    assert interval_of((value, 1.0)) is None
    assert interval_of((0.5, 1.0)) == (0.5, 1.0)
    assert interval_of(None) is None
    for held in ({"value": value, "interval": None}, {"value": 0.5, "interval": (0.0, value)}):
        with pytest.raises(AssertionError, match="no number is None"):
            Reading("features", "a", "fit", "raw", **held, samples={})
    details = {"gap_by_group": [value, 1.0], "floor": value}
    reading = Reading("features", "a", "fit", "raw", None, None, {}, details=details)
    report = replace(made(), models=[replace(made().models[0], readings=[reading])])
    (found,) = json.loads(report.to_json(), parse_constant=pytest.fail)["models"][0]["readings"]
    assert found["details"] == {"gap_by_group": [None, 1.0], "floor": None}


def test_a_failed_save_leaves_the_old_report_whole(tmp_path: Path, monkeypatch):
    made("old").save(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="No space left"):
        made("new").save(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_an_unreadable_report_says_which(tmp_path: Path):
    with pytest.raises(LoadError, match=r"nonesuch\.json"):
        Report.load(tmp_path / "nonesuch.json")
    with pytest.raises(LoadError, match="cannot be read"):
        Report.load(tmp_path)


def test_hardware_names_the_processor(monkeypatch):
    found = hardware(1)
    assert platform.machine() in found
    assert found.endswith("1 thread")
    lines = "processor : 0\nmodel name\t: Some CPU: 3 GHz\nmodel name\t: Another\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: lines)
    assert hardware(2).startswith(f"Some CPU: 3 GHz ({platform.machine()}), ")
    assert hardware(2).endswith("2 threads")


def test_hardware_without_cpuinfo_names_the_kind(monkeypatch):
    def missing(self: Path, **_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert hardware(4).startswith(f"{platform.machine()} CPU, ")


def test_a_notebook_gets_a_frame_that_holds_the_whole_page():
    shown = made('"><script>alert(1)</script>')._repr_html_()
    assert shown.count("<") == 2  # the frame's own tags: nothing of the page leaks out
    assert 'sandbox=""' in shown
    page = unescape(shown.split('srcdoc="')[1].split('"')[0])
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "<script" not in page
