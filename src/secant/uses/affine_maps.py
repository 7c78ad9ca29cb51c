"""Many affine maps at once, from sums over rows: one map a group of entries.

Holds: ``Sums`` and its solution ``Affine``.
May import: torch, ``secant.gauges.fit``.

Apart from the gauge `Fit` because an operation on entries has thousands of maps of one or two
regressors each, solved together, and needs one split of the units, not cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from secant.gauges.ridge import RANK_CUT, RIDGES


class Affine(NamedTuple):
    """y ≈ x @ weight + bias: (groups, p, m) and (groups, 1, m); `mean` of y, (groups, 1, m)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    ridge: float
    rows: int


@dataclass
class Sums:
    """First and second moments in two parts: one to fit, one to choose the ridge on.

    float64, about the first batch's means. Memory: 2 · groups · (p² + p·m) numbers.
    """

    centres: tuple[Tensor, Tensor] | None = None
    parts: list[list[Tensor] | None] = field(default_factory=lambda: [None, None])

    def add(self, x: Tensor, y: Tensor, part: int) -> None:
        """Add rows: x (groups, rows, p), y (groups, rows, m)."""
        if self.centres is None:
            self.centres = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = x - self.centres[0], y - self.centres[1]
        rows = torch.tensor(float(x.shape[1]), dtype=torch.float64)
        new = [rows, x.sum(1), y.sum(1), x.mT @ x, x.mT @ y, y.square().sum(1)]
        old = self.parts[part]
        self.parts[part] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

    def solve(self) -> Affine | None:
        """The map; ridge chosen on the second part, then fitted on both. None if not finite.

        A line through one regressor takes no ridge.
        """
        first, second = self.parts
        if self.centres is None or first is None:
            first, second = second, None
        assert first is not None
        assert self.centres is not None
        if not all(bool(torch.isfinite(s).all()) for s in [*first, *(second or [])]):
            return None
        ridge = RIDGES[0]
        both = first
        if second is not None:
            strengths = RIDGES if first[1].shape[1] > 1 else RIDGES[:1]
            trained = _eigen(first)
            losses = [_loss(second, *trained.solved(strength)) for strength in strengths]
            ridge = strengths[losses.index(min(losses))]
            both = [a + b for a, b in zip(first, second, strict=True)]
        weight, x_mean, y_mean = _eigen(both).solved(ridge)
        x_mean, y_mean = x_mean + self.centres[0], y_mean + self.centres[1]
        return Affine(weight, y_mean - x_mean @ weight, y_mean, ridge, int(both[0]))


class _Eigen(NamedTuple):
    """Centred sums in the eigenbasis of x: one decomposition serves every ridge."""

    values: Tensor
    vectors: Tensor
    target: Tensor
    x_mean: Tensor
    y_mean: Tensor

    def solved(self, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, mean of x and mean of y; directions that no row reaches get weight 0."""
        inverse = 1 / (self.values + ridge * self.values.mean(-1, keepdim=True))
        is_reached = self.values > RANK_CUT * self.values[:, -1:].clamp_min(0)
        inverse = torch.where(is_reached, inverse, 0.0)
        return self.vectors @ (inverse[..., None] * self.target), self.x_mean, self.y_mean


def _eigen(sums: list[Tensor]) -> _Eigen:
    rows, x, y, xx, xy, _ = sums
    x_mean, y_mean = (x / rows)[:, None], (y / rows)[:, None]
    xx, xy = xx - rows * x_mean.mT @ x_mean, xy - rows * x_mean.mT @ y_mean
    values, vectors = torch.linalg.eigh(xx)
    return _Eigen(values, vectors, vectors.mT @ xy, x_mean, y_mean)


def _loss(sums: list[Tensor], weight: Tensor, x_mean: Tensor, y_mean: Tensor) -> float:
    """Sum of squared residuals of other rows under the map."""
    rows, x, y, xx, xy, yy = sums
    x, y = x[:, None], y[:, None]
    xx = xx - x.mT @ x_mean - x_mean.mT @ x + rows * x_mean.mT @ x_mean
    xy = xy - x.mT @ y_mean - x_mean.mT @ y + rows * x_mean.mT @ y_mean
    yy = (yy[:, None] - 2 * y * y_mean + rows * y_mean.square()).sum()
    return float(yy - 2 * (weight * xy).sum() + (weight * (xx @ weight)).sum())
