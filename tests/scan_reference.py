"""The recurrence typed as it is defined, for the tests of scans.

Holds: ``naive``, ``drawn``, ``route_or_skip``.
May import: pytest, torch, ``secant.nn``.
"""

import pytest
import torch

from secant.nn import scan_routes


def naive(a, b, initial=None, *, is_matrix=False, reverse=False):
    """h_t = a_t h_{t-1} + b_t, a state at a time, with torch's own derivatives."""
    steps = b.shape[1]
    a = a.expand((*b.shape, b.shape[-1]) if is_matrix else b.shape)
    state = torch.zeros_like(b[:, 0]) if initial is None else initial.expand_as(b[:, 0])
    states = [state] * steps
    for time in reversed(range(steps)) if reverse else range(steps):
        now = a[:, time] * (state.unsqueeze(-2) if is_matrix else state)
        state = states[time] = (now.sum(-1) if is_matrix else now) + b[:, time]
    return torch.stack(states, dim=1)


def drawn(shape, dtype=torch.float64, seed=0):
    """Coefficients of at most 1 in absolute value, so that no error grows; some are 0."""
    random = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, dtype=dtype, generator=random)
    found = found / found.abs().clamp_min(1)
    return found * (torch.rand(shape, generator=random) > 0.1)


def route_or_skip(route):
    """The route, if it can run here; says aloud why not."""
    absent = scan_routes()[route].absent
    if absent is not None:
        pytest.skip(absent)
    return route
