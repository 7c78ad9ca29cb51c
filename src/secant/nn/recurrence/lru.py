"""The linear recurrent unit: a complex diagonal recurrence that starts on a ring.

Holds: ``LRU``.
May import: torch, ``secant.errors``, ``secant.nn`` (scan), ``secant.nn.recurrence`` (inputs).
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.nn.recurrence.inputs import (
    check_row,
    check_sequence,
    check_sizes,
    checked_state,
    widened,
    without_autocast,
)
from secant.nn.scan import scan


class _Weights(NamedTuple):
    """The parameters as the formula has them: `write` is gamma B."""

    wide: Tensor
    transition: Tensor
    write: Tensor
    read: Tensor
    skip: Tensor


@final
class LRU(nn.Module):
    r"""A diagonal linear recurrence with complex eigenvalues inside the unit circle.

    .. math::
        \lambda = \exp(-\exp(\nu) + i \exp(\theta)), \quad
        h_t = \lambda \odot h_{t-1} + \exp(\gamma) \odot B x_t, \quad
        y_t = \mathrm{Re}(C h_t) + D \odot x_t

    No value of ν lets an eigenvalue leave the circle. At first they are uniform by area on the
    ring from ``r_min`` to ``r_max``, so |λ|² is uniform from r_min² to r_max², with phases uniform
    from 0 to ``max_phase``; exp(γ) = sqrt(1 - |λ|²), so that under white noise of variance 1 every
    state has mean square 1 over the draw of B, however long it remembers. Real and imaginary parts
    of B are normal with variance 1 / (2 features), those of C with 1 / hidden_size; D is standard
    normal.

    Shapes: x (batch, length, features), state (batch, hidden_size), complex; gives y as x is, and
    the last h. Half precision is computed in float32 and complex64, and so is the state.
    Parameters: ``nu``, ``theta``, ``gamma`` (hidden_size,), ``write`` (hidden_size, features, 2)
    is B and ``read`` (features, hidden_size, 2) is C, real part first, ``skip`` (features,) is D.
    Cost: 4 * features * hidden_size products a step.

    Raises: `InputError` for a size below 1, a ring that is not 0 <= r_min < r_max <= 1, a phase
    outside (0, 2 pi], or an input or a state of another shape.

    Source: Orvieto et al. 2023, arXiv:2303.06349, sections 3.2 to 3.4 and lemma 3.2.
    """

    def __init__(
        self,
        features: int,
        hidden_size: int,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        check_sizes("LRU", features=features, hidden_size=hidden_size)
        if not 0 <= r_min < r_max <= 1:
            raise InputError(
                f"LRU: the ring must have 0 <= r_min < r_max <= 1; got {r_min} and {r_max}. "
                "For long memory the paper has 0.9 and 0.999."
            )
        if not 0 < max_phase <= 2 * math.pi:
            raise InputError(
                f"LRU: `max_phase` must be above 0 and at most 2 pi; got {max_phase}. "
                "Give it in radians: a small one keeps slow waves only."
            )
        self.features, self.hidden_size = features, hidden_size
        self.ring, self.max_phase = (r_min, r_max), max_phase
        self.nu = nn.Parameter(torch.empty(hidden_size))
        self.theta = nn.Parameter(torch.empty(hidden_size))
        self.gamma = nn.Parameter(torch.empty(hidden_size))
        self.write = nn.Parameter(torch.empty(hidden_size, features, 2))
        self.read = nn.Parameter(torch.empty(features, hidden_size, 2))
        self.skip = nn.Parameter(torch.empty(features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw them anew, from torch's generator."""
        # In float64, and never 0: near the circle float32 has no room for 1 - |λ|².
        least = torch.finfo(torch.float64).tiny
        where = torch.empty(2, self.hidden_size, dtype=torch.float64).uniform_().clamp(min=least)
        low, high = self.ring
        decay = -0.5 * (where[0] * (high**2 - low**2) + low**2).log()
        # A draw at the very edge of a ring that reaches 1 would decay by 0, whose logarithm is not.
        decay = decay.clamp(min=torch.finfo(torch.float32).eps ** 2)
        self.nu.copy_(decay.log())
        self.theta.copy_((self.max_phase * where[1]).log())
        self.gamma.copy_(0.5 * (-torch.expm1(-2 * decay)).log())
        nn.init.normal_(self.write, std=(2 * self.features) ** -0.5)
        nn.init.normal_(self.read, std=self.hidden_size**-0.5)
        nn.init.normal_(self.skip)

    def eigenvalues(self) -> Tensor:
        """The λ, (hidden_size,), complex."""
        return self._weights(self.nu).transition

    def _weights(self, x: Tensor) -> _Weights:
        wide, nu, theta, gamma, write, read, skip = widened(
            x, self.nu, self.theta, self.gamma, self.write, self.read, self.skip
        )
        scaled = torch.view_as_complex((gamma.exp()[:, None, None] * write).contiguous())
        read = torch.view_as_complex(read.contiguous())
        return _Weights(wide, torch.polar((-nu.exp()).exp(), theta.exp()), scaled, read, skip)

    def _start(self, state: Tensor | None, weights: _Weights) -> Tensor:
        shape = (len(weights.wide), self.hidden_size)
        return checked_state("LRU", state, shape, weights.transition)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every y and the last h, for whole sequences."""
        check_sequence("LRU", x, self.features)
        with without_autocast(x):
            one = self._weights(x)
            found = scan(one.transition, _written(one), self._start(state, one))
            return _read(one, found).to(x.dtype), found[:, -1]

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One y, (batch, features), and h."""
        check_row("LRU", x, self.features)
        with without_autocast(x):
            one = self._weights(x)
            found = one.transition * self._start(state, one) + _written(one)
            return _read(one, found).to(x.dtype), found

    def extra_repr(self) -> str:
        """What it was made with."""
        low, high = self.ring
        return (
            f"{self.features}, {self.hidden_size}, r_min={low:g}, r_max={high:g}, "
            f"max_phase={self.max_phase:g}"
        )


def _written(one: _Weights) -> Tensor:
    """What x adds to h: a real row times a complex matrix, as two real products."""
    return torch.complex(one.wide @ one.write.real.mT, one.wide @ one.write.imag.mT)


def _read(one: _Weights, found: Tensor) -> Tensor:
    """Re(C h) + D x."""
    real = found.real @ one.read.real.mT - found.imag @ one.read.imag.mT
    return real + one.skip * one.wide
