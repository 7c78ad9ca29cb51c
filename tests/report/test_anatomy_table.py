"""The anatomy's table: what is largest stands out, what is missing is said.

Holds: tests of ``secant.report.anatomy``.
May import: io, rich, ``secant``.
"""

import io
import re

from rich.console import Console

from secant.readings import Reading
from secant.report.anatomy import notes, plain_words, render_anatomy
from secant.uses.anatomy import Anatomy
from secant.uses.dissection import TOGETHER


def reading(site, value, *, variant="output", warnings=(), **details):
    interval = None if value is None else (value - 0.00012, value + 0.00011)
    controls = {"constant": {"value": 0.5, "interval": None}}
    details = {"operation": site.split()[-1], "local_r2": 0.75} | details
    return Reading(
        "features", site, "anatomy", variant, value, interval, {"units": 5}, controls,
        list(warnings), details,
    )  # fmt: skip


def anatomy_of(*readings, **baseline):
    return Anatomy("m[0]", "d", 3, {"fitted": 6, "scored": 5}, baseline, list(readings), 0, {}, {})


def printed(found, width=100, **options):
    file = io.StringIO()
    Console(file=file, width=width, **options).print(render_anatomy(found))
    return file.getvalue()


def test_the_largest_move_is_bold_and_together_does_not_compete():
    found = anatomy_of(
        reading("a relu", 0.1), reading("b [gelu]", 0.3), reading(TOGETHER, 0.9, local_r2=None)
    )
    bold = [
        line
        for line in printed(found, force_terminal=True).splitlines()
        if "\x1b[1m" in line and "0." in line
    ]
    assert len(bold) == 1
    assert "b [gelu]" in bold[0]
    assert "m[0]: not affine are relu (×1), [gelu] (×1)." in plain_words(found)
    assert "b [gelu]: the output then moves by 0.300" in plain_words(found)


def test_the_half_width_is_rounded_up_and_the_control_stands_beside():
    (line,) = [
        row for row in printed(anatomy_of(reading("a relu", 0.1))).splitlines() if "relu" in row
    ]
    assert re.split(r"\s{2,}", line.strip()) == [
        "a relu", "0.750", "0.100 ±0.001", "0.500",
    ]  # fmt: skip


def test_losses_have_their_sign():
    readings = [reading("a relu", 0.1, variant=v) for v in ("output", "loss", "accuracy")]
    text = printed(anatomy_of(*readings, loss=0.25, accuracy=0.5))
    assert "+0.100 ±0.001" in text
    assert "loss 0.250, accuracy 0.500" in text


def test_it_fits_a_terminal_of_eighty_columns():
    path = "encoder.layer.10.attention.output.LayerNorm layer_norm"
    readings = [reading(path, 0.1, variant=v) for v in ("output", "loss", "accuracy")]
    lines = printed(anatomy_of(*readings, loss=0.25, accuracy=0.5), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_what_has_no_number_is_a_dash_and_a_note():
    found = anatomy_of(
        reading("a max", None, warnings=["Not measured."], local_r2=None),
        reading("b max", None, warnings=["Not measured."], local_r2=None),
        reading("c relu", 0.2),
    )
    (line,) = [row for row in printed(found).splitlines() if "a max" in row]
    assert re.split(r"\s{2,}", line.strip())[1:] == ["-", "-", "0.500"]
    assert notes(found) == ["a max and 1 more: Not measured."]


def test_nothing_to_replace_is_said():
    assert "every operation is affine in the data (3 of them)" in plain_words(anatomy_of())
