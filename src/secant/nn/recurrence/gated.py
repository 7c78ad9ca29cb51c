"""What layers share whose gates do not see the state: one scan of gate and write, or one step.

Holds: ``Terms``, ``gated_scan``, ``gated_step``.
May import: torch, ``secant.nn`` (scan), ``secant.nn.recurrence`` (inputs).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from secant.nn.recurrence.inputs import check_row, check_sequence, checked_state, without_autocast
from secant.nn.scan import scan


@runtime_checkable
class Terms(Protocol):
    """A layer with h_t = gate_t h_{t-1} + write_t, both of the input alone."""

    input_size: int
    hidden_size: int

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gate and write, (..., hidden_size)."""


def gated_scan(layer: Terms, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every h and the last, for whole sequences."""
    name = type(layer).__name__
    check_sequence(name, x, layer.input_size)
    with without_autocast(x):
        gate, write = layer.terms(x)
        state = checked_state(name, state, (len(x), layer.hidden_size), write)
        found = scan(gate, write, state)
    return found.to(x.dtype), found[:, -1]


def gated_step(layer: Terms, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """One h, (batch, hidden_size), twice: as output and as state."""
    name = type(layer).__name__
    check_row(name, x, layer.input_size)
    with without_autocast(x):
        gate, write = layer.terms(x)
        state = checked_state(name, state, (len(x), layer.hidden_size), write)
        found = gate * state + write
    return found.to(x.dtype), found
