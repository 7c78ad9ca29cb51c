"""Readings of the fit gauge at one site, with their warnings.

Holds: ``fit_readings``, ``duplicates_of``.
May import: torch, ``secant.gauges``, ``secant.observe``, ``secant.readings``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from secant.comparisons import paired
from secant.gauges.fit import FitResult, Score
from secant.observe import Observer
from secant.readings import NO_INTERVAL, Reading, interval_of, number
from secant.site_sums import SiteResult

ROWS_PER_DIMENSION = 10
LEADING_SHARE = 0.5


def warnings_of(result: SiteResult, variant: str) -> list[str]:
    """What a reader must know before trusting a reading of this variant."""
    fit = result.fit
    warnings = []
    width = result.regressors if variant.startswith("context ") else len(fit.affine.weight)
    if fit.rows < ROWS_PER_DIMENSION * width:
        warnings.append(
            f"{fit.rows} rows for {width} regressors; at least "
            f"{ROWS_PER_DIMENSION * width} are wanted, so the fit is held back by its sample."
        )
    if result.left_out:
        warnings.append(
            f"{result.left_out} units gave values that are not finite here and were left out."
        )
    if math.isnan(fit.scores["raw"].value):
        warnings.append("The site is constant on this data: no score exists.")
    elif len(fit.affine.bias) > 1 and fit.leading_share > LEADING_SHARE and variant != "whitened":
        warnings.append(
            f"One dimension holds {fit.leading_share:.0%} of the output's variance, and that much "
            "of every score but `whitened`, which weighs all directions alike."
        )
    return warnings


def duplicates_of(observer: Observer) -> dict[str, str]:
    """Sites whose sums equal those of an earlier site to the last bit, with that site."""
    found: dict[str, str] = {}
    known: list[str] = []
    for name, site in observer.sites.items():
        assert site.fit is not None
        for earlier in known:
            other = observer.sites[earlier].fit
            assert other is not None
            if all(
                a.shape == b.shape and torch.equal(a, b)
                for a, b in ((site.fit.sum_x, other.sum_x), (site.fit.sum_tt, other.sum_tt))
            ):
                found[name] = earlier
                break
        else:
            known.append(name)
    return found


def scores_of(result: SiteResult) -> dict[str, Score]:
    """Every variant, the in-sample one among them, which has no interval."""
    scores = dict(result.fit.scores)
    scores["procrustes_in_sample"] = Score(result.fit.procrustes, None, [], [])
    for name, found in (result.context or {}).items():
        scores[f"context {name}"] = found
    return scores


def as_control(score: Score, beside: Score) -> dict[str, Any]:
    """A score as the control of another, with how far the other lies above it.

    The difference is paired by groups, which both saw in the same order.
    """
    control = {"value": number(score.value), "interval": interval_of(score.interval)}
    difference = paired(sums_of(beside), sums_of(score))
    return control if difference is None else control | {"difference": difference}


def sums_of(score: Score) -> dict[str, Any]:
    """A score's sums by group, as a reading's details name them; empty for one without."""
    if not score.total:
        return {}
    return {"residual_by_group": score.residual, "total_by_group": score.total}


def details_of(fit: FitResult, variant: str, score: Score) -> dict[str, Any]:
    """What else a reading carries: how it was fitted, and its sums by group."""
    details: dict[str, Any]
    if variant.startswith("context "):
        details = {"per": "position + context"}
    else:
        details = {"per": "position", "rank": fit.rank, "ridges": fit.ridges}
    return details | sums_of(score)


def fit_readings(
    site: str, result: SiteResult, units: int, twin: str | None = None
) -> list[Reading]:
    """The readings at one site; `raw` beside the residual alone, the control that it brings.

    `twin` is an earlier site with the same input and output, to be warned of.
    """
    samples = {"units": units - result.left_out, "rows": result.fit.rows}
    shared = []
    if twin is not None:
        shared.append(f"Input and output are those of site {twin!r}: one reading, shown twice.")
    if result.context_note is not None:
        shared.append(result.context_note)
    alone = result.fit.residual_alone
    readings = []
    for variant, score in scores_of(result).items():
        beside = {}
        if variant.endswith("raw") and alone is not None:
            beside["residual"] = as_control(alone, score)
        value, interval = number(score.value), interval_of(score.interval)
        warnings = warnings_of(result, variant) + shared
        if value is not None and score.interval is not None and interval is None:
            warnings.append(NO_INTERVAL)
        readings.append(
            Reading(
                "features", site, "fit", variant, value, interval, samples, beside, warnings,
                details_of(result.fit, variant, score),
            )
        )  # fmt: skip
    return readings
