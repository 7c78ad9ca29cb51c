"""A replacement as tables, words and a page; the command.

Holds: tests of ``secant.report.replace``, ``secant.report.replace_page`` and ``secant replace``.
May import: pytest, torch, typer, rich, ``secant``.
"""

import io
import json
import re
from dataclasses import replace
from html import unescape

import pytest
import torch
from rich.console import Console

from secant.cli import main
from secant.report import charts
from secant.report.replace import render_replace, replace_words, verdict
from secant.report.replace_page import render_replace_page
from secant.uses.replace_curves import Curve, Point
from secant.uses.replace_result import Chosen, Healing, Met, Replacement


def against(value, low):
    return {"value": value, "interval": [low, value + 0.05]}


def replacement(low=0.05, site="<b>layer</b>"):
    """Two budgets, the first of which nothing met."""
    sizes = {"parameters": 2000.0, "flops": 4e6, "seconds": 0.02}
    after = {"parameters": 1500.0, "flops": 3e6, "seconds": 0.01}
    beside, others = (
        {name: against(0.1, low) for name in ("saved", "random", "block influence")}
        for _ in range(2)
    )
    chosen = [Chosen(site, "rank", 3, True, (8, 8), 0.25, 0.97)]
    start = Point(0, [], 0.0, 0.0, (0.0, 0.0))
    curves = [
        Curve("replaced", [start, Point(1, [site], 0.25, 0.08, (0.05, 0.11))]),
        Curve("random", [start, Point(1, ["x"], 0.3, 0.9, (0.5, 1.3))]),
        Curve("block influence", [start, Point(1, ["x"], 0.3, 0.1, (0.05, 0.2))]),
    ]
    return Replacement(
        "model", "data", {"fit": 60, "choose": 20, "score": 40}, "next token", "nats a token", 3.2,
        [Met(0.01, [], 0.0, 0.0, None, sizes, sizes, others, "none"),
         Met(0.1, chosen, 0.25, 0.08, (0.05, 0.11), sizes, after, beside)],
        curves, {site: 0.97}, {"other": "it is called several times in one forward"},
        ["Budget 0.01: none"], 0, {"torch": "2"}, 12.0,
    )  # fmt: skip


def text_of(found):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(*render_replace(found))
    return console.export_text()


def test_the_tables_say_what_each_budget_bought():
    text = text_of(replacement())
    row = next(line for line in text.splitlines() if line.strip().startswith("0.1 "))
    for cell in ("25.0 %", "2 k → 1.5 k", "+0.08 [+0.05, +0.11]", "0.50", "+10.0 [+5.0, +15.0]"):
        assert cell in row
    assert "rank 3" in text
    assert "<b>layer</b>" in text
    assert "0.970" in text


def test_the_words_say_on_what_all_rests():
    words = " ".join(replace_words(replacement()))
    assert "fitted on 60 units, the set chosen on 20 others, scored on 40 others" in words
    assert "Loss: next token, in nats a token; the model's own is 3.2." in words
    assert "Left: other: it is called several times" in words
    assert "Budget 0.01: none" in words
    assert "Healed" not in words
    healed = replace(replacement(), healing=Healing(50, True, 0.08, 0.05, (0.04, 0.06)))
    told = "Healed by 50 steps, kept: the loss rises by +0.05 [+0.04, +0.06], by +0.08 before."
    assert told in replace_words(healed)
    assert told in unescape(render_replace_page(healed))


def test_the_verdict_needs_both_controls_clearly_below():
    assert "at 2 of 2 budgets (0.01, 0.1)" in verdict(replacement(0.05))
    assert verdict(replacement(-0.01)).startswith("At no budget does the curve clearly save more")
    one = replacement(0.05)
    one.budgets[0].against["random"]["interval"][0] = -0.2
    assert "at 1 of 2 budgets (0.1)" in verdict(one)


def test_the_page_draws_every_curve_and_escapes_names():
    page = render_replace_page(replacement())
    assert "<b>layer</b>" not in page
    assert "&lt;b&gt;layer&lt;/b&gt;" in page
    assert page.count('<g class="faint"') == 1 + 1  # the curve, and its sample in the legend
    for name in ("replaced", "blocks dropped at random", "blocks dropped by influence"):
        assert name in page
    # The level lines and labels of both budgets, and 0.
    labels = re.findall(r'text-anchor="end">([^<]*)<', page)
    assert {"0", "0.01", "0.1"} <= set(labels)
    assert "1 replaced, 25.0 % saved, loss +0.08 [+0.05, +0.11]" in page
    # The random curve goes from 0 to 0.9 at 30 %, and leaves the range at 0.16 on the way.
    frame, x = charts.PLAIN, 0.16 / 0.9
    assert f"L{frame.across(x):.1f} {frame.top:.1f}" in page
    assert "<script" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_the_command_writes_what_it_tells(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", [
        "secant", "replace", "demo:transformer", "--rows", "300", "--out", str(out), "--most", "4",
        "--draws", "1", "--budget", "0.4", "--batch-size", "64", "--site", "*.mlp",
    ])  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    told = capsys.readouterr().out
    kept = json.loads((out / "replace.json").read_text())
    assert f"{100 * kept['budgets'][0]['saved']:.1f} %" in told
    for name in ("model.safetensors", "model.pt2", "replace.json", "replace.html"):
        assert str(out / name) in told
        assert (out / name).is_file()
    assert {one["name"] for one in kept["curves"]} == {"replaced", "random", "block influence"}
    assert all(".mlp" in one["site"] for one in kept["stands"])
    program = torch.export.load(out / "model.pt2").module()
    assert program(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_budget_that_nothing_meets_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [
        "secant", "replace", "demo:mlp", "--rows", "200", "--out", str(tmp_path / "out"), "--most",
        "2", "--draws", "1", "--budget", "1e-9", "--site", "blocks.0",
    ])  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no block can be replaced within a budget of 1e-09" in error
    assert "Give a --budget of" in error
    assert not (tmp_path / "out").exists()
