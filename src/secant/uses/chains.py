"""Chains of linear modules, found before a model is exported: a hundred thousand are no graph.

Holds: ``Chain``, ``shortened``; ``cheapest``, where a chain is worth cutting.
May import: torch, ``secant.uses.products``.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from secant.uses.products import Rounded, chained, rounded

Progress = Callable[[int, int], None]
IDLE = (nn.Identity, nn.Dropout, nn.AlphaDropout)


@dataclass(frozen=True)
class Chain:
    """Linear modules of one `nn.Sequential`, joined or, for `reason`, left as they were.

    `work` counts products a row, `parts` what the chain became. `relative` bounds the error of
    the joined weights, relative, before they are rounded to the model's type.
    """

    place: str
    modules: int
    parts: int
    work_before: int
    work: int
    relative: float
    reason: str


def shortened(
    model: nn.Module, *, is_untying: bool, progress: Progress
) -> tuple[nn.Module, list[Chain]]:
    """A copy of the model whose chains of linear modules are joined where that saves work.

    A weight that another module holds as well stays as it is unless `is_untying`.
    """
    owners = Counter(
        id(one) for module in model.modules() for one in module._parameters.values()
        if one is not None
    )  # fmt: skip
    tied = set() if is_untying else {key for key, count in owners.items() if count > 1}
    chains: list[Chain] = []
    memo: dict[int, nn.Module] = {}
    for name, module in _outermost(model, ""):
        made = _of_sequence(module, name or "(model)", tied, chains, progress)
        if made is not None:
            memo[id(module)] = made
    if id(model) in memo:
        return memo[id(model)], chains
    return copy.deepcopy(model, memo), chains


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Sequential]]:
    """Sequences that no other sequence holds directly."""
    if type(module) is nn.Sequential and not _is_watched(module):
        yield name, module
        for number, child in enumerate(_leaves(module)):
            if not isinstance(child, (nn.Linear, *IDLE)):
                yield from _outermost(child, f"{name}.{number}" if name else str(number))
        return
    for key, child in module.named_children():
        yield from _outermost(child, f"{name}.{key}" if name else key)


def _leaves(sequence: nn.Sequential) -> Iterator[nn.Module]:
    """What runs, in order, through sequences within it."""
    for child in sequence._modules.values():
        assert child is not None
        if type(child) is nn.Sequential and not _is_watched(child):
            yield from _leaves(child)
        else:
            yield child


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks may change or see what it does."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _of_sequence(
    sequence: nn.Sequential, name: str, tied: set[int], chains: list[Chain], progress: Progress
) -> nn.Sequential | None:
    """The sequence with its chains joined; None if none is."""
    leaves = list(_leaves(sequence))
    made: list[nn.Module | None] = []  # None: as it was, to be copied if anything is joined
    start = 0
    while start < len(leaves):
        end = start
        while end < len(leaves) and _is_joinable(leaves[end], tied):
            end += 1
        linears = [one for one in leaves[start:end] if isinstance(one, nn.Linear)]
        joined = None
        if len(linears) > 1:
            joined = _joined(linears, f"{name}, {start} to {end - 1}", chains, progress)
        if joined is not None:
            made += [*joined, *[None] * (end < len(leaves))]
            leaves[start:end] = joined
            end = start + len(joined)
        else:
            made += [None] * (min(end + 1, len(leaves)) - start)
        start = end + 1
    if all(one is None for one in made):
        return None
    parts = [
        copy.deepcopy(old) if new is None else new for old, new in zip(leaves, made, strict=True)
    ]
    return nn.Sequential(*parts).train(sequence.training)


def _is_joinable(module: nn.Module, tied: set[int]) -> bool:
    if _is_watched(module):
        return False
    if type(module) is nn.Linear:
        return not any(id(one) in tied for one in module.parameters())
    if type(module) is nn.LeakyReLU:
        return module.negative_slope == 1
    if type(module) is nn.PReLU:
        return bool((module.weight == 1).all())
    return type(module) in IDLE and not module.training


def _joined(
    linears: Sequence[nn.Linear], place: str, chains: list[Chain], progress: Progress
) -> list[nn.Module] | None:
    """The chain in as few products as are worth it; None if it stays as it is."""
    widths = [linears[0].in_features, *(one.out_features for one in linears)]
    cuts = cheapest(widths)
    before = sum(a * b + b for a, b in pairwise(widths))
    work = sum(widths[a] * widths[b] + widths[b] for a, b in pairwise(cuts))
    if work >= before:
        reason = "joining them would save no work"
        chains.append(Chain(place, len(linears), len(linears), before, before, 0.0, reason))
        return None
    made: list[nn.Module] = []
    relative = 0.0
    done = 0
    for first, last in pairwise(cuts):
        part = linears[first:last]
        if len(part) == 1:
            made.append(copy.deepcopy(part[0]))
            continue
        with torch.no_grad():
            chain = chained([one.weight for one in part], [one.bias for one in part])
        found = rounded(chain, part[0].weight.dtype)
        done += len(part)
        progress(done, len(linears))
        if found.weight is None:
            chains.append(
                Chain(place, len(linears), len(linears), before, before, found.relative,
                      found.reason)
            )  # fmt: skip
            return None
        made.append(_linear(found, has_bias=any(one.bias is not None for one in part)))
        relative = max(relative, found.relative)
    chains.append(Chain(place, len(linears), len(made), before, work, relative, ""))
    return made


def _linear(found: Rounded, *, has_bias: bool) -> nn.Linear:
    assert found.weight is not None
    out, into = found.weight.shape
    made = nn.Linear(into, out, bias=has_bias, device="meta", dtype=found.weight.dtype)
    made.weight = nn.Parameter(found.weight)
    if has_bias:
        assert found.shift is not None
        made.bias = nn.Parameter(found.shift)
    return made


def cheapest(widths: Sequence[int]) -> list[int]:
    """Where to cut a chain of maps of these widths so that Σ (in·out + out) of the parts is least.

    Of equal widths in a row the first alone can be a cut. The least over all earlier cuts i of
    f_i + d_i·d_j is the lower envelope of lines, kept in a tree (Li Chao): O(k log k).
    """
    ends = [
        place for place, width in enumerate(widths)
        if place in (0, len(widths) - 1) or width != widths[place - 1]
    ]  # fmt: skip
    lines = _Envelope(sorted(set(widths)))
    cost, before = {0: 0}, {0: 0}
    lines.add(widths[0], 0, 0)
    for place in ends[1:]:
        value, cut = lines.least(widths[place])
        cost[place], before[place] = value + widths[place], cut
        lines.add(widths[place], cost[place], place)
    cuts = [len(widths) - 1]
    while cuts[-1]:
        cuts.append(before[cuts[-1]])
    return cuts[::-1]


class _Envelope:
    """The least of lines slope·x + start at whole x out of a list."""

    def __init__(self, places: list[int]) -> None:
        self.places = places
        self.lines: dict[int, tuple[int, int, int]] = {}

    def add(self, slope: int, start: int, name: int) -> None:
        """One more line."""
        line, node, low, high = (slope, start, name), 1, 0, len(self.places) - 1
        while node in self.lines:
            middle = (low + high) // 2
            other = self.lines[node]
            x = self.places[middle]
            if line[0] * x + line[1] < other[0] * x + other[1]:
                self.lines[node], line = line, other
                other = self.lines[node]
            if low == high:
                return
            x = self.places[low]
            if line[0] * x + line[1] < other[0] * x + other[1]:
                node, high = 2 * node, middle
            else:
                node, low = 2 * node + 1, middle + 1
        self.lines[node] = line

    def least(self, x: int) -> tuple[int, int]:
        """The least value at `x`, and the name of its line."""
        best, node, low, high = (math.inf, 0), 1, 0, len(self.places) - 1
        while node in self.lines:
            slope, start, name = self.lines[node]
            best = min(best, (slope * x + start, name))
            middle = (low + high) // 2
            if low == high:
                break
            if x <= self.places[middle]:
                node, high = 2 * node, middle
            else:
                node, low = 2 * node + 1, middle + 1
        return int(best[0]), best[1]
