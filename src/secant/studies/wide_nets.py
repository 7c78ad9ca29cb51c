"""The wide-net law: the wider a net, the nearer its training stays to its linearisation.

Claim: in the NTK parametrisation, the gap between a net trained by gradient descent and its
first-order expansion trained alike, and the change of its kernel, fall with the width n at least
as n^-1/2, for tanh and ReLU.
Command: ``secant study wide-nets --out DIR``. Cost: about a quarter of an hour.
Published: O(n^-1/2), Lee et al. 2019, arXiv:1902.06720, for smooth activations; nothing for exp
beyond its limit kernel, or for hard top-k. Verdict: supported if the exponents' 95 % intervals end
at or below -1/2 for tanh and ReLU, refuted if all begin above it, depends if some do.

Holds: ``study``; ``WideNet``, ``ACTIVATIONS``, ``limit_kernel``, ``measure``, ``exponent``,
``judged``.
May import: torch, scipy, ``secant.readings``, ``secant.surveys`` (versions),
``secant.studies`` (finding, kept), ``secant.uses.kernel``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from secant.readings import hardware, number
from secant.studies.finding import Curve, Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.surveys import versions
from secant.uses.kernel import kernel

POINTS, INPUTS, STEPS = 24, 8, 150
WIDTHS = (128, 256, 512, 1024)
SEEDS = 24
BOUND = -0.5
MEASURES = {"gap": "output gap", "change": "kernel change"}
LIMIT = "distance of the first kernel from its limit"


def top_share(share: float) -> Callable[[Tensor], Tensor]:
    """Keeps the largest entries of each row, `share` of them, and puts 0 for the others."""

    def keep(z: Tensor) -> Tensor:
        kept = z.topk(max(1, round(share * z.shape[-1])), dim=-1).indices
        return z * torch.zeros_like(z).scatter(-1, kept, 1.0)

    return keep


def _second_moment(share: float) -> float:
    """E z² over the largest `share` of a standard normal z: share + q φ(q), q the quantile."""
    q = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share, dtype=torch.float64)))
    return share + q * math.exp(-q * q / 2) / math.sqrt(2 * math.pi)


TANH_SQUARED = 0.39429449039746
"""E tanh(z)² of a standard normal z."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda z: z.tanh() / TANH_SQUARED**0.5,
    "relu": lambda z: z.relu() * 2**0.5,
    "exp": lambda z: (z - 1).exp(),
    "top-50 %": lambda z: top_share(0.5)(z) / _second_moment(0.5) ** 0.5,
    "top-10 %": lambda z: top_share(0.1)(z) / _second_moment(0.1) ** 0.5,
}
"""Each with E φ(z)² = 1 for a standard normal z, so that no layer's scale grows."""

LAW = ("tanh", "relu")
"""The activations that the claim is about."""

PUBLISHED = {(one, measure): BOUND for one in LAW for measure in MEASURES}
EARLIER = {
    "tanh": (-0.99, -1.12),
    "relu": (-0.72, -0.76),
    "exp": (-0.41, -0.23),
    "top-50 %": (-0.65, -0.86),
    "top-10 %": (-0.17, -0.72),
}
"""Our own first figures for gap and change, before the scales of activations were made alike."""


class WideNet(nn.Module):
    """a·φ(V φ(W x / √d) / √n) / √n with standard normal weights: the NTK parametrisation."""

    def __init__(
        self, inputs: int, width: int, activation: Callable[[Tensor], Tensor], draw: torch.Generator
    ) -> None:
        super().__init__()
        shapes = [(width, inputs), (width, width), (1, width)]
        layers = [nn.Linear(into, out, bias=False, dtype=torch.float64) for out, into in shapes]
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        for layer in layers:
            nn.init.normal_(layer.weight, generator=draw)

    def forward(self, x: Tensor) -> Tensor:
        """One output a row, (n,)."""
        for place, layer in enumerate(self.layers):
            x = self.activation(x) if place else x
            x = layer(x / x.shape[-1] ** 0.5)
        return x[:, 0]


