"""Cover's law: of N points in D dimensions, which share of random labellings a plane can make.

Claim: the share of the 2^N labellings of N points in general position in D dimensions that a plane
makes is C(N, D) / 2^N, C(N, D) = 2 sum over k < D of binomial(N - 1, k); half at N = 2 D.
Command: ``secant study cover --out DIR``. Cost: a quarter of a minute.
Published: Cover 1965, IEEE Transactions on Electronic Computers EC-14; at D = 20 that is 0.969 for
N = 1.5 D, 0.500 for 2 D, 0.076 for 2.5 D. Verdict: each share has an exact 95 % interval; the
claim is supported if no more of them miss the law than of as many true intervals would in 99 % of
runs, else refuted.

Holds: ``study``; ``measure``, ``share_interval``, ``allowed_misses``.
May import: torch, numpy, scipy, ``secant.readings``, ``secant.surveys``
(versions), ``secant.studies`` (finding, kept), ``secant.uses`` (cover, separation).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, binom

from secant.readings import hardware
from secant.studies.finding import Curve, Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.surveys import versions
from secant.uses.cover import chance
from secant.uses.separation import decide

DIMENSION = 20
COUNTS = (25, 30, 35, 38, 40, 42, 45, 50, 60)
TRIALS = 2000


def measure(points: int, trials: int, seed: int) -> dict[str, Any]:
    """How many of `trials` random labellings are separable, each of as many new normal points.

    `DIMENSION` is 19 features and the bias. Each verdict has a certificate that was checked.
    """
    draw = np.random.default_rng([seed, points])
    separable = 0
    kinds: dict[str, int] = {}
    for _ in range(trials):
        rows = draw.standard_normal((points, DIMENSION - 1))
        labels = draw.random(points) < 0.5
        if labels.all() or not labels.any():
            separable += 1  # a plane with all points on one side
            continue
        found = decide(rows, labels, is_widest=False)
        separable += found.verdict == "separable"
        kinds[found.certificate.kind] = kinds.get(found.certificate.kind, 0) + 1
    return {"points": points, "trials": trials, "separable": separable, "certificates": kinds}


def share_interval(count: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval for a share (Clopper and Pearson 1934): it covers at least `level`."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, trials - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, trials - count)) if count < trials else 1.0
    return low, high


def allowed_misses(intervals: int, level: float = 0.95) -> int:
    """How many of so many intervals may miss the truth, in 99 % of runs."""
    return int(binom.ppf(0.99, intervals, 1 - level))


def study(
    *,
    seed: int = 0,
    counts: Sequence[int] | None = None,
    trials: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study, at `COUNTS` points and with `TRIALS` labellings each if none are given.

    With `out` what was measured is kept there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    counts, trials = counts or COUNTS, trials or TRIALS
    settings = {"dimension": DIMENSION, "points": list(counts), "trials": trials}
    kept = Kept("cover", settings, len(counts),
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip
    for points in counts:
        kept(str(points), partial(measure, points, trials, seed))
    return kept.written(_finding(kept.numbers, settings, seed, kept.seconds))


def _finding(
    numbers: list[dict[str, Any]], settings: dict[str, Any], seed: int, seconds: float
) -> Finding:
    figures, laws, shares, intervals = [], [], [], []
    for one in numbers:
        points, trials = one["points"], one["trials"]
        law = float(chance(points, DIMENSION))
        share, interval = one["separable"] / trials, share_interval(one["separable"], trials)
        # One interval that misses is no refutation; one at 99 % for all figures together is.
        wide = share_interval(one["separable"], trials, 1 - 0.01 / len(numbers))
        verdict: Verdict = "undecided" if wide[0] <= law <= wide[1] else "refuted"
        verdict = "supported" if interval[0] <= law <= interval[1] else verdict
        title = f"share separable, N = {points / DIMENSION:g} D"
        figures.append(Figure(title, share, interval, law, verdict))
        laws.append(law)
        # A log axis has no 0.
        shares.append(share or None)
        intervals.append(interval if interval[0] > 0 else None)
    misses = sum(one.verdict != "supported" for one in figures)
    allowed = allowed_misses(len(figures))
    places = [one["points"] / DIMENSION for one in numbers]
    plot = "share of labellings that a plane makes"
    return Finding(
        study="cover",
        claim="The share of the 2^N labellings of N points in general position in D dimensions "
        "that a plane makes is C(N, D) / 2^N, C(N, D) = 2 sum over k < D of binomial(N - 1, k).",
        command=f"secant study cover --seed {seed} --out DIR",
        source="Cover 1965, IEEE Transactions on Electronic Computers EC-14: the law, exact",
        verdict="supported" if misses <= allowed else "refuted",
        words=f"{misses} of {len(figures)} intervals miss the law; of as many true 95 % intervals "
        f"up to {allowed} would, in 99 % of runs. Each labelling was decided with a certificate.",
        figures=figures,
        curves=[
            Curve(plot, "measured", places, shares, intervals),
            Curve(plot, "law", places, list(laws), [None] * len(laws)),
        ],
        foot="points a dimension, N / D",
        numbers=numbers,
        settings=settings,
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )
