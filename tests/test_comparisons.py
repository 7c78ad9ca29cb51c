"""Two reports compared: what matches, which intervals, and when they differ."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from secant import cli
from secant.comparisons import diff, paired
from secant.errors import InputError
from secant.gauges.interval import difference_interval, ratio_interval
from secant.readings import ModelReport, Reading, Report

GROUPS = 6
TOTAL = [float(10 + i) for i in range(GROUPS)]


def fit(site: str, share: float, variant: str = "beyond", **more: Any) -> Reading:
    """A held-out R² of about 1 - share, with its sums."""
    residual = [share * t * (1 + 0.1 * (-1) ** i) for i, t in enumerate(TOTAL)]
    value = 1 - sum(residual) / sum(TOTAL)
    interval = ratio_interval(torch.tensor(residual), torch.tensor(TOTAL))
    details = {"residual_by_group": residual, "total_by_group": TOTAL}
    samples = {"units": 60, "rows": 60}
    made = Reading("features", site, "fit", variant, value, interval, samples, details=details)
    return replace(made, **more)


def chord(t: float, value: float) -> Reading:
    gap = [value**2 * x for x in TOTAL]
    details = {"t": t, "gap_by_group": gap, "length_by_group": TOTAL}
    return Reading("features", "a", "chord", "raw", value, (value, value), {}, details=details)


def model(name: str, *readings: Reading, data: str = "d", units: int = 60) -> ModelReport:
    return ModelReport(name, data, units, units, ["a"], list(readings), {"seconds": 1.0})


def report(*models: ModelReport, seed: int = 0) -> Report:
    return Report("2025-01-01", seed, {"secant": "0"}, "a CPU", {"seconds": 1.0}, list(models))


def test_paired_is_reading_less_control_with_the_jackknife_of_both():
    trained, control = fit("a", 0.2), fit("a", 0.5)
    found = paired(trained.details, control.details)
    four = [
        torch.tensor(one.details[key], dtype=torch.float64)
        for one in (trained, control)
        for key in ("residual_by_group", "total_by_group")
    ]
    assert found == {
        "value": pytest.approx(0.3, abs=0.01),
        "interval": pytest.approx(difference_interval(*four)),
    }
    assert found["value"] == pytest.approx(trained.value - control.value)


def test_paired_takes_the_root_where_the_sums_are_of_a_gap():
    found = paired(chord(0.5, 0.4).details, chord(0.5, 0.1).details)
    assert found["value"] == pytest.approx(0.3)
    assert found["interval"] == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize(
    "sums",
    [
        {},
        {"residual_by_group": [1.0, 2.0], "total_by_group": [3.0, 4.0]},
        {"residual_by_group": TOTAL[:-1], "total_by_group": TOTAL[:-1]},
        {"residual_by_group": [math.nan] * GROUPS, "total_by_group": TOTAL},
        {"residual_by_group": [None] * GROUPS, "total_by_group": TOTAL},
        {"residual_by_group": [0.0] * GROUPS, "total_by_group": [0.0] * GROUPS},
    ],
    ids=["none", "two groups", "other groups", "nan", "null", "zero"],
)
def test_paired_without_sums_to_pair_is_none(sums):
    assert paired(fit("a", 0.2).details, sums) is None


def test_one_plan_is_paired_and_narrower_than_unpaired():
    a, b = report(model("m", fit("a", 0.2))), report(model("m", fit("a", 0.3)))
    (one,) = diff(a, b).differences
    assert one.how == "paired"
    assert one.value == pytest.approx(-0.1, abs=0.01)
    (other,) = diff(a, replace(b, seed=1)).differences
    assert other.how == "unpaired"
    assert other.interval[1] - other.interval[0] > one.interval[1] - one.interval[0]


def test_unpaired_joins_both_intervals_by_mover():
    bare = {"details": {}, "interval": (0.5, 0.8), "value": 0.7}
    a = report(model("m", fit("a", 0.1, **bare)))
    b = report(model("m", fit("a", 0.1, **{**bare, "value": 0.6, "interval": (0.2, 0.9)})))
    (one,) = diff(a, b).differences
    assert one.how == "unpaired"
    low, high = -0.1 - math.hypot(0.4, 0.1), -0.1 + math.hypot(0.3, 0.2)
    assert one.interval == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (report(model("m", fit("a", 0.3), data="e")), "data differ"),
        (report(model("m", fit("a", 0.3)), seed=5), "seeds differ"),
        (report(model("m", fit("a", 0.3), units=61)), "samples differ"),
    ],
)
def test_another_plan_is_said(other, word):
    found = diff(report(model("m", fit("a", 0.2))), other)
    assert [one.how for one in found.differences] == ["unpaired"]
    assert word in found.notes[0]


def test_curves_match_by_their_place_and_models_by_name_then_position():
    a = report(model("x", chord(0.25, 0.1), chord(0.5, 0.2)), model("old", fit("a", 0.2)))
    b = report(model("new", fit("a", 0.2)), model("x", chord(0.5, 0.3), chord(0.75, 0.9)))
    found = diff(a, b)
    assert [(one.model, one.place) for one in found.differences] == [
        ("x", {"t": 0.5}), ("old → new", {}),
    ]  # fmt: skip
    assert found.differences[0].value == pytest.approx(0.1)
    assert found.only_a == ["x: chord raw at a in features, t 0.25"]
    assert found.only_b == ["x: chord raw at a in features, t 0.75"]


def test_a_model_without_a_partner_is_named():
    a = report(model("x", fit("a", 0.2)), model("y", fit("b", 0.2)))
    found = diff(a, report(model("x", fit("a", 0.2))))
    assert found.only_a == ["y: fit beyond at b in features"]


def test_filters_keep_their_readings_alone():
    one = model("m", fit("a", 0.2), fit("a", 0.2, "raw"), chord(0.5, 0.1))
    found = diff(report(one), report(one), gauges=["fit"], variants=["raw"])
    assert [(d.gauge, d.variant) for d in found.differences] == [("fit", "raw")]


def test_a_difference_exceeds_if_large_and_clear_or_if_a_number_was_lost():
    large, wide = fit("a", 0.5), fit("b", 0.5, details={}, interval=(-0.5, 0.9))
    lost = fit("c", 0.2, value=None, interval=None, details={})
    before = [fit("a", 0.2), fit("b", 0.2), fit("c", 0.2), fit("d", 0.2)]
    after = [large, wide, lost, fit("d", 0.201)]
    found = diff(report(model("m", *before)), report(model("m", *after)))
    assert [one.site for one in found.exceeding(0.02)] == ["a", "c"]
    assert [one.site for one in found.exceeding(0.0)] == ["a", "c", "d"]
    assert [one.site for one in found.exceeding(0.9)] == ["c"]


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
def test_an_unusable_threshold_is_refused(threshold):
    one = report(model("m", fit("a", 0.2)))
    with pytest.raises(InputError, match="threshold of 0 or more"):
        diff(one, one).exceeding(threshold)


def test_nothing_in_common_is_refused():
    one, other = report(model("m", fit("a", 0.2))), report(model("m", fit("b", 0.2)))
    with pytest.raises(InputError, match="readings in common"):
        diff(one, other)
    with pytest.raises(InputError, match="readings in common"):
        diff(one, one, gauges=["nonesuch"])


# The command ------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")

    def call(a: Report | str, b: Report | str, *args: str):
        paths = []
        for name, one in (("a.json", a), ("b.json", b)):
            path = tmp_path / name
            if one != "missing":
                path.write_text(one.to_json() if isinstance(one, Report) else one)
            paths.append(str(path))
        monkeypatch.setattr(sys, "argv", ["secant", "diff", *paths, *args])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call


def test_exit_codes_and_table(run):
    a, b = report(model("m", fit("a", 0.2))), report(model("m", fit("a", 0.5)))
    code, out, _ = run(a, a)
    assert code == 0
    assert "0 of 1 readings differ by more than 0.02." in out
    code, out, err = run(a, b)
    assert code == 1
    assert err == ""
    (expected,) = diff(a, b).differences
    assert f"{expected.value:+.3f}" in out
    assert "paired" in out
    assert "1 of 1 readings differ" in out
    assert run(a, b, "--threshold", "0.5")[0] == 0
    assert run(a, b, "--variant", "beyond", "--gauge", "fit")[0] == 1


def test_what_is_not_shown_is_counted(run):
    many = [fit(f"s{i}", 0.2) for i in range(5)]
    a = report(model("m", *many, fit("gone", 0.1)))
    code, out, _ = run(a, report(model("m", *many)), "--top", "2")
    assert code == 0
    assert "3 smaller differences are not shown" in out
    assert "Only in before: m: fit beyond at gone" in out


WHOLE = json.loads(report(model("m", fit("a", 0.2))).to_json())


def broken(**changes: Any) -> str:
    return json.dumps({**WHOLE, **changes})


def in_reading(**changes: Any) -> str:
    reading = {**WHOLE["models"][0]["readings"][0], **changes}
    return broken(models=[{**WHOLE["models"][0], "readings": [reading]}])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("missing", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "schema None"),
        (broken(schema=99), "schema 99"),
        (broken(schema=True), "schema True"),
        (broken(models={}), "report.models should be a list, got dict"),
        (broken(models=[3]), "report.models[0] should be an object"),
        (broken(seed="0"), "report.seed should be a whole number, got str"),
        (broken(odd=1), "unknown field 'odd'"),
        (json.dumps({k: v for k, v in WHOLE.items() if k != "seed"}), "lacks the field 'seed'"),
        (in_reading(value="high"), "readings[0].value should be a number, got str"),
        (in_reading(interval=[0.1]), "interval should be a list of 2"),
        (in_reading(value=1e400), "value should be a number"),
        (in_reading(interval=[None, 1.0]), "interval[0] should be a number, got null"),
        (broken(models=[]), "readings in common"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, text, word):
    code, out, err = run(report(model("m", fit("a", 0.2))), text)
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert word in err
    assert "Traceback" not in out + err


def test_threshold_below_zero_is_refused(run):
    a = report(model("m", fit("a", 0.2)))
    assert run(a, a, "--threshold", "-1")[0] == 2
    code, out, err = run(a, a, "--threshold", "nan")
    assert code == 2
    assert "Traceback" not in out + err
