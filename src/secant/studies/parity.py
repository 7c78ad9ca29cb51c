"""Parity: whether a linear recurrence can keep count of two, and what its eigenvalues decide.

Claim: a linear recurrence with eigenvalues from 0 to 1, trained on bits up to 40 long, is at chance
on parities of 40 to 256; with eigenvalues from -1 to 1 it makes no error.
Command: ``secant study parity --out DIR``. Cost: about five minutes on one quiet core.
Published: Grazzi et al. 2024, arXiv:2411.12537 (abstract): chance, and solved. Verdict: from
intervals over seeds, for a matrix transition (DeltaNet) and a diagonal one by itself. Supported if
the paired gain of [-1, 1] over [0, 1] begins above 0, the accuracy of [0, 1] has 1/2 in its
interval, and no seed of [-1, 1] errs once; refuted if the gain ends at or below 0; depends if it
is a gain but one of the others fails; else undecided. Both together: theirs if they agree.

Every prefix of a training sequence is labelled, so 40 bits train lengths 1 to 40. A parity of
random bits says nothing about any part of them: who does not keep it is at 1/2 exactly. Labels are
smoothed: without that, training ends with a state that still fades, and some seeds of [-1, 1] err
past 128 bits.

Holds: ``study``; ``measure``, ``judged``, ``Arm``.
May import: torch, ``secant.readings``, ``secant.surveys`` (versions), ``secant.studies``
(cover, finding, kept, rounding, sequences).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secant.readings import hardware
from secant.studies.cover import share_interval
from secant.studies.finding import Curve, Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.studies.rounding import gains, interval
from secant.studies.sequences import CORES, Reader, combined, trained, tuned
from secant.surveys import versions

WIDTH, BATCH, STEPS = 8, 32, 1000
SMOOTHING = 0.1
TRAINED, TESTED = 40, 256
SEQUENCES = 512
RATES = (0.01, 0.03)
SEEDS = 5

KINDS = ("DeltaNet", "diagonal")
REFERENCE = "LSTM"
ARMS = [f"{kind} in {span}" for kind in KINDS for span in ("[0, 1]", "[-1, 1]")] + [REFERENCE]
LENGTHS = (10, 20, 40, 64, 96, 128, 192, 256)


def bits(rows: int, length: int, draw: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Random bits and the parity of every prefix, (rows, length) each."""
    x = torch.randint(2, (rows, length), generator=draw)
    return x, x.cumsum(1) % 2


