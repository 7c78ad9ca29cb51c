"""How far the fitted linear state goes alone: rolled out over more steps than one.

Holds: ``LinearUpdate``, ``Decay``, ``HORIZONS``, ``horizon_sums``.
May import: torch, jaxtyping, ``secant.gauges``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from secant.gauges.fit import AffineMap

HORIZONS = (1, 2, 4, 8, 16, 32, 64)
"""Steps ahead; each twice those before."""


@dataclass(frozen=True)
class LinearUpdate:
    """h_t ≈ h_{t-1} A + u_t B + b, rows on the left; `mean` is that of the states fitted."""

    state: Float64[Tensor, "state state"]
    inputs: Float64[Tensor, "inputs state"]
    bias: Float64[Tensor, " state"]
    mean: Float64[Tensor, " state"]

    @classmethod
    def of(cls, affine: AffineMap, mean: Tensor) -> LinearUpdate:
        """The map of [h, u] taken apart."""
        width = len(mean)
        return cls(affine.weight[:width], affine.weight[width:], affine.bias, mean)

    def eigenvalues(self) -> Tensor:
        """Of the state's part, complex, the longest first."""
        values: Tensor = torch.linalg.eigvals(self.state.cpu())
        return values[values.abs().argsort(descending=True, stable=True)]


@dataclass(frozen=True)
class Decay:
    """The control: the best multiple of what the state is off its mean, and both its means."""

    scalar: Tensor
    before: Float64[Tensor, " state"]
    after: Float64[Tensor, " state"]


def horizon_sums(
    update: LinearUpdate,
    decay: Decay,
    before: Float[Tensor, "batch length state"],
    inputs: Float[Tensor, "batch length inputs"],
    after: Float[Tensor, "batch length state"],
    counted: Tensor | None,
) -> dict[int, Tensor]:
    """For each horizon k squared residual, that of the decay alone, total, rows, units: (5,).

    From every state of the batch k steps on: by the update alone, fed with the true inputs; by
    the decay's scalar to the power of k times what the state is off its mean; and by the mean.
    Steps count where `counted` keeps both ends, all if None. Float64.

    Cost: two products of batch · length · state² for each horizon: what inputs of twice as many
    steps do is what the later half does, and what the earlier half does moved on by that many.
    """
    h, y = before.double(), after.double()
    driven, power = inputs.double() @ update.inputs + update.bias, update.state
    first, length = h - decay.before, h.shape[1]
    found = {}
    for steps in HORIZONS:
        starts = length - steps + 1
        if starts < 1:
            break
        if steps > 1:
            half = steps // 2
            driven = driven[:, :starts] @ power + driven[:, half : half + starts]
            power = power @ power
        truth = y[:, steps - 1 :]
        kept = torch.ones(truth.shape[:2], dtype=torch.bool, device=truth.device)
        if counted is not None:
            kept = counted[:, :starts] & counted[:, steps - 1 :]
        ahead = h[:, :starts] @ power + driven
        alone = decay.after + decay.scalar**steps * first[:, :starts]
        squares = [(guess - truth)[kept].square().sum() for guess in (ahead, alone, update.mean)]
        found[steps] = torch.stack([*squares, kept.sum().double(), kept.any(1).sum().double()])
    return found
