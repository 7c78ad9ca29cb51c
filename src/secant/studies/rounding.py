"""Rounding as an activation: whether a net of linear layers alone gains by few bits.

Claim: a net whose only nonlinearity is the rounding of floating point classifies better than the
same net without it, and no better once its layers are multiplied into one matrix.
Command: ``secant study rounding --data shapes.npz --column x --label-column label --out DIR``,
where ``scripts/animal_shapes.py`` makes shapes.npz; without ``--data`` scikit-learn's digits,
where a linear net leaves little to gain. Cost: about twenty minutes on one core.
Published: grad1 over identity, 15.3 points on MNIST and 12.5 on CIFAR-10 (Murphy 2023, in a
pipeline where identity has 82.0 % and 41.1 %). Verdict: supported if the 95 % interval of the gain
over seeds begins above 0 and that of the flattened net's gain does not, refuted if the gain's ends
at or below 0, depends if the flattened net gains too, else undecided.

Why rounding could help. A staircase (an offset that pushes bits out) is straight on the scale of
many steps, and has derivative 0 or none on that of one: a net trained straight through sees noise.
To be of use the rounding must bend on a scale that the derivative sees. A small step taken many
times does: d = -3/8192 in float16 moves large mantissas and not small ones, which clips, and the
slope of the secant over many of its steps is the slope of the clipped map.

Holds: ``study``; ``Recipe``, ``RECIPES``, ``measure``, ``gains``, ``judged``.
May import: torch, scipy, ``secant.errors``, ``secant.load``, ``secant.nn``,
``secant.readings``, ``secant.surveys`` (versions), ``secant.studies`` (finding, kept).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secant.engine.plan import group_of
from secant.errors import InputError
from secant.load.data import load_data
from secant.load.options import LoadOptions
from secant.nn.activations import LinearSquash
from secant.nn.rounded import RoundedLinear, Rounding, flatten
from secant.readings import hardware
from secant.studies.finding import Curve, Figure, Finding, Verdict
from secant.studies.kept import Kept, Progress
from secant.surveys import versions

HIDDEN, BATCH, STEPS, CHECKS = 256, 128, 1000, 20
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
DECAY = 1e-2
FEWEST = 50
SEEDS = 5
TUNING_SEED = 1_000_003
"""Rates and the design are chosen on validation images, with weights that no seed draws."""

TENTHS = {"test": (0, 1), "validation": (2, 3)}
PUBLISHED = {"MNIST": (81.96, 97.29, 39.19), "CIFAR-10": (41.07, 53.56, 30.58)}
"""Murphy 2023: identity, grad1, grad1 flattened, in per cent."""


@dataclass(frozen=True)
class Recipe:
    """What stands in the hidden layer: a rounding, else an activation."""

    rounding: Rounding | None = None
    activation: Callable[[], nn.Module] = nn.Identity

    def net(self, inputs: int, classes: int) -> nn.Sequential:
        """One hidden layer, drawn so that its outputs vary by 1 for inputs that do."""
        first: nn.Module
        if self.rounding is None:
            first = nn.Linear(inputs, HIDDEN)
        else:
            first = RoundedLinear(inputs, HIDDEN, rounding=self.rounding)
        with torch.no_grad():
            # nn.Linear draws from U(-1/sqrt(n), 1/sqrt(n)), whose variance is 1/(3n).
            first.get_parameter("weight").mul_(3**0.5)
        return nn.Sequential(first, self.activation(), nn.Linear(HIDDEN, classes))


CLIP = Rounding(offset=1365.0, scale=64.0, step=-3 / 8192, times=700)
CLIP_BFLOAT16 = Rounding(torch.bfloat16, offset=170.0, scale=8.0, step=-3 / 1024, times=90)
GRAD1 = Rounding(step=-1 / 2048, times=500)
WINDOW = 1 / 8
"""Of the secants' slopes: eight steps of the chain that clips, an eighth of what goes in."""

OFFSETS = (64.0, 256.0, 1024.0, 4096.0)

RECIPES: dict[str, Recipe] = {
    "identity": Recipe(),
    "the chain in real numbers": Recipe(
        activation=lambda: LinearSquash(CLIP.slope, CLIP.shift),
    ),
    **{f"offset {offset:g}": Recipe(Rounding(offset=offset)) for offset in OFFSETS},
    "bfloat16, offset 128": Recipe(Rounding(torch.bfloat16, offset=128.0)),
    "float32 denormals": Recipe(Rounding(torch.float32, scale=2.0**-149)),
    "grad1": Recipe(GRAD1),
    "grad1, secants": Recipe(replace(GRAD1, window=WINDOW)),
    "clip": Recipe(CLIP),
    "clip, secants": Recipe(replace(CLIP, window=WINDOW)),
    "clip in bfloat16, secants": Recipe(replace(CLIP_BFLOAT16, window=WINDOW)),
    "ReLU": Recipe(activation=nn.ReLU),
}
"""`identity` is what the others are held against; all but it, the chain in real numbers and ReLU
round. Without `secants` the derivative passes straight through."""

