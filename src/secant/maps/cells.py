"""One step of a recurrence as a plain function of state and input, one row each.

Holds: ``Step``, ``Cell``, ``torch_cell`` (RNN, GRU, LSTM from their weights), ``stepped_cell``
(any module with a ``step``), ``packed`` and ``unpacked``, states as rows of real numbers.
May import: torch, ``secant.errors``.

torch's fused recurrences have no forward-mode derivative and hide the cell state of an LSTM;
here each step is written out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secant.errors import InputError

Step = Callable[[Tensor, Tensor], Tensor]
"""(rows, state) and (rows, inputs) to the next (rows, state)."""


@dataclass(frozen=True)
class Cell:
    """h_t = step(h_{t-1}, u_t); the first `outputs` entries of the state are what it hands on.

    For a cell that hands on something else of its state, `outputs` is 0.
    """

    step: Step
    state: int
    outputs: int


def torch_cell(kind: str, weights: dict[str, Tensor], activation: str = "tanh") -> Cell:
    """The step of torch's ``RNN``, ``GRU`` or ``LSTM`` from its own weights.

    `weights` holds ``weight_ih``, ``weight_hh`` and, where there are any, ``bias_ih``,
    ``bias_hh`` and an LSTM's projection ``weight_hr``. The state of an LSTM is (h, c) side by side.

    Source: the formulas of torch's documentation, whose gate order the weights have.
    """
    w_in, w_state = weights["weight_ih"], weights["weight_hh"]
    b_in, b_state = weights.get("bias_ih"), weights.get("bias_hh")
    project = weights.get("weight_hr")
    width = w_state.shape[1]

    def rnn(h: Tensor, u: Tensor) -> Tensor:
        whole = functional.linear(u, w_in, b_in) + functional.linear(h, w_state, b_state)
        return whole.tanh() if activation == "tanh" else whole.relu()

    def gru(h: Tensor, u: Tensor) -> Tensor:
        r_in, z_in, n_in = functional.linear(u, w_in, b_in).chunk(3, -1)
        r_state, z_state, n_state = functional.linear(h, w_state, b_state).chunk(3, -1)
        reset, keep = (r_in + r_state).sigmoid(), (z_in + z_state).sigmoid()
        return (1 - keep) * (n_in + reset * n_state).tanh() + keep * h

    def lstm(state: Tensor, u: Tensor) -> Tensor:
        h, c = state[..., :width], state[..., width:]
        whole = functional.linear(u, w_in, b_in) + functional.linear(h, w_state, b_state)
        enter, forget, new, leave = whole.chunk(4, -1)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        h = leave.sigmoid() * c.tanh()
        return torch.cat([h if project is None else functional.linear(h, project), c], -1)

    if kind == "LSTM":
        return Cell(lstm, width + w_state.shape[0] // 4, width)
    return Cell({"RNN": rnn, "GRU": gru}[kind], width, width)


def stepped_cell(module: nn.Module, like: Any) -> Cell:
    """The step of a module with ``step(x_t, state) -> (output, state)``.

    `like` is a state it returned, a tensor or tuple of tensors that begin with the batch; complex
    entries become two real ones, the real part first.
    """

    def step(h: Tensor, u: Tensor) -> Tensor:
        return packed(module.step(u, unpacked(h, like))[1], module)  # type: ignore[operator]

    return Cell(step, packed(like, module).shape[1], 0)


def packed(state: Any, module: nn.Module) -> Tensor:
    """A state as (rows, entries), real.

    Raises: `InputError` unless it is a tensor or a tuple of tensors of floats.
    """
    parts = state if isinstance(state, tuple | list) else (state,)
    rows = []
    for part in parts:
        if not isinstance(part, Tensor) or not (part.is_floating_point() or part.is_complex()):
            what = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise InputError(
                f"{type(module).__name__}.step: expected a state of tensors of floats; got {what}. "
                "Return a tensor or a tuple of tensors that begin with the batch."
            )
        rows.append((torch.view_as_real(part) if part.is_complex() else part).flatten(1))
    return torch.cat(rows, 1)


def unpacked(rows: Tensor, like: Any) -> Any:
    """The state that `packed` gives these rows for, with the structure and types of `like`."""
    parts = list(like) if isinstance(like, tuple | list) else [like]
    sizes = [part[0].numel() * (2 if part.is_complex() else 1) for part in parts]
    made = []
    for part, piece in zip(parts, torch.split(rows, sizes, 1), strict=True):
        shape = (len(rows), *part.shape[1:])
        if part.is_complex():
            made.append(torch.view_as_complex(piece.reshape(*shape, 2)))
        else:
            made.append(piece.reshape(shape))
    if not isinstance(like, tuple | list):
        return made[0]
    return type(like)(*made) if hasattr(like, "_fields") else type(like)(made)
