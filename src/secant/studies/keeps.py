"""What a linear state keeps: digits read row by row, and symbols copied after a long wait.

Claim: where a task needs memory but no nonlinear state, a linear recurrence (LRU) is right at
least as often as an LSTM and a tanh RNN of as many parameters, and over a long wait more often.
Command: ``secant study keeps --out DIR``. Cost: about ten minutes on one quiet core.
Published: the LRU beats the tanh RNN on the long-range arena (Orvieto et al. 2023,
arXiv:2303.06349); no figure is known for these two tasks. Verdict: from the paired gains of the LRU
over either, on either task, with 95 % intervals over seeds: supported if some begin above 0 and
none ends below it, refuted if some end below 0 and none begins above, depends if both happen, else
undecided.

Digits: scikit-learn's, 8 rows of 8, classified after the last row. Copy: `SYMBOLS` out of
`ALPHABET`, `WAIT` blanks, then as many marks, at each of which a symbol is asked for, in order;
chance is 1 / `ALPHABET`. Rates are chosen on digits that are not the test's, or on other symbols.

Holds: ``study``; ``copies``, ``digits``, ``measure``, ``leads``.
May import: torch, ``secant.readings``, ``secant.surveys`` (versions), ``secant.studies``
(finding, kept, rounding, sequences).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from secant.readings import hardware
from secant.studies.finding import Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.studies.rounding import Set, interval, task
from secant.studies.sequences import (
    IGNORED,
    TUNING_SEED,
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

ALPHABET, SYMBOLS, WAIT = 8, 5, 100
ROWS = 8
WIDTH, BUDGET, BATCH = 32, 8_000, 32
STEPS: Final = {"digits": 600, "copy": 800}
SEQUENCES = 512
RATES = (0.003, 0.01)
SEEDS = 5
CORES_OF: Final = ("LRU", "LSTM", "tanh RNN")
TASKS: Final = ("digits", "copy")
ARMS: Final = [f"{what}: {name}" for what in TASKS for name in CORES_OF]


def copies(rows: int, draw: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Symbols, blanks, marks, (rows, 2 `SYMBOLS` + `WAIT`), and what is asked for at the marks."""
    told = torch.randint(ALPHABET, (rows, SYMBOLS), generator=draw)
    blank, mark = torch.full((rows, WAIT), ALPHABET), torch.full((rows, SYMBOLS), ALPHABET + 1)
    silent = torch.full((rows, SYMBOLS + WAIT), IGNORED)
    return torch.cat([told, blank, mark], dim=1), torch.cat([silent, told], dim=1)


def digits(of: Set, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Rows of images, (count, 8, 8), and the class at the last row, nothing before."""
    x = of.rows[chosen].unflatten(1, (ROWS, -1))  # type: ignore[no-untyped-call]
    labels = torch.full(x.shape[:2], IGNORED)
    labels[:, -1] = of.classes[chosen]
    return x, labels


def measure(arm: str, rate: float, seed: int, split: int = 0) -> dict[str, Any]:
    """One net trained, and how often it is right; all arms of a seed are asked the same.

    A seed past `TUNING_SEED` is asked about the validation digits, any other about the test's.
    """
    what, name = arm.split(": ")
    is_copy = what == "copy"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        core = sized(name, WIDTH, BUDGET)
        if is_copy:
            first: nn.Module = nn.Embedding(ALPHABET + 2, WIDTH)
            net = Reader(first, core, WIDTH, ALPHABET)
            loss = trained(net, lambda: copies(BATCH), rate=rate, steps=STEPS[what])
            x, labels = copies(SEQUENCES, torch.Generator().manual_seed(seed))
        else:
            parts = task("demo:digits", "x", None, split)
            size = len(parts.train.rows)
            net = Reader(nn.Linear(parts.train.rows.shape[1] // ROWS, WIDTH), core, WIDTH, 10)
            draw = lambda: digits(parts.train, torch.randint(size, (BATCH,)))  # noqa: E731
            loss = trained(net, draw, rate=rate, steps=STEPS[what])
            x, labels = digits(parts.validation if seed >= TUNING_SEED else parts.test, slice(None))
    return {
        "arm": arm, "rate": rate, "seed": seed, "loss": loss, "weights": weights_in(core),
        "score": percent_right(net, x, labels),
    }  # fmt: skip


def leads(ends: tuple[float, float] | None) -> Verdict:
    """Whether a gain is above 0 or below it, as far as its interval tells; a tie is neither."""
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "undecided"
    return "supported" if ends[0] > 0 else "refuted"


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
    with each seed. The split of the digits is that of `seed`. With `out` what was measured is kept
    there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    seeds = seeds or SEEDS
    settings = {
        "arms": ARMS, "alphabet": ALPHABET, "symbols": SYMBOLS, "wait": WAIT, "width": WIDTH,
        "budget": BUDGET, "batch": BATCH, "steps": STEPS, "rates": list(RATES),
        "sequences": SEQUENCES, "seeds": seeds,
    }  # fmt: skip
    kept = Kept("keeps", settings, len(ARMS) * (len(RATES) + seeds),
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip
    tests = tuned(kept, partial(measure, split=seed), ARMS, RATES, range(seed, seed + seeds))
    return kept.written(_finding(tests, kept.numbers, settings, seed, kept.seconds))


def _finding(
    tests: dict[str, list[dict[str, Any]]],
    numbers: list[dict[str, Any]],
    settings: dict[str, Any],
    seed: int,
    seconds: float,
) -> Finding:
    scores = {arm: [float(one["score"]) for one in found] for arm, found in tests.items()}
    levels, over, verdicts = [], [], []
    for arm, values in scores.items():
        what, name = arm.split(": ")
        mean, ends = sum(values) / len(values), share(interval(values))
        levels.append(Figure(f"{arm}, right, %", mean, ends, None, "undecided"))
        if name != CORES_OF[0]:
            base = scores[f"{what}: {CORES_OF[0]}"]
            gain = [one - other for one, other in zip(base, values, strict=True)]
            verdict = leads(interval(gain))
            verdicts.append(verdict)
            title = f"{what}: {CORES_OF[0]} over {name}, points"
            over.append(Figure(title, sum(gain) / len(gain), interval(gain), None, verdict))
    sizes = ", ".join(f"{name} {tests[f'copy: {name}'][0]['weights']:,}" for name in CORES_OF)
    return Finding(
        study="keeps",
        claim="Where a task needs memory but no nonlinear state, a linear recurrence (LRU) is "
        "right at least as often as an LSTM and a tanh RNN of as many parameters, and over a long "
        "wait more often.",
        command=f"secant study keeps --seed {seed} --out DIR",
        source="Orvieto et al. 2023, arXiv:2303.06349: the LRU beats the tanh RNN on the "
        "long-range arena; no figure for these tasks",
        verdict=combined(verdicts),
        words=f"Copy: {settings['symbols']} symbols out of {settings['alphabet']} over "
        f"{settings['wait']} blanks, a guess is right for {100 / settings['alphabet']:.1f} %. "
        f"Digits: row by row. Each was trained for {settings['steps']['copy']} and "
        f"{settings['steps']['digits']} steps: who has not learnt by then might have later. "
        f"Parameters of the cores: {sizes}. Intervals are over {settings['seeds']} seeds, which "
        "draw weights, batches and symbols; the split of the digits is one.",
        figures=levels + over,
        curves=[],
        foot="",
        numbers=numbers,
        settings=settings,
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )
