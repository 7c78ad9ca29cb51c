"""A perceptron with a sigmoid: the same decisions, probabilities that mean what they say.

Claim: a sigmoid behind one linear layer changes no decision; fitted by its likelihood (logistic
regression) its values are probabilities, which a perceptron's through the same sigmoid are not;
and it is linear in its parameters up to the sigmoid.
Command: ``secant study perceptron --out DIR``. Cost: some ten seconds.
Published: Rosenblatt 1958, Psychological Review 65; Cox 1958, Biometrika 45: calibrated
probabilities have a slope of 1 and a level of 0 in a logistic regression of the outcome on their
logits. Verdict: supported if no decision changes, the logit's tangent over the whole fit is exact,
the interval of the logistic regression's slope holds 1 on both sets and the perceptron's on
neither; refuted if a decision changes; else depends.

Two sets: one drawn from a logistic model, whose truth is known, and scikit-learn's digits, odd
against even. Every probability is of a row that was not fitted (ten folds).

Holds: ``study``; ``drawn_set``, ``digits_set``, ``held_out_logits``, ``recalibrated``, ``measure``.
May import: torch, numpy, sklearn, scipy, ``secant.gauges``, ``secant.maps``, ``secant.readings``,
``secant.surveys`` (versions), ``secant.studies`` (cover, finding, kept).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from secant.gauges.interval import jackknife_interval
from secant.gauges.tangent import tangent_from_sums, tangent_sums
from secant.maps.derivatives import jvp
from secant.readings import hardware
from secant.studies.cover import share_interval
from secant.studies.finding import Curve, Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.surveys import versions

Rows = NDArray[np.float64]
FOLDS = 10
DRAWN = 4000
"""Rows of the drawn set; with ten features the fitted slope is then known to some 4 %."""
FEATURES = 10
BINS = 10
LEAST = 1e-3
"""Smallest probability that is drawn."""
STEPS = 50
"""Newton steps of the recalibration at most; two numbers need fewer than ten."""


class Set(NamedTuple):
    """Rows, their classes 0 and 1, and the fold of each."""

    rows: Rows
    labels: Rows
    folds: NDArray[np.int64]


def drawn_set(seed: int) -> Set:
    """Classes drawn with the probabilities of a logistic model: right for about 77 of 100."""
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((DRAWN, FEATURES))
    weight = 1.5 * draw.standard_normal(FEATURES) / FEATURES**0.5
    labels = (draw.random(DRAWN) < expit(rows @ weight)).astype(float)
    return Set(rows, labels, np.arange(DRAWN) % FOLDS)


def digits_set(seed: int) -> Set:
    """scikit-learn's digits, odd against even."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    return Set(data.data / 16.0, (data.target % 2).astype(float), order % FOLDS)


SETS = {"drawn": drawn_set, "digits": digits_set}
MODELS = {
    "logistic regression": partial(LogisticRegression, C=1.0, max_iter=2000),
    "perceptron": partial(Perceptron, max_iter=1000, tol=1e-3),
}


def held_out_logits(data: Set, model: str, seed: int) -> Rows:
    """w·x + b of every row, by a model fitted on the other folds (features scaled there too)."""
    logits = np.empty(len(data.labels))
    for fold in range(FOLDS):
        kept = data.folds != fold
        fitted = make_pipeline(StandardScaler(), MODELS[model](random_state=seed))
        fitted.fit(data.rows[kept], data.labels[kept])
        logits[~kept] = fitted.decision_function(data.rows[~kept])
    return logits


def recalibrated(logits: Rows, labels: Rows) -> tuple[float, float]:
    """Slope and level of the outcome's logistic regression on the logits, by Newton's method."""
    x = np.stack([logits, np.ones_like(logits)], 1)
    # Started small and in the logits' own unit: a perceptron's may be hundreds.
    coefficients = np.array([1 / (1 + np.abs(logits).mean()), 0.0])
    for _ in range(STEPS):
        chance = expit(x @ coefficients)
        bend = x.T @ (x * (chance * (1 - chance))[:, None])
        step = np.linalg.solve(bend, x.T @ (labels - chance))
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-12 * max(1.0, np.abs(coefficients).max()):
            break
    return float(coefficients[0]), float(coefficients[1])


def tangent_gaps(data: Set, seed: int) -> tuple[float, float]:
    """`tangent` in the parameters, from 0 to those fitted: of the logit, and of the probability."""
    scaled = StandardScaler().fit_transform(data.rows)
    fitted = MODELS["logistic regression"](random_state=seed).fit(scaled, data.labels)
    x = torch.from_numpy(np.concatenate([scaled, np.ones((len(scaled), 1))], 1))
    w = torch.from_numpy(np.concatenate([fitted.coef_[0], fitted.intercept_]))
    gaps = []
    for read in (_same, torch.sigmoid):
        start = torch.zeros_like(w)
        value, along = jvp(partial(_read, read, x), start, w)
        gaps.append(float(tangent_from_sums(*tangent_sums(value, read(x @ w), along))))
    return gaps[0], gaps[1]


def _read(read: Callable[[Tensor], Tensor], x: Tensor, w: Tensor) -> Tensor:
    return read(x @ w)


def _same(z: Tensor) -> Tensor:
    return z


