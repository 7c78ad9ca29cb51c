"""Input-dependent diagonal transitions, with eigenvalues from 0 to 1 or from -1 to 1.

Holds: ``DiagonalRNN``.
May import: torch, ``secant.nn`` (scan), ``secant.nn.recurrence`` (gated, inputs).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.nn.recurrence.gated import gated_scan, gated_step
from secant.nn.recurrence.inputs import (
    check_sizes,
    widened,
)


@final
class DiagonalRNN(nn.Module):
    r"""A linear recurrence each of whose units has one eigenvalue, that the input chooses.

    .. math:: h_t = a_t \odot h_{t-1} + W_b x_t + b_b, \quad z_t = W_a x_t + b_a

    with a = σ(z), in (0, 1), or with ``has_negative`` a = 2 σ(z) - 1, in (-1, 1). A negative
    eigenvalue turns the state round, so that two turns cancel: parity needs one. Weights are
    normal with variance 1 / input_size, biases 0.

    Shapes: x (batch, length, input_size), state (batch, hidden_size); gives h at every step,
    (batch, length, hidden_size), and the last. Half precision is computed in float32, and the
    state stays float32. Parameters: ``weight`` (2 hidden_size, input_size), ``bias``; z first.

    Raises: `InputError` for a size below 1, or an input or a state of another shape.

    Source: Grazzi et al. 2024, arXiv:2411.12537, section 3 and 4.3.
    """

    def __init__(self, input_size: int, hidden_size: int, *, has_negative: bool = True) -> None:
        super().__init__()
        check_sizes("DiagonalRNN", input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.has_negative = has_negative
        self.weight = nn.Parameter(torch.randn(2 * hidden_size, input_size) * input_size**-0.5)
        self.bias = nn.Parameter(torch.zeros(2 * hidden_size))

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and write of each step, from the input alone."""
        gate, write = functional.linear(*widened(x, self.weight, self.bias)).chunk(2, dim=-1)
        # tanh(z / 2) = 2 sigmoid(z) - 1, without the cancellation near 0.
        return (gate / 2).tanh() if self.has_negative else gate.sigmoid(), write

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every h and the last, for whole sequences."""
        return gated_scan(self, x, state)

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One h, (batch, hidden_size), twice: as output and as state."""
        return gated_step(self, x, state)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"{self.input_size}, {self.hidden_size}, has_negative={self.has_negative}"
