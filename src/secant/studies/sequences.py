"""What the studies of recurrences share: a reader around any core, equal sizes, training, verdicts.

Holds: ``Reader``, ``CORES``, ``sized``, ``trained``, ``percent_right``, ``tuned``,
``combined``, ``share``.
May import: torch, ``secant.errors``, ``secant.nn``, ``secant.studies`` (finding, kept).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from secant.errors import InputError
from secant.nn.recurrence import LRU, DeltaNet, DiagonalRNN
from secant.studies.finding import Verdict
from secant.studies.kept import Kept

IGNORED: Final = -100
WARM_UP: Final = 100
CLIP: Final = 1.0
TUNING_SEED: Final = 1_000_003
"""Rates are chosen on sequences, and with weights, that no seed draws."""


@final
class Between(nn.Module):
    """A recurrent layer with linear maps around it, so that its own width is free."""

    def __init__(self, layer: nn.Module, into: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.into, self.layer, self.out = into, layer, out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same; the last state is left."""
        found: Tensor = self.out(self.layer(self.into(x))[0])
        return found


@final
class Attention(nn.Module):
    """Causal softmax attention with one head."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, 3 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same."""
        query, key, value = self.into(x).chunk(3, dim=-1)
        found: Tensor = self.out(scaled_dot_product_attention(query, key, value, is_causal=True))
        return found


def _delta(has_negative: bool) -> Callable[[int, int], nn.Module]:
    """Without its norm: how long the state is tells what it holds."""

    def made(width: int, hidden: int) -> nn.Module:
        layer = DeltaNet(hidden, has_negative=has_negative, is_normed=False)
        return Between(layer, nn.Linear(width, hidden), nn.Linear(hidden, width))

    return made


def _diagonal(has_negative: bool) -> Callable[[int, int], nn.Module]:
    def made(width: int, hidden: int) -> nn.Module:
        layer = DiagonalRNN(width, hidden, has_negative=has_negative)
        return Between(layer, nn.Identity(), nn.Linear(hidden, width))

    return made


CORES: Final[dict[str, Callable[[int, int], nn.Module]]] = {
    "LRU": lambda width, hidden: Between(
        # The paper's ring for tasks that need long memory.
        LRU(width, hidden, r_min=0.9, r_max=0.999), nn.Identity(), nn.Identity()
    ),
    "LSTM": lambda width, hidden: Between(
        nn.LSTM(width, hidden, batch_first=True), nn.Identity(), nn.Linear(hidden, width)
    ),
    "tanh RNN": lambda width, hidden: Between(
        nn.RNN(width, hidden, batch_first=True), nn.Identity(), nn.Linear(hidden, width)
    ),
    "DeltaNet in [0, 1]": _delta(False),
    "DeltaNet in [-1, 1]": _delta(True),
    "diagonal in [0, 1]": _diagonal(False),
    "diagonal in [-1, 1]": _diagonal(True),
    "attention": Attention,
}  # fmt: skip
"""Each core of a width and a hidden size: (batch, length, width) to the same."""


def weights_in(module: nn.Module) -> int:
    """The number of its parameters."""
    return sum(one.numel() for one in module.parameters())


def sized(name: str, width: int, budget: int) -> nn.Module:
    """The core whose number of parameters is nearest to `budget`, of at least one hidden unit."""
    make = CORES[name]

    def count(hidden: int) -> int:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return weights_in(make(width, hidden))

    low, high = 1, 2
    while count(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return make(width, min((low, high), key=lambda hidden: abs(count(hidden) - budget)))


@final
class Reader(nn.Module):
    """One block: x + core(norm(x)), then x + mlp(norm(x)), then a norm and the outputs.

    `first` makes (batch, length, width) of what comes in.
    """

    def __init__(self, first: nn.Module, core: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.core = first, core
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.out = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, outputs)."""
        read = self.first(x)
        read = read + self.core(self.before(read))
        found: Tensor = self.out(read + self.mlp(self.between(read)))
        return found


def trained(
    net: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    *,
    rate: float,
    steps: int,
    smoothing: float = 0.0,
) -> float:
    """Train by Adam, whose rate rises at first and then stays; the last loss.

    Gradients are clipped at norm `CLIP`. Labels (batch, length) that are `IGNORED` do not count.
    With `smoothing` the right label has this much less than all the probability: the logits that
    are best are then finite and the same at every place, so that a state which fades along the
    sequence still has a derivative when every answer is right.

    Raises: `InputError` for a loss that is not finite, which training cannot come back from.
    """
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / WARM_UP)
    )
    last = float("nan")
    for _ in range(steps):
        x, labels = batch()
        logits, wanted = net(x).flatten(0, 1), labels.flatten()
        loss = cross_entropy(logits, wanted, ignore_index=IGNORED, label_smoothing=smoothing)
        last = float(loss.detach())
        if not last < float("inf"):
            raise InputError(
                f"training must keep its loss finite; got {last} at rate {rate}. Lower the rate."
            )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimiser.step()
        schedule.step()
    return last


def percent_right(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    """How many of the labels (batch, length) that are not `IGNORED` the net gives."""
    with torch.no_grad():
        right = (net(x).argmax(-1) == labels)[labels != IGNORED]
    return 100 * float(right.double().mean())


def tuned(
    kept: Kept,
    measure: Callable[[str, float, int], dict[str, Any]],
    arms: Sequence[str],
    rates: Sequence[float],
    seeds: range,
) -> dict[str, list[dict[str, Any]]]:
    """What each arm came to, a seed each, at the rate whose `score` is best with another seed.

    `measure` takes arm, rate and seed; of equal scores the one with the lower `loss` is best.
    """
    tests = {}
    for place, name in enumerate(arms):

        def run(rate: float, one: int, name: str = name, place: int = place) -> dict[str, Any]:
            return kept(f"{place}-{rate:g}-{one}", lambda: measure(name, rate, one))

        tried = [run(rate, TUNING_SEED + seeds.start) for rate in rates]
        best = max(tried, key=lambda one: (one["score"], -one["loss"]))
        tests[name] = [run(best["rate"], one) for one in seeds]
    return tests


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of several: theirs if those that are decided agree, depends if they do not."""
    decided = {one for one in verdicts if one != "undecided"}
    if not decided:
        return "undecided"
    return decided.pop() if len(decided) == 1 else "depends"


def share(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    """An interval of percentages held to 0 and 100, which Student's does not know."""
    return None if ends is None else (max(ends[0], 0.0), min(ends[1], 100.0))
