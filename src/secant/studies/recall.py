"""Associative recall: what a linear state loses that attention does not.

Claim: asked for the value that a key came with, a linear recurrence whose transition no input
chooses (LRU) answers worse than attention at equal parameters, and worse than an LSTM.
Command: ``secant study recall --out DIR``. Cost: about eight minutes on one quiet core.
Published: associative recall, Transformer 100, LSTM 36.2, LRU 11.6 % (github.com/berlino/seq_icl),
on longer sequences and with deeper models. Verdict: from the paired gains over LRU, with 95 %
intervals over seeds: supported if those of attention and of the LSTM begin above 0, refuted if both
end at or below 0, depends if one of each, else undecided. DeltaNet, whose linear state the input
does choose, stands beside them.

A sequence is `PAIRS` steps, each a key and a value, no key twice, and then every key of them once
more, in another order, without a value: what is asked for is the value. Chance is 1 / `VALUES`.

Holds: ``study``; ``pairs``, ``commonest``, ``measure``.
May import: torch, ``secant.readings``, ``secant.surveys`` (versions), ``secant.studies``
(finding, kept, rounding, sequences).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from secant.readings import hardware
from secant.studies.finding import Figure, Finding
from secant.studies.kept import Kept, Progress
from secant.studies.rounding import gains, interval
from secant.studies.sequences import (
    IGNORED,
    Reader,
    combined,
    percent_right,
    share,
    sized,
    trained,
    tuned,
    weights_in,
)
from secant.surveys import versions

KEYS, VALUES, PAIRS = 32, 16, 12
WIDTH, BUDGET, BATCH, STEPS = 32, 8_000, 32, 1000
SEQUENCES = 512
RATES = (0.003, 0.01)
SEEDS = 12  # The LSTM's lead is as large as what its seeds differ by: five left it open.

ARMS: Final = ("LRU", "LSTM", "attention", "DeltaNet in [-1, 1]")
BASE, RIVALS = "LRU", ("attention", "LSTM")
PUBLISHED: Final = {"LRU": 11.6, "LSTM": 36.2, "attention": 100.0}


@final
class Pairs(nn.Module):
    """The sum of a key's and a value's vector; (batch, length, 2) whole numbers in."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(KEYS, WIDTH), nn.Embedding(VALUES + 1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width)."""
        found: Tensor = self.keys(x[..., 0]) + self.values(x[..., 1])
        return found


def pairs(rows: int, draw: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Pairs and then keys alone, (rows, 2 `PAIRS`, 2), and the values that are asked for.

    A missing value is `VALUES`; the label of a step that asks for nothing is `IGNORED`.
    """
    keys = torch.rand(rows, KEYS, generator=draw).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUES, (rows, PAIRS), generator=draw)
    order = torch.rand(rows, PAIRS, generator=draw).argsort(1)
    told = torch.stack([keys, values], dim=-1)
    asked = torch.stack([keys.gather(1, order), torch.full_like(keys, VALUES)], dim=-1)
    labels = torch.cat([torch.full_like(keys, IGNORED), values.gather(1, order)], dim=1)
    return torch.cat([told, asked], dim=1), labels


def commonest(rows: int = 20_000) -> float:
    """How often the value told most often is right, in per cent: what needs no key. By a draw."""
    values = pairs(rows, torch.Generator().manual_seed(0))[0][:, :PAIRS, 1]
    counts = torch.nn.functional.one_hot(values, VALUES).sum(1)
    return 100 * float(counts.amax(1).double().mean()) / PAIRS


def measure(name: str, rate: float, seed: int) -> dict[str, Any]:
    """One net trained, and how often it is right; all arms of a seed are asked the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        core = sized(name, WIDTH, BUDGET)
        net = Reader(Pairs(), core, WIDTH, VALUES)
        loss = trained(net, lambda: pairs(BATCH), rate=rate, steps=STEPS)
    x, labels = pairs(SEQUENCES, torch.Generator().manual_seed(seed))
    return {
        "arm": name, "rate": rate, "seed": seed, "loss": loss, "weights": weights_in(core),
        "score": percent_right(net, x, labels),
    }  # fmt: skip


def study(
    *,
    seed: int = 0,
    seeds: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study, with `SEEDS` seeds if no number is given.

    Each arm's rate is the one that is right most often with a seed of its own; then it is trained
    with each seed. With `out` what was measured is kept there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    seeds = seeds or SEEDS
    settings = {
        "arms": list(ARMS), "keys": KEYS, "values": VALUES, "pairs": PAIRS, "width": WIDTH,
        "budget": BUDGET, "batch": BATCH, "steps": STEPS, "rates": list(RATES),
        "sequences": SEQUENCES, "seeds": seeds,
    }  # fmt: skip
    kept = Kept("recall", settings, len(ARMS) * (len(RATES) + seeds),
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip

    tests = tuned(kept, measure, ARMS, RATES, range(seed, seed + seeds))
    return kept.written(_finding(tests, kept.numbers, settings, seed, kept.seconds))


def _finding(
    tests: dict[str, list[dict[str, Any]]],
    numbers: list[dict[str, Any]],
    settings: dict[str, Any],
    seed: int,
    seconds: float,
) -> Finding:
    scores = {name: [float(one["score"]) for one in found] for name, found in tests.items()}
    figures, verdicts = [], []
    for name, values in scores.items():
        mean = sum(values) / len(values)
        ends = share(interval(values))
        figures.append(Figure(f"{name}, right, %", mean, ends, PUBLISHED.get(name), "undecided"))
    for name in ARMS[1:]:
        over = [one - other for one, other in zip(scores[name], scores[BASE], strict=True)]
        verdict = gains(interval(over))
        if name in RIVALS:
            verdicts.append(verdict)
        published = PUBLISHED[name] - PUBLISHED[BASE] if name in PUBLISHED else None
        figures.append(Figure(f"{name} over {BASE}, points", sum(over) / len(over), interval(over),
                              published, verdict))  # fmt: skip
    sizes = ", ".join(f"{name} {found[0]['weights']:,}" for name, found in tests.items())
    # Every rival must win: a win and a tie decide nothing about the whole claim.
    is_open = "undecided" in verdicts
    return Finding(
        study="recall",
        claim="Asked for the value that a key came with, a linear recurrence whose transition no "
        "input chooses (LRU) answers worse than attention and an LSTM of equal parameters.",
        command=f"secant study recall --seed {seed} --out DIR",
        source="github.com/berlino/seq_icl: Transformer 100, LSTM 36.2, LRU 11.6 %, on longer "
        "sequences and with deeper models",
        verdict="undecided" if is_open else combined(verdicts),
        words=f"{settings['pairs']} pairs of {settings['keys']} keys and {settings['values']} "
        f"values; a guess is right for {100 / settings['values']:.1f} %, the value told most often "
        f"for {commonest():.1f} %. Parameters of the cores: {sizes}. Intervals "
        f"are over {settings['seeds']} seeds, which draw weights and sequences.",
        figures=figures,
        curves=[],
        foot="",
        numbers=numbers,
        settings=settings,
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )
