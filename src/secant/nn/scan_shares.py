"""Shares of a scan's batch and lanes, one a thread.

Holds: ``in_shares``.
May import: torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import torch

# What a thread costs to start and join is what it takes to move about so much.
SHARE_BYTES: Final = 512 << 10
# Shares of lanes start at whole cache lines, of 64 bytes, for the smallest type.
ALIGNED: Final = 16

Range = tuple[int, int]


def _cut(count: int, parts: int, unit: int) -> list[Range]:
    """At most `parts` ranges of about one size, that start at multiples of `unit`."""
    units = -(-count // unit)
    edges = [min(count, units * one // parts * unit) for one in range(parts + 1)]
    return [(low, high) for low, high in pairwise(edges) if high > low]


def in_shares(
    work: Callable[[Range, Range], None], batch: int, lanes: int, size: int, unit: int = ALIGNED
) -> None:
    """Run ``work(batches, lanes)`` over all of both, on as many threads as torch has.

    `size`: bytes that are moved, for small work stays on one; `unit`: shares of lanes start at its
    multiples.

    Threads are Python's: the kernels let go of its lock. They live for this call, so that a fork
    between calls finds none. What one of them raises is raised here.
    """
    threads = min(torch.get_num_threads(), max(1, size // SHARE_BYTES))
    if batch >= threads:
        jobs = [(one, (0, lanes)) for one in _cut(batch, threads, 1)]
    else:
        jobs = [((0, batch), one) for one in _cut(lanes, threads, unit)]
    failed: list[BaseException] = []

    def guarded(job: tuple[Range, Range]) -> None:
        try:
            work(*job)
        except BaseException as error:  # raised again where the caller waits
            failed.append(error)

    helpers = [threading.Thread(target=guarded, args=(job,)) for job in jobs[1:]]
    for one in helpers:
        one.start()
    if jobs:
        guarded(jobs[0])
    for one in helpers:
        one.join()
    if failed:
        raise failed[0]
