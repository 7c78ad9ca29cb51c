"""The law of pieces: along a line a ReLU net has about one affine piece for each neuron.

Claim: with one input, He's initialisation and biases that are not zero, a ReLU net of the widths
n_1, ..., n_L has n_1 + ... + n_L + 1 pieces on the line, up to terms of a lower order, whatever its
depth; so the count grows linearly in the neurons, and no faster with depth.
Command: ``secant study pieces --out DIR``. Cost: two minutes.
Published: the count in the limit of infinite width, arXiv:2512.08091; linear growth in the number
of neurons at initialisation, Hanin and Rolnick 2019, arXiv:1901.09021. Verdict: a figure is
supported if its 95 % interval over seeds lies within 5 % of the published one, refuted if it lies
outside wholly, else undecided; the claim is supported if all are, refuted if all are refuted,
depends if some are.

Holds: ``study``; ``he_net``, ``measure``, ``judged``.
May import: torch, ``secant.readings``, ``secant.segments``, ``secant.surveys``
(versions), ``secant.studies``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from secant.readings import hardware
from secant.segments import pieces
from secant.studies.finding import Curve, Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.studies.wide_nets import exponent
from secant.surveys import versions

WIDTHS = (32, 64, 128, 256, 512)
DEPTHS = (1, 2, 3, 4)
SEEDS = 96
"""Intervals of 2 % at width 32. With 24, one of them (depth 4) reached past `NEAR`: undecided."""

REACH = 1e4
"""The line is [-REACH, REACH]: a first-layer kink lies beyond with a chance of some 1e-4."""

NEAR = 0.05
SEGMENT_INPUTS, SEGMENT_REACH = 16, 10.0
EARLIER = {"line": (1.01, 1.04), "segment": (0.73, 0.78)}
"""Our own first figures, pieces per neuron at widths 32 and 128, without intervals."""


def he_net(inputs: int, width: int, depth: int, seed: int) -> nn.Sequential:
    """ReLU layers with weights of variance 2 / fan-in and standard normal biases, one output."""
    draw = torch.Generator().manual_seed(
        1_000_003 * (seed + 1) + 1_009 * width + 7 * depth + inputs
    )
    parts: list[nn.Module] = []
    for into, out in zip([inputs, *[width] * depth], [*[width] * depth, 1], strict=True):
        layer = nn.Linear(into, out, dtype=torch.float64)
        nn.init.normal_(layer.weight, std=(2 / into) ** 0.5, generator=draw)
        nn.init.normal_(layer.bias, generator=draw)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def measure(depth: int, width: int, seed: int) -> dict[str, Any]:
    """Exact pieces of one net on the line, and of one with 16 inputs on a short segment.

    The segment has the half-length 10, is centred at the origin and goes in a random direction.
    """
    line = [torch.tensor([end], dtype=torch.float64) for end in (-REACH, REACH)]
    draw = torch.Generator().manual_seed(seed)
    way = torch.randn(SEGMENT_INPUTS, generator=draw, dtype=torch.float64)
    way *= SEGMENT_REACH / way.norm()
    return {
        "depth": depth,
        "width": width,
        "seed": seed,
        "line": pieces(he_net(1, width, depth, seed), *line).count,
        "segment": pieces(he_net(SEGMENT_INPUTS, width, depth, seed), -way, way).count,
    }


def judged(interval: tuple[float, float] | None, published: float) -> Verdict:
    """Whether an interval lies within `NEAR` of the published figure, wholly or not at all."""
    if interval is None:
        return "undecided"
    low, high = published * (1 - NEAR), published * (1 + NEAR)
    if low <= interval[0] and interval[1] <= high:
        return "supported"
    return "refuted" if interval[1] < low or interval[0] > high else "undecided"


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean over seeds and its 95 % t interval; None for one seed."""
    sample: Tensor = torch.tensor(values, dtype=torch.float64)
    mean = float(sample.mean())
    if len(values) < 2:
        return mean, None
    quantile = float(student.ppf(0.975, len(values) - 1))
    reach = quantile * float(sample.std()) / len(values) ** 0.5
    return mean, (mean - reach, mean + reach)


