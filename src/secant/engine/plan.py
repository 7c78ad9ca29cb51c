"""The plan of a survey: which unit goes to which group and batch.

Holds: ``group_of``, ``Batch``, ``plan_batches``.
May import: the standard library, ``secant.errors``.

A plan depends on the units' content, their order and the seed, never on who runs it.
A batch holds units of one group only, so that each batch is one product per site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from secant.errors import InputError


def group_of(content: bytes, seed: int, groups: int) -> int:
    """The group of a unit, by a hash of its content, so that duplicates share one."""
    digest = hashlib.blake2b(content, key=str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % groups


class Batch(NamedTuple):
    """Positions of units in the data, all of one group."""

    group: int
    units: tuple[int, ...]


def plan_batches(
    contents: Sequence[bytes], lengths: Sequence[int], *, groups: int, size: int, seed: int
) -> list[Batch]:
    """Batches of at most `size` units; within a group the units go by length, to pad little."""
    if size < 1:
        raise InputError(f"batch size must be at least 1; got {size}. Give a positive number.")
    members: list[list[int]] = [[] for _ in range(groups)]
    for unit, content in enumerate(contents):
        members[group_of(content, seed, groups)].append(unit)
    batches = []
    for group, units in enumerate(members):
        units.sort(key=lambda unit: (lengths[unit], unit))
        for start in range(0, len(units), size):
            batches.append(Batch(group, tuple(units[start : start + size])))
    return batches