DESIGNS = [name for name, one in RECIPES.items() if one.rounding is not None]


class Set(NamedTuple):
    """Rows and their classes."""

    rows: Tensor
    classes: Tensor


class Task(NamedTuple):
    """Rows in three parts; duplicates share one."""

    train: Set
    validation: Set
    test: Set


def task(source: Any, column: str, label_column: str | None, seed: int) -> Task:
    """The data, split by a hash of each row's content; rows centred and of mean square 1.

    Raises: `InputError` for data without numbers or classes.
    """
    units = load_data(source, column, LoadOptions(label_column=label_column))
    if units.tensor is None or units.labels is None or units.labels.is_floating_point():
        raise InputError(
            f"the study needs rows of numbers with whole-number or word classes; {units.name!r} "
            "lacks them. Give an .npz of both, with --column and --label-column."
        )
    raw, labels = units.tensor.flatten(1), units.labels.long()
    tenth = torch.tensor([group_of(one.numpy().tobytes(), seed, 10) for one in raw])
    is_test, is_checked = (torch.isin(tenth, torch.tensor(TENTHS[name])) for name in TENTHS)
    is_trained = ~(is_test | is_checked)
    rows = raw.float() - raw[is_trained].float().mean(0)
    rows = rows / rows[is_trained].square().mean().sqrt()
    parts = Task(*(Set(rows[one], labels[one]) for one in (is_trained, is_checked, is_test)))
    if min(len(one.rows) for one in parts) < FEWEST:
        raise InputError(
            f"the study needs at least {FEWEST} rows in each of training, validation and test; got "
            f"{[len(one.rows) for one in parts]}. Give more data."
        )
    return parts


@torch.no_grad()
def accuracy(net: nn.Module, on: Set) -> float:
    """The share of rows whose largest output is at their class."""
    kind = next(net.parameters()).dtype
    return float((net(on.rows.to(kind)).argmax(1) == on.classes).double().mean())


def measure(recipe: Recipe, data: Task, rate: float, seed: int) -> dict[str, float]:
    """One net trained by AdamW under a one-cycle rate, as it was at its best on validation.

    Accuracies on each part, and on the test of the net flattened in float64 if its layers are
    affine but for rounding.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = 1 + max(int(one.classes.max()) for one in data)
        net = recipe.net(data.train.rows.shape[1], classes)
        optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=STEPS)
        best, kept = -1.0, net.state_dict()
        for step in range(1, STEPS + 1):
            batch = torch.randint(len(data.train.rows), (BATCH,))
            loss = cross_entropy(net(data.train.rows[batch]), data.train.classes[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if step % max(1, STEPS // CHECKS) == 0:
                now = accuracy(net, data.validation)
                if now > best:
                    best, kept = now, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    found = {name: accuracy(net, part) for name, part in zip(Task._fields, data, strict=True)}
    if not isinstance(net[1], nn.ReLU):
        found["flattened"] = accuracy(flatten(net), data.test)
    return found


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t interval of a mean over seeds; none of fewer than two."""
    if len(values) < 2:
        return None
    many = torch.tensor(values, dtype=torch.float64)
    reach = float(student.ppf(0.975, len(many) - 1) * many.std() / len(many) ** 0.5)
    return float(many.mean()) - reach, float(many.mean()) + reach


def gains(interval: tuple[float, float] | None) -> Verdict:
    """Whether a gain is above 0, as far as its interval tells."""
    if interval is None:
        return "undecided"
    if interval[0] > 0:
        return "supported"
    return "refuted" if interval[1] <= 0 else "undecided"


def judged(gain: tuple[float, float] | None, flattened: tuple[float, float] | None) -> Verdict:
    """The claim's verdict: from the gain over identity, and that of the flattened net."""
    found = gains(gain)
    return "depends" if (found, gains(flattened)) == ("supported", "supported") else found


