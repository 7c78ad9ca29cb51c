"""Universal approximation: error against width, with an activation and without.

Claim: one hidden layer with an activation comes as near to a continuous function as one likes if
it is wide enough; without the activation no width helps.
Command: ``secant study approximation --out DIR``. Cost: a minute or two.
Published: Cybenko 1989, Mathematics of Control, Signals and Systems 2; Hornik 1991, Neural
Networks 4: such a width exists; Barron 1993, IEEE Transactions on Information Theory 39: squared
error falls at least as 1/width for the best hidden weights, so the root of it with exponent -0.5.
Here hidden weights are drawn and the last layer is solved, which is no better than the best.
Verdict: supported if for every target the exponents of the activations lie below 0 and the error
without is that of the best affine map at every width; refuted if an exponent lies above 0 or a
width helps where there is no activation; depends where some do, else undecided.

Holds: ``study``; ``TARGETS``, ``HIDDEN``, ``measure``, ``affine_error``.
May import: torch, scipy, ``secant.nn``, ``secant.readings``,
``secant.surveys`` (versions), ``secant.studies`` (finding, kept,
wide_nets).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from secant.nn.activations import LinearSquash
from secant.readings import hardware
from secant.studies.finding import Curve, Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.studies.wide_nets import exponent
from secant.surveys import versions

WIDTHS = (4, 8, 16, 32, 64, 128, 256)
SEEDS = 8
POINTS = 2048
"""Points that the last layer is solved on, and as many others that it is scored on."""
REACH = 4.0
"""Hidden weights have this length: a tanh then bends within a quarter of the square's side."""
CUT = 1e-12
"""Singular values of the hidden layer below this share of the largest are not used."""
SAME = 1e-9

TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "wave": lambda x: torch.sin(math.pi * (x[:, 0] + x[:, 1])),
    "product": lambda x: x[:, 0] * x[:, 1],
    "cone": lambda x: x.norm(dim=1),
}
"""Continuous functions on the square from -1 to 1, one smooth, one a product, one with a tip."""

HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "linear squash": LinearSquash(),
    "ReLU": torch.relu,
    "tanh": torch.tanh,
}
STRAIGHT = ("none", "linear squash")
"""Without a bend inside the layer's reach no width can help."""


