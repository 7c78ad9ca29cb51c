"""A matrix as state, corrected by the delta rule: transitions that reflect.

Holds: the function ``delta_rule`` and the layer ``DeltaNet``.
May import: torch, ``secant.errors``, ``secant.nn.recurrence`` (inputs).
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.errors import InputError
from secant.nn.recurrence.inputs import (
    check_row,
    check_sequence,
    check_sizes,
    checked_state,
    widened,
    without_autocast,
)


class Asked(NamedTuple):
    """What the input asks of the state: `query`, `key` and `value` (..., length, size), and `rate`
    (..., length), the β of each step."""

    query: Tensor
    key: Tensor
    value: Tensor
    rate: Tensor


def delta_rule(asked: Asked, state: Tensor, *, chunk: int = 64) -> tuple[Tensor, Tensor]:
    r"""Outputs o_t = S_t q_t and the last S, of the recurrence

    .. math:: S_t = S_{t-1} (I - \beta_t k_t k_t^T) + \beta_t v_t k_t^T

    `state` is S_0, (..., value size, key size). Exact, `chunk` steps at a time: within one,
    S_t = S_0 + Σ_{i<=t} u_i k_iᵀ, where the u solve a triangular system,
    u_t + β_t Σ_{i<t} (k_iᵀ k_t) u_i = β_t (v_t - S_0 k_t). So the work is products of matrices and
    not one step after another, and the chunk changes nothing but rounding. Stable where no
    transition expands, 0 <= β |k|² <= 2.

    Cost: for each chunk of C steps, C² (key + value size) + C key * value products, and C² + C *
    (key + value size) numbers.

    Source: Yang et al. 2024, arXiv:2406.06484, section 3 (the WY form of products of reflections).
    """
    found = []
    for begin in range(0, asked.query.shape[-2], chunk):
        part = slice(begin, begin + chunk)
        query, key, value = (one[..., part, :] for one in asked[:3])
        rate = asked.rate[..., part, None]
        # The solver takes the diagonal to be 1.
        overlap = rate * (key @ key.mT).tril(-1)
        wrong = rate * (value - key @ state.mT)
        update = torch.linalg.solve_triangular(overlap, wrong, upper=False, unitriangular=True)
        found.append(query @ state.mT + (query @ key.mT).tril() @ update)
        state = state + update.mT @ key
    return torch.cat(found, dim=-2), state


@final
class DeltaNet(nn.Module):
    r"""Linear attention that first takes away what it had stored under a key.

    .. math::
        S_t = S_{t-1} (I - \beta_t k_t k_t^T) + \beta_t v_t k_t^T, \quad
        y_t = W_o\, \mathrm{norm}(S_t q_t)

    for each head, with q and k = silu(W x) / |silu(W x)|, v = silu(W x), and norm the root mean
    square norm of a head, which hides how long S q is; without ``is_normed`` it is left out. k has
    length 1, so the transition has one eigenvalue 1 - β and else 1: β = σ(w x + b) keeps it in
    (0, 1), and ``has_negative`` takes β = 2 σ(w x + b), so that it lies in (-1, 1), where β = 2 is
    a reflection.

    Shapes: x (batch, length, features), state (batch, heads, size, size) with size = features /
    heads, values by keys; gives y as x is and the last S. Half precision is computed in float32,
    and the state stays float32. Parameters: ``query``, ``key``, ``value``, ``rate``, ``norm``,
    ``out``. Cost as `delta_rule`, whose ``chunk`` this takes.

    Raises: `InputError` for a size below 1, features that the heads do not divide, or an input or
    a state of another shape.

    Source: Yang et al. 2024, arXiv:2406.06484, without its short convolutions; eigenvalues below 0,
    Grazzi et al. 2024, arXiv:2411.12537.
    """

    def __init__(
        self,
        features: int,
        heads: int = 1,
        *,
        has_negative: bool = True,
        is_normed: bool = True,
        chunk: int = 64,
    ) -> None:
        super().__init__()
        check_sizes("DeltaNet", features=features, heads=heads, chunk=chunk)
        if features % heads:
            raise InputError(
                f"DeltaNet: `heads` must divide `features`; got {heads} and {features}. "
                "Choose a divisor."
            )
        self.features, self.heads, self.chunk = features, heads, chunk
        self.has_negative = has_negative
        self.query = nn.Linear(features, features, bias=False)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)
        self.rate = nn.Linear(features, heads)
        self.norm = nn.RMSNorm(features // heads, eps=1e-5) if is_normed else None
        self.out = nn.Linear(features, features, bias=False)

    def _asked(self, x: Tensor) -> Asked:
        """(batch, heads, length, size) each, of x (batch, length, features)."""
        wide, *weights = widened(x, self.query.weight, self.key.weight, self.value.weight)
        query, key, value = (
            functional.silu(functional.linear(wide, one))
            .view(*x.shape[:2], self.heads, -1)
            .transpose(1, 2)
            for one in weights
        )
        rate = functional.linear(*widened(x, self.rate.weight, self.rate.bias)).mT.sigmoid()
        if self.has_negative:
            rate = 2 * rate
        return Asked(
            functional.normalize(query, dim=-1), functional.normalize(key, dim=-1), value, rate
        )

    def _start(self, state: Tensor | None, asked: Asked) -> Tensor:
        size = self.features // self.heads
        shape = (len(asked.query), self.heads, size, size)
        return checked_state("DeltaNet", state, shape, asked.value)

    def _given(self, found: Tensor, x: Tensor) -> Tensor:
        """y of what was read, (batch, heads, length, size)."""
        found, out = widened(found, self.out.weight)
        if self.norm is not None:
            scale = self.norm.weight.to(found.dtype)
            found = functional.rms_norm(found, scale.shape, scale, self.norm.eps)
        return functional.linear(found.transpose(1, 2).flatten(2), out).to(x.dtype)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every y and the last S, for whole sequences."""
        check_sequence("DeltaNet", x, self.features)
        with without_autocast(x):
            asked = self._asked(x)
            found, last = delta_rule(asked, self._start(state, asked), chunk=self.chunk)
            return self._given(found, x), last

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One y, (batch, features), and S."""
        check_row("DeltaNet", x, self.features)
        with without_autocast(x):
            asked = self._asked(x[:, None])
            start = self._start(state, asked)
            wrong = asked.rate[..., None] * (asked.value - asked.key @ start.mT)
            last = start + wrong.mT @ asked.key
            return self._given(asked.query @ last.mT, x)[:, 0], last

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"{self.features}, {self.heads}, has_negative={self.has_negative}"
