"""The linear recurrence h_t = a_t h_(t-1) + b_t along a sequence, step by step.

Holds: ``scan``.
May import: torch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan(
    a: Tensor,
    b: Tensor,
    initial: Tensor | None = None,
    *,
    is_matrix: bool = False,
    reverse: bool = False,
    route: str | None = None,
) -> Tensor:
    """All h_t of h_t = a_t h_(t-1) + b_t, (batch, length, ...) as b is.

    `a` broadcasts against b; with `is_matrix` it is (..., n, n) and its first dimensions
    broadcast against those of b (batch, length, ..., n). `initial` is h_0, (batch, ...), else 0.
    With `reverse` the recurrence runs from the last step to the first. There is one `route`.
    """
    if is_matrix:
        a = a.expand(*(b[..., None] * a[..., :1]).shape[:-1], a.shape[-1])
        b = b.expand(a.shape[:-1])
    else:
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
    hidden = torch.zeros_like(b[:, 0]) if initial is None else initial.to(b.dtype)
    steps = range(b.shape[1])
    found: list[Tensor] = []
    for t in reversed(steps) if reverse else steps:
        moved = (a[:, t] @ hidden[..., None])[..., 0] if is_matrix else a[:, t] * hidden
        hidden = moved + b[:, t]
        found.append(hidden)
    return torch.stack(found[::-1] if reverse else found, dim=1)
