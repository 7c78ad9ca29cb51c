"""The linear recurrent network: a tanh RNN without its tanh.

Holds: ``LinearRNN``.
May import: torch, ``secant.nn`` (scan), ``secant.nn.recurrence`` (inputs).
"""

from __future__ import annotations

from typing import final

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
from secant.nn.scan import scan


@final
class LinearRNN(nn.Module):
    r"""A recurrence with a full matrix and nothing else.

    .. math:: h_t = A h_{t-1} + B x_t + b

    At first A is a random rotation or reflection times ``radius``: every eigenvalue has this
    magnitude, so that no direction grows and none is lost before the others. B is normal with
    variance 1 / input_size, b is 0.

    Shapes: x (batch, length, input_size), state (batch, hidden_size); gives h at every step,
    (batch, length, hidden_size), and the last h. Half precision is computed in float32, and the
    state stays float32. Parameters: ``weight_hh`` is A, ``weight_ih`` B, ``bias`` b. Cost:
    hidden_size² a step.

    Raises: `InputError` for a size below 1, a radius that is not positive and finite, or an input
    or a state of another shape.

    Source: Orvieto et al. 2023, arXiv:2303.06349, section 3.1, with a rotation for their normal A.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, bias: bool = True, radius: float = 0.99
    ) -> None:
        super().__init__()
        check_sizes("LinearRNN", input_size=input_size, hidden_size=hidden_size)
        if not 0 < radius < float("inf"):
            raise InputError(
                f"LinearRNN: `radius` must be positive and finite; got {radius}. Below 1 the state "
                "forgets, above 1 it grows without bound."
            )
        self.input_size, self.hidden_size, self.radius = input_size, hidden_size, radius
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw them anew, from torch's generator."""
        nn.init.orthogonal_(self.weight_hh, gain=self.radius)
        nn.init.normal_(self.weight_ih, std=self.input_size**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every h and the last, for whole sequences."""
        check_sequence("LinearRNN", x, self.input_size)
        with without_autocast(x):
            wide, a, b, *bias = widened(x, self.weight_hh, self.weight_ih, self.bias)
            state = checked_state("LinearRNN", state, (len(x), self.hidden_size), wide)
            found = scan(a, functional.linear(wide, b, *bias), state, is_matrix=True)
        return found.to(x.dtype), found[:, -1]

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One h, (batch, hidden_size), twice: as output and as state."""
        check_row("LinearRNN", x, self.input_size)
        with without_autocast(x):
            wide, a, b, *bias = widened(x, self.weight_hh, self.weight_ih, self.bias)
            state = checked_state("LinearRNN", state, (len(x), self.hidden_size), wide)
            found = functional.linear(state, a) + functional.linear(wide, b, *bias)
        return found.to(x.dtype), found

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias is not None}"
