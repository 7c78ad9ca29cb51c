"""A tracked run as a table and a page, and the command that shows it.

Holds: tests of ``secant.report.track`` and ``secant track``.
May import: pytest, torch, ``secant``.
"""

import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from secant.report.track import MOST_ROWS, render_track, track_words
from secant.uses.track import Tracker


class Layer(nn.Linear):
    """A class whose name is not HTML."""


Layer.__name__ = "<b>Layer"


def tracked(steps, model=None):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    tracker = Tracker(model, torch.randn(8, 4), torch.arange(8) % 2, every=1)
    for _ in range(steps):
        with torch.no_grad():
            for one in model.parameters():
                one += 0.1 * torch.randn_like(one)
        tracker.step()
    return tracker


def test_the_page_has_every_record_and_curve():
    track = asdict(tracked(3).track())
    page = render_track(track)
    HTMLParser().feed(page)
    assert page.count('<svg class="plot"') == 4  # movement, first order, drift, alignment
    assert page.count("<tr>") == 1 + 4
    for name in ("all weights", ">0<", ">2<", "kernel drift"):
        assert name in page
    assert "<script" not in page
    assert not re.search(r"https?://", page)
    for one in track["records"][1:]:
        assert f"{one['drift']:.3f}" in page or f"{one['drift']:.2e}".replace("-", "−") in page


def test_names_are_escaped_and_a_run_without_movement_is_drawn():
    page = render_track(asdict(tracked(0, Layer(4, 2)).track()))
    assert "&lt;b&gt;Layer" in page
    assert "<b>Layer" not in page
    assert "n/a" in page


def test_words_say_what_it_cost():
    track = asdict(tracked(2).track())
    track["cost"] = {"run_seconds": 50.0, "own_seconds": 2.0}
    assert "Tracking took 4.0 % of the time of the steps." in track_words(track)
    assert "sketched" not in track_words(track)
    assert "40 outputs a row were sketched into 16" in track_words(
        track | {"outputs": 40, "sketched": 16}
    )


@pytest.mark.parametrize("steps", [2, 40])
def test_the_command(run, tmp_path, steps):
    tracked(steps).save(tmp_path / "run.json")
    code, out, err = run("track", tmp_path / "run.json", "--out", tmp_path / "new" / "run.html")
    assert (code, err) == (0, "")
    assert "first-order error" in out
    lines = [line for line in out.splitlines() if re.match(r"\s+\d+\s+[\d−]", line)]
    assert len(lines) == min(steps + 1, MOST_ROWS)
    assert lines[-1].split()[0] == str(steps)
    assert ("records are not shown" in out) == (steps > MOST_ROWS)
    assert (tmp_path / "new" / "run.html").read_text().startswith("<!doctype html>")


def test_another_file_is_one_line(run, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    code, out, err = run("track", tmp_path / "x.json", "--out", tmp_path / "new" / "x.html")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "schema 1" in err
    assert not (tmp_path / "new").exists()
