"""How long forwards take, in turn.

Holds: ``medians``.
May import: torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

ROUNDS = 7
"""Rounds that count; one before them warms up."""


def medians(
    forwards: Sequence[Callable[[], object]],
    device: torch.device,
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> list[float]:
    """Median seconds of each, without gradients.

    They take turns, so that what else the machine does slows all alike, and each waits for the
    device before and after, so that none is charged with what another left running.
    """
    seconds: list[list[float]] = [[] for _ in forwards]
    with torch.no_grad():
        for round_ in range(ROUNDS + 1):
            for own, forward in zip(seconds, forwards, strict=True):
                started = _now(device)
                forward()
                own.append(_now(device) - started)
            progress("timing", round_ + 1, ROUNDS + 1)
    return [statistics.median(own[1:]) for own in seconds]


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
