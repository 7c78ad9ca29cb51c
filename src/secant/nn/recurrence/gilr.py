"""Gates that see the input only: the gated impulse linear recurrent layer, and an LSTM made of it.

Holds: ``GILR``, ``GILRLSTM``.
May import: torch, ``secant.errors``, ``secant.nn`` (scan, starts), ``secant.nn.recurrence``
(gated, inputs).
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.nn.recurrence.gated import gated_scan, gated_step
from secant.nn.recurrence.inputs import (
    check_row,
    check_sequence,
    check_sizes,
    checked_state,
    widened,
    without_autocast,
)
from secant.nn.scan import scan
from secant.nn.starts import Start, started


def _drawn(rows: int, columns: int) -> nn.Parameter:
    """Normal, so that a row of unit variance gives unit variance."""
    return nn.Parameter(torch.randn(rows, columns) * columns**-0.5)


@final
class GILR(nn.Module):
    r"""A gated linear average of what the input says at each step.

    .. math::
        g_t = \sigma(W_g x_t + b_g), \quad i_t = \tau(W_i x_t + b_i), \quad
        h_t = g_t \odot h_{t-1} + (1 - g_t) \odot i_t

    Neither gate nor impulse sees h: in h the recurrence is linear, so that a scan runs it. Its
    eigenvalues are the gates, from 0 to 1. τ is ``activation``, a name in
    `secant.nn.starts.STARTS` or a function. Weights are normal with variance 1 / input_size,
    biases 0.

    Shapes: x (batch, length, input_size), state (batch, hidden_size); gives h at every step,
    (batch, length, hidden_size), and the last. Half precision is computed in float32, and the
    state stays float32. Parameters: ``weight`` (2 hidden_size, input_size), ``bias``; gate first.

    Raises: `InputError` for a size below 1, a name that is not known, or an input or a state of
    another shape.

    Source: Martin and Cundy 2018, arXiv:1709.04057, section 3.1.
    """

    def __init__(self, input_size: int, hidden_size: int, *, activation: Start = "tanh") -> None:
        super().__init__()
        check_sizes("GILR", input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.activation = started(activation)
        self.weight = _drawn(2 * hidden_size, input_size)
        self.bias = nn.Parameter(torch.zeros(2 * hidden_size))

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and write of each step, from the input alone."""
        gate, impulse = functional.linear(*widened(x, self.weight, self.bias)).chunk(2, dim=-1)
        # 1 - sigmoid(z), without the cancellation where the gate is nearly open.
        return gate.sigmoid(), (-gate).sigmoid() * self.activation(impulse)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Every h and the last, for whole sequences."""
        return gated_scan(self, x, state)

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One h, (batch, hidden_size), twice: as output and as state."""
        return gated_step(self, x, state)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"{self.input_size}, {self.hidden_size}"


class GILRLSTMState(NamedTuple):
    """Two states, (batch, hidden_size) each: the stand-in for h, and the LSTM's cell."""

    surrogate: Tensor
    cell: Tensor


@final
class GILRLSTM(nn.Module):
    r"""An LSTM whose gates see a linear stand-in for its last output: two scans, and no loop.

    .. math::
        \tilde h_t = \mathrm{GILR}(x)_t, \quad
        (f_t, i_t, o_t) = \sigma(U \tilde h_{t-1} + V x_t + b), \quad
        z_t = \tanh(U_z \tilde h_{t-1} + V_z x_t + b_z)

    .. math:: c_t = f_t \odot c_{t-1} + i_t \odot z_t, \quad h_t = o_t \odot c_t

    Shapes: x (batch, length, input_size), state a `GILRLSTMState`; gives h at every step,
    (batch, length, hidden_size), and the last state. Half precision is computed in float32, and
    the state stays float32. Parameters: those of ``surrogate``, a `GILR`; ``weight_ih`` is V,
    ``weight_hh`` U, (4 hidden_size, ...), and ``bias``; f, i, o, z in this order.

    Raises: `InputError` as `GILR`.

    Source: Martin and Cundy 2018, arXiv:1709.04057, section 3.2.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        check_sizes("GILRLSTM", input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.surrogate = GILR(input_size, hidden_size)
        self.weight_ih = _drawn(4 * hidden_size, input_size)
        self.weight_hh = _drawn(4 * hidden_size, hidden_size)
        self.bias = nn.Parameter(torch.zeros(4 * hidden_size))

    def _gates(self, wide: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, u, v, b = widened(wide, self.weight_hh, self.weight_ih, self.bias)
        all_four = functional.linear(before, u) + functional.linear(wide, v, b)
        forget, take, give, new = all_four.chunk(4, dim=-1)
        return forget.sigmoid(), take.sigmoid() * new.tanh(), give.sigmoid()

    def _start(self, state: GILRLSTMState | None, wide: Tensor) -> GILRLSTMState:
        shape = (len(wide), self.hidden_size)
        given = (None, None) if state is None else state
        return GILRLSTMState(*(checked_state("GILRLSTM", one, shape, wide) for one in given))

    def forward(
        self, x: Tensor, state: GILRLSTMState | None = None
    ) -> tuple[Tensor, GILRLSTMState]:
        """Every h and the last state, for whole sequences."""
        check_sequence("GILRLSTM", x, self.input_size)
        with without_autocast(x):
            (wide,) = widened(x)
            start = self._start(state, wide)
            stand_in, last = self.surrogate(wide, start.surrogate)
            before = torch.cat([start.surrogate[:, None], stand_in[:, :-1]], dim=1)
            forget, write, give = self._gates(wide, before)
            cell = scan(forget, write, start.cell)
            return (give * cell).to(x.dtype), GILRLSTMState(last, cell[:, -1])

    def step(self, x: Tensor, state: GILRLSTMState | None = None) -> tuple[Tensor, GILRLSTMState]:
        """One h, (batch, hidden_size), and the state."""
        check_row("GILRLSTM", x, self.input_size)
        with without_autocast(x):
            (wide,) = widened(x)
            start = self._start(state, wide)
            forget, write, give = self._gates(wide, start.surrogate)
            cell = forget * start.cell + write
            _, last = self.surrogate.step(wide, start.surrogate)
            return (give * cell).to(x.dtype), GILRLSTMState(last, cell)

    def extra_repr(self) -> str:
        """What it was made with."""
        return f"{self.input_size}, {self.hidden_size}"
