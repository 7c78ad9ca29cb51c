"""The study of the perceptron: recalibration against scikit-learn's, and known probabilities.

Holds: tests of ``secant.studies.perceptron``.
May import: pytest, numpy, scipy, sklearn, ``secant``.
"""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from secant.studies import perceptron
from secant.studies.perceptron import (
    drawn_set,
    held_out_logits,
    measure,
    recalibrated,
    slope_interval,
    study,
    tangent_gaps,
)


@pytest.mark.parametrize("factor", [0.01, 1.0, 300.0])
def test_recalibration_is_scikit_learn_s_without_a_penalty(factor):
    draw = np.random.default_rng(0)
    logits = draw.standard_normal(3000)
    labels = (draw.random(3000) < expit(0.7 * logits + 0.2)).astype(float)
    slope, level = recalibrated(factor * logits, labels)
    other = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000).fit(logits[:, None], labels)
    assert slope * factor == pytest.approx(other.coef_[0, 0], rel=1e-4)
    assert level == pytest.approx(other.intercept_[0], abs=1e-4)


def test_true_probabilities_have_a_slope_of_one_and_sure_ones_less():
    draw = np.random.default_rng(1)
    logits = 2 * draw.standard_normal(20_000)
    labels = (draw.random(20_000) < expit(logits)).astype(float)
    assert recalibrated(logits, labels)[0] == pytest.approx(1, abs=0.05)
    assert recalibrated(3 * logits, labels)[0] == pytest.approx(1 / 3, abs=0.02)


def test_a_row_is_never_scored_by_a_model_that_saw_it():
    """With random labels nothing can be learned: held-out logits do not go with them."""
    data = drawn_set(0)
    random = data._replace(labels=(np.random.default_rng(5).random(len(data.labels)) < 0.5) * 1.0)
    logits = held_out_logits(random, "logistic regression", 0)
    assert abs(np.corrcoef(logits, random.labels)[0, 1]) < 0.06


def test_the_logit_is_linear_in_its_parameters_and_the_probability_is_not():
    logit, probability = tangent_gaps(drawn_set(0), 0)
    assert logit < 1e-12
    assert probability > 0.1


def test_the_drawn_set_is_read_as_it_was_made():
    found = measure("drawn", 0)
    assert found["perceptron"]["changed"] == found["logistic regression"]["changed"] == 0
    low, high = slope_interval(found["logistic regression"])
    assert low <= 1 <= high
    assert slope_interval(found["perceptron"])[1] < 0.5
    for model in ("perceptron", "logistic regression"):
        assert sum(part[2] for part in found[model]["reliability"]) == found["rows"]


def test_a_run_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(perceptron, "SETS", {"drawn": drawn_set})
    found = study(out=tmp_path)
    assert found.verdict == "supported"
    assert json.loads((tmp_path / "study.json").read_text()) == found.as_dict()
    assert (tmp_path / "study.html").is_file()
