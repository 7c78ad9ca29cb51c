"""The study of Cover's law: its intervals, a small run, and going on after a kill.

Holds: tests of ``secant.studies.cover``.
May import: pytest, scipy, ``secant``.
"""

import json

import pytest
from scipy.stats import binom

from secant.studies import cover
from secant.studies.cover import allowed_misses, measure, share_interval, study
from secant.uses.cover import chance


def test_intervals_cover_what_they_say():
    """The exact interval covers at least 95 % whatever the share; not far above in the middle."""
    trials = 40
    ends = [share_interval(count, trials) for count in range(trials + 1)]
    for share in (0.02, 0.3, 0.5, 0.9):
        covered = sum(
            binom.pmf(count, trials, share)
            for count, (low, high) in enumerate(ends)
            if low <= share <= high
        )
        assert 0.95 <= covered <= 1
    assert ends[0][0] == 0
    assert ends[-1][1] == 1
    # A share of 0 in n trials: 1 - 0.025^(1/n).
    assert ends[0][1] == pytest.approx(1 - 0.025 ** (1 / trials))


def test_misses_that_true_intervals_would_make():
    for intervals in (1, 9, 50):
        allowed = allowed_misses(intervals)
        assert binom.cdf(allowed, intervals, 0.05) >= 0.99
        assert binom.cdf(allowed - 1, intervals, 0.05) < 0.99


def test_shares_far_from_the_capacity():
    few, many = measure(21, 30, 0), measure(80, 30, 0)
    assert few["separable"] >= 29
    assert many["separable"] == 0
    assert sum(many["certificates"].values()) == 30
    assert float(chance(80, 20)) < 1e-5


def test_a_small_run_is_written_down_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    small = {"counts": (30, 40, 50), "trials": 60}
    told = []
    found = study(**small, out=tmp_path / "out", progress=lambda *one: told.append(one))
    assert told[-1] == ("cover", 3, 3)
    assert found.verdict == "supported"
    assert [one.published for one in found.figures][1] == 0.5
    data = json.loads((tmp_path / "out" / "study.json").read_text())
    assert data == found.as_dict()
    assert (tmp_path / "out" / "study.html").read_text().count('<svg class="plot"') == 1

    def stop(label, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(**small, out=tmp_path / "cut", progress=stop)
    once, calls = cover.measure, []
    monkeypatch.setattr(cover, "measure", lambda *one: calls.append(one) or once(*one))
    again = study(**small, out=tmp_path / "cut", resume=True)
    assert len(calls) == 1
    assert again.numbers == found.numbers


def test_a_wrong_law_is_refuted(monkeypatch):
    monkeypatch.setattr(cover, "chance", lambda points, dimension: chance(points, dimension + 4))
    found = study(counts=(36, 40, 44), trials=100)
    assert found.verdict == "refuted"
    assert {one.verdict for one in found.figures} == {"refuted"}


def test_one_interval_that_misses_is_no_refutation(monkeypatch):
    """45 of 60 where 30 are expected is too far; 39, at 2.3 standard errors, is not."""
    for count, verdict in ((45, "refuted"), (39, "undecided"), (31, "supported")):
        found = {"points": 40, "trials": 60, "separable": count, "certificates": {}}
        monkeypatch.setattr(cover, "measure", lambda *_, found=found: found)
        assert study(counts=(40,), trials=60).figures[0].verdict == verdict


def test_the_command(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cover, "COUNTS", (30, 50))
    monkeypatch.setattr(cover, "TRIALS", 20)
    code, out, err = run("study", "cover", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "N = 1.5 D" in out
    assert str(tmp_path / "out" / "study.html") in out