def study(
    *,
    seed: int = 0,
    data: Any = "demo:digits",
    column: str = "x",
    label_column: str | None = None,
    seeds: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = lambda label, done, total: None,
) -> Finding:
    """Run the study on labelled rows, with `SEEDS` seeds if no number is given.

    Rates and the design are chosen on the validation rows alone; then each recipe is trained
    with each seed, which draws weights and order. The split is that of `seed`.
    With `out` what was measured is kept there until it is done.

    Raises: `InputError` as `task`; if there is nothing to resume in `out`, or another run's state.
    """
    seeds = seeds or SEEDS
    parts = task(data, column, label_column, seed)
    sizes = {name: len(one.rows) for name, one in zip(Task._fields, parts, strict=True)}
    settings = {
        "data": str(data), "column": column, "label column": label_column, "rows": sizes,
        "inputs": parts.train.rows.shape[1], "hidden": HIDDEN, "batch": BATCH, "steps": STEPS,
        "rates": list(RATES), "decay": DECAY, "seeds": seeds,
        "recipes": {name: repr(one.rounding) for name, one in RECIPES.items()},
    }  # fmt: skip
    kept = Kept("rounding", settings, len(RECIPES) * (len(RATES) + seeds),
                seed=seed, out=out, resume=resume, progress=progress)  # fmt: skip

    def run(name: str, rate: float, one: int) -> dict[str, Any]:
        def measured() -> dict[str, Any]:
            found = measure(RECIPES[name], parts, rate, one)
            return {"recipe": name, "rate": rate, "seed": one} | found

        return kept(f"{list(RECIPES).index(name)}-{rate:g}-{one}", measured)

    rates = {}
    for name in RECIPES:
        tried = [run(name, rate, TUNING_SEED + seed) for rate in RATES]
        rates[name] = max(tried, key=lambda one: one["validation"])
    chosen = max(DESIGNS, key=lambda name: float(rates[name]["validation"]))
    tests: dict[str, list[dict[str, Any]]] = {
        name: [run(name, rates[name]["rate"], one) for one in range(seed, seed + seeds)]
        for name in RECIPES
    }
    return kept.written(_finding(tests, chosen, kept.numbers, settings, seed, kept.seconds))


def _finding(
    tests: dict[str, list[dict[str, Any]]],
    chosen: str,
    numbers: list[dict[str, Any]],
    settings: dict[str, Any],
    seed: int,
    seconds: float,
) -> Finding:
    base = [float(one["test"]) for one in tests["identity"]]

    def over(name: str, key: str = "test") -> list[float]:
        """Gains over identity, seed by seed, in points."""
        pairs = zip(tests[name], base, strict=True)
        return [100 * (float(one[key]) - other) for one, other in pairs]

    def figure(name: str, values: list[float], verdict: Verdict) -> Figure:
        return Figure(name, sum(values) / len(values), interval(values), None, verdict)

    gain, flat = interval(over(chosen)), interval(over(chosen, "flattened"))
    verdict = judged(gain, flat)
    figures = [
        figure("identity, accuracy, %", [100 * one for one in base], "undecided"),
        figure(f"chosen ({chosen}), gain, points", over(chosen), gains(gain)),
        figure("chosen, flattened, gain, points", over(chosen, "flattened"), gains(flat)),
    ]
    for name in RECIPES:
        if name not in ("identity", chosen):
            values = over(name)
            figures.append(figure(f"{name}, gain, points", values, gains(interval(values))))
    return Finding(
        study="rounding",
        claim="A net whose only nonlinearity is the rounding of floating point classifies better "
        "than the same net without it, and no better once its layers are one matrix.",
        command=_command(settings, seed),
        source="Murphy 2023 (SIGBOVIK): grad1 over identity, 15.3 points on MNIST and 12.5 on "
        "CIFAR-10, 42.8 and 10.5 under it when flattened; other data and another pipeline",
        verdict=verdict,
        words=_words(chosen, base, over(chosen), over(chosen, "flattened"), settings),
        figures=figures,
        curves=[_curve(tests)],
        foot="offset: steps are 1/1024 of it wide above 0, half that below",
        numbers=numbers,
        settings=settings | {"chosen": chosen, "published": PUBLISHED},
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": seconds},
    )


def _command(settings: dict[str, Any], seed: int) -> str:
    """What to type for the same run."""
    more = f" --column {settings['column']} --label-column {settings['label column']}"
    named = more if settings["label column"] else ""
    return f"secant study rounding --data {settings['data']}{named} --seed {seed} --out DIR"


def _words(
    chosen: str,
    base: list[float],
    gains: list[float],
    flattened: list[float],
    settings: dict[str, Any],
) -> str:
    """What was chosen, what it gains, and how far the test's rows can tell."""
    level, rows = sum(base) / len(base), settings["rows"]["test"]
    error = 100 * (level * (1 - level) / rows) ** 0.5
    said = (
        f"On {settings['data']} the net without rounding is right for {100 * level:.1f} % of "
        f"{rows} test rows. Of the designs that round, validation chose {chosen!r}: "
        f"{sum(gains) / len(gains):+.1f} points, and {sum(flattened) / len(flattened):+.1f} once "
        f"it is one matrix. Intervals are over {settings['seeds']} draws of weights and orders on "
        f"one split; of an accuracy, the choice of its rows adds {error:.1f} points."
    )
    if level > 0.9:
        said += " A linear net leaves little to gain here; try data on which it is worse."
    return said


def _curve(tests: dict[str, list[dict[str, Any]]]) -> Curve:
    """Error rates over the offset of a single addition, whose steps widen with it."""
    means: list[float | None] = []
    intervals: list[tuple[float, float] | None] = []
    for offset in OFFSETS:
        values = [100 * (1 - float(one["test"])) for one in tests[f"offset {offset:g}"]]
        means.append(sum(values) / len(values))
        ends = interval(values)
        intervals.append(None if ends is None else (max(ends[0], 0.01), ends[1]))
    return Curve("test error, %", "offset alone", list(OFFSETS), means, intervals)