def limit_kernel(x: Tensor, dual: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The kernel of `WideNet` at infinite width, for rows of length √d.

    `dual` gives E φ(u)φ(v) and E φ'(u)φ'(v) for standard normal u, v of a correlation.
    Source: Jacot et al. 2018, arXiv:1806.07572, theorem 1.
    """
    covariance = x @ x.T / x.shape[1]
    found = covariance
    for _ in range(2):
        covariance, slopes = dual(covariance)
        found = covariance + found * slopes
    return found


def relu_dual(u: Tensor) -> tuple[Tensor, Tensor]:
    """Arc-cosine kernels: Cho and Saul 2009."""
    angle = u.clamp(-1, 1).arccos()
    return (angle.sin() + (math.pi - angle) * u) / math.pi, 1 - angle / math.pi


def exp_dual(u: Tensor) -> tuple[Tensor, Tensor]:
    """E exp(u - 1) exp(v - 1) = exp(ρ - 1), and the same of the derivative."""
    return (u - 1).exp(), (u - 1).exp()


LIMITS = {"relu": relu_dual, "exp": exp_dual}


def task(seed: int) -> tuple[Tensor, Tensor]:
    """`POINTS` points to train on and as many not to, of length √d in random directions, and
    standard normal targets of the former.
    """
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * POINTS, INPUTS, generator=draw, dtype=torch.float64)
    y = torch.randn(POINTS, generator=draw, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True) * INPUTS**0.5, y


def measure(name: str, width: int, seed: int) -> dict[str, Any]:
    """One net trained beside its linearisation, by gradient descent on half the squared error.

    The step is 1 / λ_max(K0). The linearisation's outputs need no weights: they move by
    -step K0 (f - y). At the end `gap` is RMS(f - f_lin) / RMS(f - f_0) on as many points that
    were not trained on, for on those that were both end at the targets and the gap closes with
    any net that fits (`gap_trained`). `change` is |K - K0| / |K0| on the points trained on, and
    `limit` the distance of K0 from its infinite-width form where that is closed, relative.
    """
    x, y = task(seed)
    draw = torch.Generator().manual_seed(1_000_003 * (seed + 1) + width)
    net = WideNet(INPUTS, width, ACTIVATIONS[name], draw)
    both = kernel(net, x)
    before = both[:POINTS, :POINTS]
    rate = 1 / float(torch.linalg.eigvalsh(before)[-1])
    start = net(x).detach()
    linear = start.clone()
    weights = list(net.parameters())
    for _ in range(STEPS):
        loss = (net(x[:POINTS]) - y).square().sum() / 2
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for one, gradient in zip(weights, gradients, strict=True):
                one.sub_(gradient, alpha=rate)
            linear -= rate * both[:, :POINTS] @ (linear[:POINTS] - y)
    end, after = net(x).detach(), kernel(net, x[:POINTS])
    gaps = [
        number(float((end - linear)[part].norm() / (end - start)[part].norm()))
        for part in (slice(POINTS, None), slice(POINTS))
    ]
    found: dict[str, Any] = {"activation": name, "width": width, "seed": seed, "rate": rate}
    found["gap"], found["gap_trained"] = gaps
    found["change"] = number(float((after - before).norm() / before.norm()))
    found["loss"] = number(float((end[:POINTS] - y).square().mean()))
    if name in LIMITS:
        limit = limit_kernel(x, LIMITS[name])
        found["limit"] = number(float((both - limit).norm() / limit.norm()))
    return found


def exponent(
    widths: Sequence[int], values: Sequence[Sequence[float | None]]
) -> tuple[float | None, tuple[float, float] | None]:
    """Mean over seeds of the slope of log value against log width, and its 95 % t interval.

    `values` are one list over widths for each seed; None where a number or two seeds lack.
    """
    if any(one is None or one <= 0 for of_seed in values for one in of_seed):
        return None, None
    across = torch.tensor(widths, dtype=torch.float64).log()
    across = across - across.mean()
    logs = torch.tensor(values, dtype=torch.float64).log()
    slopes = (logs * across).sum(1) / across.square().sum()
    return float(slopes.mean()), _interval(slopes)


def _interval(values: Tensor) -> tuple[float, float] | None:
    """The 95 % t interval of a mean."""
    if len(values) < 2:
        return None
    reach = float(student.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5)
    return float(values.mean()) - reach, float(values.mean()) + reach


def judged(interval: tuple[float, float] | None) -> Verdict:
    """Whether an exponent is at or below `BOUND`, as far as its interval tells."""
    if interval is None:
        return "undecided"
    if interval[1] <= BOUND:
        return "supported"
    return "refuted" if interval[0] > BOUND else "undecided"


def study(
    *,
    seed: int = 0,
    widths: Sequence[int] | None = None,
    seeds: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study, at `WIDTHS` and with `SEEDS` seeds if none are given.

    With `out` what was measured is kept there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    widths, seeds = widths or WIDTHS, seeds or SEEDS
    settings = {
        "points": POINTS, "inputs": INPUTS, "steps": STEPS, "widths": list(widths),
        "seeds": seeds, "activations": list(ACTIVATIONS), "hidden layers": 2,
    }  # fmt: skip
    runs = [
        (name, width, one)
        for width in widths
        for name in ACTIVATIONS
        for one in range(seed, seed + seeds)
    ]
    kept = Kept("wide-nets", settings, len(runs),
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip
    for name, width, one in runs:
        step = f"{list(ACTIVATIONS).index(name)}-{width}-{one}"
        kept(step, partial(measure, name, width, one))
    return kept.written(_finding(kept.numbers, settings, seed, kept.seconds))


def _finding(
    numbers: list[dict[str, Any]], settings: dict[str, Any], seed: int, seconds: float
) -> Finding:
    widths, seeds = settings["widths"], range(seed, seed + settings["seeds"])
    at = {(one["activation"], one["width"], one["seed"]): one for one in numbers}
    figures, curves = [], []
    for key, title in MEASURES.items():
        for name in ACTIVATIONS:
            values = [[at[name, width, one][key] for width in widths] for one in seeds]
            slope, interval = exponent(widths, values)
            published = PUBLISHED.get((name, key))
            figures.append(Figure(f"{title}, {name}", slope, interval, published, judged(interval)))
            curves.append(_curve(title, name, widths, values))
    for name in LIMITS:
        values = [[at[name, width, one]["limit"] for width in widths] for one in seeds]
        slope, interval = exponent(widths, values)
        figures.append(Figure(f"{LIMIT}, {name}", slope, interval, None, judged(interval)))
        curves.append(_curve(LIMIT, name, widths, values))
    law = {f"{title}, {name}" for title in MEASURES.values() for name in LAW}
    ours = {one.verdict for one in figures if one.name in law}
    verdict: Verdict = "undecided"
    if len(ours) == 1:
        (verdict,) = ours
    elif "refuted" in ours:
        verdict = "depends"
    return Finding(
        study="wide-nets",
        claim="In the NTK parametrisation, what separates a trained net from its trained "
        "linearisation (the output gap), and the change of its kernel, fall with the width n at "
        "least as n^-1/2 for tanh and ReLU.",
        command=f"secant study wide-nets --seed {seed} --out DIR",
        source="Lee et al. 2019, arXiv:1902.06720: O(n^-1/2)",
        verdict=verdict,
        words=_words(figures),
        figures=figures,
        curves=curves,
        foot="width n",
        numbers=numbers,
        settings=settings | {"earlier figures": {k: list(v) for k, v in EARLIER.items()}},
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )


def _words(figures: list[Figure]) -> str:
    """Which exponents are where, in a sentence for each side of the bound."""
    sides = {"supported": "at or below", "refuted": "above", "undecided": "on no sure side of"}
    said = []
    for verdict, side in sides.items():
        names = [
            one.name for one in figures if one.verdict == verdict and not one.name.startswith(LIMIT)
        ]
        if names:
            said.append(f"Exponents {side} {BOUND:g}: {'; '.join(names)}.")
    return " ".join(said)


def _curve(
    title: str, name: str, widths: Sequence[int], values: Sequence[Sequence[float | None]]
) -> Curve:
    """Geometric means over seeds, with their intervals."""
    means: list[float | None] = []
    intervals: list[tuple[float, float] | None] = []
    for of_width in zip(*values, strict=True):
        if any(one is None or one <= 0 for one in of_width):
            means.append(None)
            intervals.append(None)
            continue
        logs = torch.tensor(of_width, dtype=torch.float64).log()
        ends = _interval(logs)
        means.append(math.exp(float(logs.mean())))
        intervals.append(None if ends is None else (math.exp(ends[0]), math.exp(ends[1])))
    return Curve(title, name, [float(one) for one in widths], means, intervals)
