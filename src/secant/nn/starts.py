"""The functions that trainable activations start from, by name.

Holds: ``STARTS``, ``Start``, ``started``.
May import: torch, ``secant.errors``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from secant.errors import InputError

Start = str | Callable[[Tensor], Tensor]

STARTS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "exp": torch.exp,
    "sin": torch.sin,
}


def started(start: Start) -> Callable[[Tensor], Tensor]:
    """The function of a name, or the function itself.

    Raises: `InputError` for a name that is not in `STARTS`.
    """
    if not isinstance(start, str):
        return start
    if start not in STARTS:
        raise InputError(
            f"an activation must start from one of {', '.join(STARTS)}, or from a function of a "
            f"tensor; got {start!r}. Choose one."
        )
    return STARTS[start]


def span_of(span: tuple[float, float]) -> tuple[float, float]:
    """The span itself, if it has a length.

    Raises: `InputError` if it has none.
    """
    low, high = span
    if not -float("inf") < low < high < float("inf"):
        raise InputError(
            f"`span` must be two finite numbers, the lower first; got ({low}, {high}). "
            "Give the range of inputs that the activation is to follow its start on."
        )
    return low, high
