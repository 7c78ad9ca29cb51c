"""The study of pieces: its nets, its judge, a small run, and going on after a kill.

Holds: tests of ``secant.studies.pieces``.
May import: pytest, torch, scipy, ``secant``.
"""

import json

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import nn

from secant.studies import STUDIES
from secant.studies import pieces as module
from secant.studies.kept import STATES
from secant.studies.pieces import he_net, judged, mean_interval, measure, study

SMALL = {"widths": [8, 16], "depths": [1, 2], "seeds": 3}


def test_the_nets_are_he_s():
    net = he_net(400, 300, 2, seed=5)
    layers = [part for part in net if isinstance(part, nn.Linear)]
    assert [layer.out_features for layer in layers] == [300, 300, 1]
    assert isinstance(net[-1], nn.Linear)
    for layer in layers[:2]:
        # 90,000 draws or more: a standard error of 0.5 % of the variance at most.
        assert float(layer.weight.var()) == pytest.approx(2 / layer.in_features, rel=0.02)
        assert float(layer.bias.var()) == pytest.approx(1, rel=0.4)
    assert not torch.equal(layers[0].weight, he_net(400, 300, 2, seed=6)[0].weight)


def test_one_layer_has_a_piece_for_each_kink_on_the_line():
    """Kinks at -b / w: counted from the weights alone."""
    for seed in range(3):
        layer = he_net(1, 20, 1, seed)[0]
        kinks = (-layer.bias / layer.weight[:, 0]).abs() < module.REACH
        assert measure(1, 20, seed)["line"] == 1 + int(kinks.sum())


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.97, 1.02), "supported"), ((0.9, 1.02), "undecided"), ((0.5, 0.94), "refuted"),
        ((1.06, 2.0), "refuted"), ((0.5, 1.5), "undecided"), (None, "undecided"),
    ],
)  # fmt: skip
def test_the_judge_reads_intervals(interval, verdict):
    assert judged(interval, 1.0) == verdict


def test_the_interval_is_student_s():
    values = [1.0, 1.2, 0.7, 1.05]
    mean, interval = mean_interval(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(0.9875)
    assert interval == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert mean_interval([2.0]) == (2.0, None)


def test_a_small_run_has_every_figure(tmp_path):
    found = study(**SMALL, out=tmp_path)
    assert len(found.numbers) == 2 * 2 * 3
    names = [one.name for one in found.figures]
    assert len(names) == len(set(names)) == 2 * (2 + 1 + 1)
    assert {one.published for one in found.figures} == {1.0, None}
    ratios = [
        (one["line"] - 1) / 16 for one in found.numbers if (one["depth"], one["width"]) == (1, 16)
    ]
    assert found.figures[1].value == pytest.approx(sum(ratios) / 3)
    told = json.loads((tmp_path / "study.json").read_text())
    assert told["verdict"] == found.verdict
    page = (tmp_path / "study.html").read_text()
    assert "Pieces on the line" in page
    assert "depth 2" in page
    assert not (tmp_path / STATES).exists()
    assert STUDIES["pieces"] == "secant.studies.pieces"


def test_a_run_that_was_cut_off_goes_on_to_the_same(tmp_path, monkeypatch):
    whole = study(**SMALL)
    calls = []

    def once(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(module, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        study(**SMALL, out=tmp_path)
    monkeypatch.setattr(module, "measure", measure)
    assert study(**SMALL, out=tmp_path, resume=True).figures == whole.figures


def test_verdicts_of_all_figures_make_the_claim_s():
    assert module._verdict(["supported"] * 3) == "supported"
    assert module._verdict(["refuted"] * 2) == "refuted"
    assert module._verdict(["supported", "refuted"]) == "depends"
    assert module._verdict(["supported", "undecided"]) == "undecided"