def hidden_layer(width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights (2, width) of length `REACH` in random directions; biases, their edges in the square.

    The layers of one seed are nested: a wider one has the narrower's units.
    """
    draw = torch.Generator().manual_seed(seed)
    turn = 2 * math.pi * torch.rand(max(WIDTHS), generator=draw, dtype=torch.float64)
    offset = 2 * torch.rand(max(WIDTHS), generator=draw, dtype=torch.float64) - 1
    weight = REACH * torch.stack([turn.cos(), turn.sin()])
    return weight[:, :width], (REACH * math.sqrt(2) * offset)[:width]


def measure(target: str, hidden: str, width: int, seed: int) -> dict[str, Any]:
    """Root mean square error at other points over the target's deviation from its mean."""
    draw = torch.Generator().manual_seed(2**20 + seed)
    fitted, scored = (
        2 * torch.rand(POINTS, 2, generator=draw, dtype=torch.float64) - 1 for _ in range(2)
    )
    weight, bias = hidden_layer(width, seed)

    def features(x: Tensor) -> Tensor:
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        return torch.cat([HIDDEN[hidden](x @ weight + bias), ones], 1)

    error = solved_error(features, TARGETS[target], fitted, scored)
    return {"target": target, "hidden": hidden, "width": width, "seed": seed, "error": error}


def affine_error(target: str, seed: int) -> float:
    """That of the best affine map of the inputs, on the same points."""
    draw = torch.Generator().manual_seed(2**20 + seed)
    fitted, scored = (
        2 * torch.rand(POINTS, 2, generator=draw, dtype=torch.float64) - 1 for _ in range(2)
    )

    def features(x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)

    return solved_error(features, TARGETS[target], fitted, scored)


def solved_error(
    features: Callable[[Tensor], Tensor], target: Callable[[Tensor], Tensor],
    fitted: Tensor, scored: Tensor,
) -> float:  # fmt: skip
    """Least squares on the fitted points, the error on the others."""
    u, s, vh = torch.linalg.svd(features(fitted), full_matrices=False)
    inverse = torch.where(s > CUT * s[0], 1 / s, 0.0)
    solution = vh.mT @ (inverse * (u.mT @ target(fitted)))
    truth = target(scored)
    left = features(scored) @ solution - truth
    return float(left.norm() / (truth - truth.mean()).norm())


def study(
    *,
    seed: int = 0,
    widths: Sequence[int] = WIDTHS,
    seeds: int = SEEDS,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study; with `out` what was measured is kept there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    settings = {"widths": list(widths), "seeds": seeds, "points": POINTS, "targets": list(TARGETS)}
    kept = Kept("approximation", settings, len(TARGETS) * len(HIDDEN) * len(widths) * seeds,
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip
    for target in TARGETS:
        for hidden in HIDDEN:
            for width in widths:
                for number in range(seed, seed + seeds):
                    step = f"{target}-{hidden}-{width}-{number}".replace(" ", "-")
                    kept(step, partial(measure, target, hidden, width, number))
    return kept.written(_finding(kept.numbers, settings, seed, kept.seconds))


def _finding(
    numbers: list[dict[str, Any]], settings: dict[str, Any], seed: int, seconds: float
) -> Finding:
    widths, seeds = settings["widths"], range(seed, seed + settings["seeds"])
    found = {(one["target"], one["hidden"], one["width"], one["seed"]): one["error"]
             for one in numbers}  # fmt: skip
    figures, curves = [], []
    for target in TARGETS:
        floors = {number: affine_error(target, number) for number in seeds}
        for hidden in HIDDEN:
            errors = [[found[target, hidden, width, number] for width in widths]
                      for number in seeds]  # fmt: skip
            curves.append(_curve(target, hidden, widths, errors))
            if hidden in STRAIGHT:
                gain = max(abs(one / floors[number] - 1)
                           for number, row in zip(seeds, errors, strict=True)
                           for one in row)  # fmt: skip
                figures.append(
                    Figure(
                        f"{target}, {hidden}: largest change from the best affine map's error",
                        gain, None, 0.0, "supported" if gain < SAME else "refuted",
                    )
                )  # fmt: skip
                continue
            slope, interval = exponent(widths, errors)
            verdict: Verdict = "undecided"
            if interval is not None and interval[1] < 0:
                verdict = "supported"
            elif interval is not None and interval[0] > 0:
                verdict = "refuted"
            figures.append(
                Figure(f"{target}, {hidden}: exponent of error against width", slope, interval,
                       -0.5, verdict)
            )  # fmt: skip
    verdicts = {one.verdict for one in figures}
    whole: Verdict = "depends" if {"supported", "refuted"} <= verdicts else "undecided"
    whole = verdicts.pop() if len(verdicts) == 1 else whole
    return Finding(
        study="approximation",
        claim="One hidden layer with an activation comes as near to a continuous function as one "
        "likes if it is wide enough; without the activation no width helps.",
        command=f"secant study approximation --seed {seed} --out DIR",
        source="Cybenko 1989; Hornik 1991: such a width exists. Barron 1993: with the best hidden "
        "weights the exponent is -0.5 or below; here they are drawn, and the last layer solved",
        verdict=whole,
        words="Error at points that were not fitted, over the target's own deviation. Without an "
        "activation, and with one that only scales, it is the best affine map's at every width; "
        "with one it falls. Beside the exponents stands Barron's bound for the best weights.",
        figures=figures,
        curves=curves,
        foot="width of the hidden layer",
        numbers=numbers,
        settings=settings,
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )


def _curve(target: str, hidden: str, widths: list[int], errors: list[list[float]]) -> Curve:
    """Geometric means over seeds with their intervals."""
    logs = torch.tensor(errors, dtype=torch.float64).log()
    mean, count = logs.mean(0), len(logs)
    reach = float(student.ppf(0.975, count - 1)) * logs.std(0) / count**0.5
    ends = [(float(low), float(high)) for low, high in
            zip((mean - reach).exp(), (mean + reach).exp(), strict=True)]  # fmt: skip
    return Curve(f"error on the {target}", hidden, [float(one) for one in widths],
                 mean.exp().tolist(), list(ends))  # fmt: skip