def measure(name: str, seed: int) -> dict[str, Any]:
    """Everything read on one set."""
    data = SETS[name](seed)
    logit_gap, probability_gap = tangent_gaps(data, seed)
    found: dict[str, Any] = {
        "set": name, "rows": len(data.labels), "logit_gap": logit_gap,
        "probability_gap": probability_gap,
    }  # fmt: skip
    for model in MODELS:
        logits = held_out_logits(data, model, seed)
        slope, level = recalibrated(logits, data.labels)
        without = [
            recalibrated(logits[data.folds != fold], data.labels[data.folds != fold])[0]
            for fold in range(FOLDS)
        ]
        chance = expit(logits)
        found[model] = {
            "changed": int(((chance > 0.5) != (logits > 0)).sum()),
            "accuracy": float(((logits > 0) == (data.labels > 0.5)).mean()),
            "slope": slope,
            "slopes_without_each_fold": without,
            "level": level,
            "reliability": _reliability(chance, data.labels),
        }
    return found


def _reliability(chance: Rows, labels: Rows) -> list[list[float]]:
    """Mean probability and share of class 1 in each tenth of the rows by probability."""
    order = np.argsort(chance, kind="stable")
    return [
        [float(chance[part].mean()), float(labels[part].mean()), len(part)]
        for part in np.array_split(order, BINS)
    ]


def study(
    *,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study; with `out` what was measured is kept there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    settings = {"folds": FOLDS, "drawn": DRAWN, "features": FEATURES}
    kept = Kept("perceptron", settings, len(SETS),
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip
    for name in SETS:
        kept(name, partial(measure, name, seed))
    return kept.written(_finding(kept.numbers, settings, seed, kept.seconds))


def slope_interval(of_model: dict[str, Any]) -> tuple[float, float]:
    """95 % interval of a slope, from those without each fold."""
    without = torch.tensor(of_model["slopes_without_each_fold"], dtype=torch.float64)
    return jackknife_interval(of_model["slope"], without)


def _finding(
    numbers: list[dict[str, Any]], settings: dict[str, Any], seed: int, seconds: float
) -> Finding:
    figures, curves = [], []
    for one in numbers:
        name = one["set"]
        changed = sum(one[model]["changed"] for model in MODELS)
        verdict: Verdict = "refuted" if changed else "supported"
        figures.append(Figure(f"{name}: decisions that the sigmoid changes", changed, None, 0,
                              verdict))  # fmt: skip
        is_exact = one["logit_gap"] < 1e-9
        figures.append(
            Figure(f"{name}: tangent in the parameters over the whole fit, logit",
                   one["logit_gap"], None, 0.0, "supported" if is_exact else "refuted")
        )  # fmt: skip
        figures.append(
            Figure(f"{name}: the same, probability", one["probability_gap"], None, None,
                   "supported" if one["probability_gap"] > 1e-3 else "undecided")
        )  # fmt: skip
        for model in MODELS:
            low, high = slope_interval(one[model])
            is_calibrated = low <= 1 <= high
            figures.append(
                Figure(f"{name}: calibration slope of the {model}", one[model]["slope"],
                       (low, high), 1.0 if model == "logistic regression" else None,
                       "supported" if is_calibrated == (model != "perceptron") else "refuted")
            )  # fmt: skip
            curves += _reliability_curves(name, model, one[model]["reliability"])
    verdicts = [one.verdict for one in figures]
    is_decided = all(one != "refuted" for one in verdicts)
    changed = any(one.value for one in figures if "decisions" in one.name)
    whole: Verdict = "supported" if is_decided else "depends"
    return Finding(
        study="perceptron",
        claim="A sigmoid behind one linear layer changes no decision; fitted by its likelihood its "
        "values are probabilities, a perceptron's are not; up to the sigmoid it is linear in its "
        "parameters.",
        command=f"secant study perceptron --seed {seed} --out DIR",
        source="Rosenblatt 1958; Cox 1958: probabilities that are right have a slope of 1 in the "
        "logistic regression of the outcome on their logits",
        verdict="refuted" if changed else whole,
        words="Probabilities are of rows that were not fitted. A slope below 1 says too sure, "
        "above 1 not sure enough. Scaling the perceptron's output would mend its slope on "
        "average: that is one number of what the likelihood fits.",
        figures=figures,
        curves=curves,
        foot="tenths of the rows, by the probability told",
        numbers=numbers,
        settings=settings,
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )


def _reliability_curves(name: str, model: str, reliability: list[list[float]]) -> list[Curve]:
    """Probability told and share that came true, tenth by tenth; log axes show none below LEAST."""
    told, seen, counts = (list(part) for part in zip(*reliability, strict=True))
    ends: list[tuple[float, float] | None] = []
    for share, count in zip(seen, counts, strict=True):
        low, high = share_interval(round(share * count), int(count))
        ends.append((low, high) if low >= LEAST else None)
    places = [float(place) for place in range(1, len(told) + 1)]
    title = f"{model} on the {name} set"
    return [
        Curve(title, "told", places, [_drawn(one) for one in told], [None] * len(told)),
        Curve(title, "came true", places, [_drawn(one) for one in seen], ends),
    ]


def _drawn(value: float) -> float | None:
    return value if value >= LEAST else None