def study(
    *,
    seed: int = 0,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    seeds: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study, at `WIDTHS` and `DEPTHS` and with `SEEDS` seeds if none are given.

    With `out` what was measured is kept there until it is done.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """
    settings: dict[str, Any] = {
        "widths": list(widths or WIDTHS), "depths": list(depths or DEPTHS),
        "seeds": seeds or SEEDS, "reach": REACH, "near": NEAR,
        "segment": {"inputs": SEGMENT_INPUTS, "half-length": SEGMENT_REACH},
    }  # fmt: skip
    runs = [
        (depth, width, one)
        for width in settings["widths"]
        for depth in settings["depths"]
        for one in range(seed, seed + settings["seeds"])
    ]
    kept = Kept("pieces", settings, len(runs),
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip
    for depth, width, one in runs:
        kept(f"{depth}-{width}-{one}", partial(measure, depth, width, one))
    return kept.written(_finding(kept.numbers, settings, seed, kept.seconds))


def _finding(
    numbers: list[dict[str, Any]], settings: dict[str, Any], seed: int, seconds: float
) -> Finding:
    widths, depths = settings["widths"], settings["depths"]
    seeds = range(seed, seed + settings["seeds"])
    at = {(one["depth"], one["width"], one["seed"]): one for one in numbers}
    law, others, curves = [], [], []
    for depth in depths:
        for width in widths:
            ratios = [(at[depth, width, one]["line"] - 1) / (depth * width) for one in seeds]
            mean, interval = mean_interval(ratios)
            name = f"(pieces - 1) / neurons, depth {depth}, width {width}"
            law.append(Figure(name, mean, interval, 1.0, judged(interval, 1.0)))
        counts = [[at[depth, width, one]["line"] for width in widths] for one in seeds]
        slope, reach = exponent(widths, counts)
        name = f"exponent of pieces in neurons, depth {depth}"
        law.append(Figure(name, slope, reach, 1.0, judged(reach, 1.0)))
        width = widths[-1]
        ratios = [at[depth, width, one]["segment"] / (depth * width) for one in seeds]
        mean, interval = mean_interval(ratios)
        name = f"pieces / neurons on a segment, {SEGMENT_INPUTS} inputs, depth {depth}"
        others.append(Figure(f"{name}, width {width}", mean, interval, None, "undecided"))
        for plot, key in (("pieces on the line", "line"), ("pieces on a segment", "segment")):
            curves.append(_curve(plot, f"depth {depth}", depth, widths, at, seeds, key))
    verdict = _verdict([one.verdict for one in law])
    return Finding(
        study="pieces",
        claim="With one input, He's initialisation and biases that are not zero, a ReLU net has "
        "as many affine pieces on the line as neurons, and one more, up to terms of a lower "
        "order: linear in the neurons, whatever the depth.",
        command=f"secant study pieces --seed {seed} --out DIR",
        source="arXiv:2512.08091 (sum of widths + 1 at infinite width); Hanin and Rolnick 2019, "
        "arXiv:1901.09021 (linear in the neurons)",
        verdict=verdict,
        words=_words(law, others, widths[-1]),
        figures=[*law, *others],
        curves=curves,
        foot="width",
        numbers=numbers,
        settings=settings | {"earlier figures": {k: list(v) for k, v in EARLIER.items()}},
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )


def _verdict(verdicts: Sequence[Verdict]) -> Verdict:
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "depends" if "refuted" in verdicts else "undecided"


def _words(law: Sequence[Figure], others: Sequence[Figure], width: int) -> str:
    said = []
    for verdict, word in (
        ("supported", f"within {NEAR:.0%} of the published figure"),
        ("refuted", f"further than {NEAR:.0%} from it"),
        ("undecided", "on no sure side of that"),
    ):
        names = [one for one in law if one.verdict == verdict]
        if names:
            said.append(f"{len(names)} of {len(law)} figures are {word}.")
    wide = [one.value for one in law if one.name.endswith(f"width {width}") and one.value]
    if wide:
        said.append(
            f"At width {width} there are {min(wide):.3f} to {max(wide):.3f} pieces a neuron, the "
            "first one not counted."
        )
    short = [one.value for one in others if one.value]
    if short:
        said.append(
            f"A segment of half-length {SEGMENT_REACH:g} in {SEGMENT_INPUTS} dimensions meets "
            f"{min(short):.2f} to {max(short):.2f} a neuron: the others kink further out."
        )
    return " ".join(said)


def _curve(
    plot: str, name: str, depth: int, widths: Sequence[int], at: dict[Any, Any],
    seeds: range, key: str,
) -> Curve:  # fmt: skip
    """Means over seeds, with their intervals."""
    found = [mean_interval([at[depth, width, one][key] for one in seeds]) for width in widths]
    values: list[float | None] = [mean for mean, _ in found]
    return Curve(plot, name, [float(one) for one in widths], values, [ends for _, ends in found])