def measure(name: str, rate: float, seed: int) -> dict[str, Any]:
    """One net trained, and how often it is right about 40 to 256 bits, and at some lengths.

    All arms of a seed are tested on the same sequences.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Reader(nn.Embedding(2, WIDTH), CORES[name](WIDTH, WIDTH), WIDTH, 2)
        loss = trained(
            net, lambda: bits(BATCH, TRAINED), rate=rate, steps=STEPS, smoothing=SMOOTHING
        )
    x, labels = bits(SEQUENCES, TESTED, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        right = (net(x).argmax(-1) == labels).double()
    beyond = right[:, TRAINED - 1 :]
    at = {str(length): float(right[:, length - 1].mean()) for length in LENGTHS}
    return {
        "arm": name, "rate": rate, "seed": seed, "loss": loss,
        "score": float(beyond.mean()), "errors": int((1 - beyond).sum()),
        "within": float(right[:, :TRAINED].mean()), "at": at,
    }  # fmt: skip


class Arm(NamedTuple):
    """What the seeds of one arm came to: accuracy on 40 to 256 bits, and errors, a seed each."""

    accuracies: list[float]
    errors: list[int]


def at_chance(ends: tuple[float, float] | None) -> Verdict:
    """Whether an accuracy is at 1/2, as far as its interval tells."""
    if ends is None:
        return "undecided"
    return "supported" if ends[0] <= 0.5 <= ends[1] else "refuted"


def judged(positive: Arm, signed: Arm) -> Verdict:
    """The verdict on one kind of transition, of its arms with [0, 1] and with [-1, 1]."""
    pairs = zip(signed.accuracies, positive.accuracies, strict=True)
    found = gains(interval([one - other for one, other in pairs]))
    if found != "supported":
        return found
    is_at_chance = at_chance(interval(positive.accuracies)) == "supported"
    return "supported" if is_at_chance and not any(signed.errors) else "depends"


def study(
    *,
    seed: int = 0,
    seeds: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study, with `SEEDS` seeds if no number is given.

    Each arm's rate is the one that is right most often about 40 to 256 bits with a seed of its own;
    then it is trained with each seed. With `out` what was measured is kept there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    seeds = seeds or SEEDS
    settings = {
        "arms": ARMS, "width": WIDTH, "batch": BATCH, "steps": STEPS, "rates": list(RATES),
        "smoothing": SMOOTHING,
        "trained": TRAINED, "tested": TESTED, "sequences": SEQUENCES, "seeds": seeds,
    }  # fmt: skip
    kept = Kept("parity", settings, len(ARMS) * (len(RATES) + seeds),
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
    arms = {
        name: Arm([one["score"] for one in found], [one["errors"] for one in found])
        for name, found in tests.items()
    }
    figures, verdicts = [], []
    for kind in KINDS:
        positive, signed = arms[f"{kind} in [0, 1]"], arms[f"{kind} in [-1, 1]"]
        verdict = judged(positive, signed)
        verdicts.append(verdict)
        figures += _figures(kind, positive, signed, verdict)
    reference = arms[REFERENCE].accuracies
    figures.append(
        Figure(f"{REFERENCE}, accuracy", _mean(reference), interval(reference), None, "undecided")
    )
    return Finding(
        study="parity",
        claim="A linear recurrence with eigenvalues from 0 to 1, trained on bits up to 40 long, is "
        "at chance on parities of 40 to 256; with eigenvalues from -1 to 1 it makes no error.",
        command=f"secant study parity --seed {seed} --out DIR",
        source="Grazzi et al. 2024, arXiv:2411.12537: with [0, 1] chance, with [-1, 1] solved; "
        "larger models of more blocks",
        verdict=combined(verdicts),
        words=_words(arms, settings),
        figures=figures,
        curves=[_curve(name, found) for name, found in tests.items()],
        foot=f"length in bits; up to {TRAINED} were trained",
        numbers=numbers,
        settings=settings,
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _figures(kind: str, positive: Arm, signed: Arm, verdict: Verdict) -> list[Figure]:
    """Accuracies of both arms, the share of seeds without an error, and the gain."""
    perfect, seeds = sum(not one for one in signed.errors), len(signed.errors)
    pairs = zip(signed.accuracies, positive.accuracies, strict=True)
    over = [one - other for one, other in pairs]
    chance, ends = interval(positive.accuracies), interval(signed.accuracies)
    low = Figure(f"{kind} in [0, 1], accuracy", _mean(positive.accuracies), chance, 0.5,
                 at_chance(chance))  # fmt: skip
    is_perfect: Verdict = "supported" if perfect == seeds else "refuted"
    return [
        low,
        Figure(f"{kind} in [-1, 1], accuracy", _mean(signed.accuracies), ends, 1.0, is_perfect),
        Figure(f"{kind} in [-1, 1], seeds without an error, share", perfect / seeds,
               share_interval(perfect, seeds), 1.0, is_perfect),
        Figure(f"{kind}, gain of [-1, 1]", _mean(over), interval(over), 0.5, verdict),
    ]  # fmt: skip


def _words(arms: dict[str, Arm], settings: dict[str, Any]) -> str:
    """How many of how many answers were wrong, seed by seed."""
    asked = settings["sequences"] * (settings["tested"] - settings["trained"] + 1)
    said = "; ".join(
        f"{kind} {', '.join(str(one) for one in arms[f'{kind} in [-1, 1]'].errors)}"
        for kind in KINDS
    )
    return (
        f"Errors with eigenvalues in [-1, 1], seed by seed, among {asked:,} answers about "
        f"{settings['trained']} to {settings['tested']} bits: {said}. Intervals of accuracies "
        f"are over {settings['seeds']} seeds, which draw all; that of a share is exact."
    )


def _curve(name: str, found: list[dict[str, Any]]) -> Curve:
    """Accuracy over length."""
    by_length = [[float(one["at"][str(length)]) for one in found] for length in LENGTHS]
    return Curve("accuracy", name, [float(one) for one in LENGTHS],
                 [_mean(one) for one in by_length], [None] * len(LENGTHS))  # fmt: skip
