"""What one site has gathered: its gauges, the rows that still wait, and the solution of both.

Holds: ``Site``, ``Waiting``, ``SiteResult``, ``results_of``.
May import: torch, ``secant.errors``, ``secant.maps``, ``secant.gauges``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secant.gauges.context import ContextFit
from secant.gauges.fit import Fit, FitResult, Score
from secant.gauges.interval import GROUPS
from secant.gauges.ridge import Eigenbases
from secant.maps.receptive import patch_rows, receptive_width

WIDEST_PATCH = 1024
"""Regressors of a receptive field past which its fit would cost more than the model."""

MOST_AT_ONCE = 4
"""Sites solved at the same time on the CPU; each holds a few matrices of its widest fit."""


class SiteResult(NamedTuple):
    """What the fit gauges found at one site.

    `context` is None where a row has no neighbours; `context_note` says so where it has some
    that could not be used. `left_out` counts units with values that are not finite;
    `regressors` those of the fit with context, 0 if there is none.
    """

    fit: FitResult
    context: dict[str, Score] | None
    context_note: str | None
    left_out: int
    regressors: int


class Waiting(NamedTuple):
    """Rows of one batch at one site; `starts` as for `ContextFit`, empty where it has none."""

    x: Tensor
    y: Tensor
    starts: Tensor


class Site:
    """The gauges of one site; their states are made by the first batch, which sets the centres."""

    def __init__(self, module: nn.Module) -> None:
        self.width = receptive_width(module)
        self.fit: Fit | None = None
        self.context: ContextFit | None = None
        self.patches: Fit | None = None
        self.note: str | None = None
        self.left_out = 0
        self.waiting: list[Waiting] = []

    def make(self, x: Tensor, y: Tensor, x_centre: Tensor, y_centre: Tensor) -> None:
        """Choose the gauges by the shape of the site's first batch."""
        self.fit = Fit(x_centre, y_centre).to(x.device)
        if x.ndim == 3:
            self.context = ContextFit(len(x_centre), len(y_centre)).to(x.device)
        if x.ndim != 4 or self.width == 1:
            return
        regressors = x.shape[1] * self.width**2
        if x.shape[2:] != y.shape[2:]:
            self.note = "The site changes the size of its images: no fit on its receptive field."
        elif regressors > WIDEST_PATCH:
            self.note = (
                f"A receptive field of {self.width} x {self.width} pixels has {regressors} values, "
                f"more than {WIDEST_PATCH}: no fit on it."
            )
        else:
            centre = patch_rows(x, self.width).double().mean(0)
            self.patches = Fit(centre, y_centre).to(x.device)

    def gauges(self) -> dict[str, Fit | ContextFit]:
        """Those that this site has, by name."""
        found = {"fit": self.fit, "context": self.context, "patches": self.patches}
        return {name: gauge for name, gauge in found.items() if gauge is not None}

    def widths(self) -> tuple[int, int]:
        """Those of a row and of its output."""
        assert self.fit is not None
        return len(self.fit.x_centre), len(self.fit.y_centre)

    def is_on_cpu(self) -> bool:
        """Whether the sums lie in the memory that the processor works in."""
        return self.fit is not None and self.fit.x_centre.device.type == "cpu"

    def bytes(self) -> int:
        """What the sums will hold, in float64: a matrix is the width of its gauge squared."""
        assert self.fit is not None
        d, m = len(self.fit.x_centre), len(self.fit.y_centre)
        values = d * d + d * m + m * m
        if self.context is not None:
            values += 4 * d * d + 2 * d * m
        if self.patches is not None:
            wide = len(self.patches.x_centre)
            values += wide * wide + wide * m + m * m
        return 8 * GROUPS * values

    def result(self, bases: Eigenbases) -> SiteResult:
        """Solve."""
        assert self.fit is not None
        found = self.fit.compute(bases)
        context = None
        if self.context is not None:
            context = self.context.compute(self.fit.sums(), found.scores)
        elif self.patches is not None:
            context = self.patches.compute(bases).within(found)
        regressors = 0
        if self.patches is not None:
            regressors = len(self.patches.x_centre)
        elif self.context is not None:
            regressors = 3 * self.context.widths[0] + 1
        return SiteResult(found, context, self.note, self.left_out, regressors)


def results_of(
    sites: Mapping[str, Site], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, SiteResult]:
    """Solve every site; neighbours share eigenproblems.

    On the CPU several sites are solved at once, each on one thread: matrices of a few hundred
    columns do not keep more threads busy, and the result does not hang on how many there are.
    """
    bases, threads = Eigenbases(), torch.get_num_threads()
    if not all(site.is_on_cpu() for site in sites.values()):
        found = {}
        for done, (name, site) in enumerate(sites.items(), 1):
            found[name] = site.result(bases)
            progress(done, len(sites))
        return found
    try:
        with ThreadPoolExecutor(
            min(threads, MOST_AT_ONCE), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            jobs = {name: pool.submit(site.result, bases) for name, site in sites.items()}
            for done, _ in enumerate(as_completed(jobs.values()), 1):
                progress(done, len(jobs))
            return {name: job.result() for name, job in jobs.items()}
    finally:
        torch.set_num_threads(threads)  # a worker's 1 is also what new threads would start with
