"""One tensor of a merge, from the files of its models to the file of the result, piece by piece.

Holds: ``Job``, ``merge_tensor``, ``choices``, ``STRIP``.
May import: numpy, ``secant.errors``, ``secant.load``, ``secant.uses``.

A strip is what one thread does at a time and what has random numbers of its own, so that the
result does not depend on the threads. Within it blocks go from the file through the processor's
cache to the file: no array is longer than a block but for the counts of TIES, a few per cent, and
a byte for each value of the strip that DARE draws for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from secant.errors import InputError, LoadError
from secant.load.checkpoints import Stored
from secant.load.kinds import Array, Kind, all_finite, narrowed, round_to, widened
from secant.uses import merge_methods as methods
from secant.uses.merge_blocks import Change, Drop, Join, Trim
from secant.uses.merge_c import blocks
from secant.uses.recipes import Numbers

STRIP: Final = 1 << 20
BLOCK: Final = 1 << 18
"""Of slerp's inner products, whose sums depend on it."""
Run = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]
Write = Callable[[str, int, Array], None]


@dataclass(frozen=True)
class Job:
    """A tensor to merge: in every model (a base that is merged comes first), and how.

    `kind` is the type that it is merged in, `out_kind` the one that it is written in.
    """

    name: str
    method: str
    models: tuple[str, ...]
    inputs: tuple[Stored, ...]
    numbers: Numbers
    kind: Kind
    out_kind: Kind
    seed: int

    @property
    def count(self) -> int:
        """How many values."""
        return self.inputs[0].count

    @property
    def strips(self) -> range:
        """The numbers of the strips."""
        return range(-(-self.count // STRIP))

    def blocks(self, strip: int, size: int) -> Iterator[tuple[int, int]]:
        """First and last value of each block of a strip."""
        end = min((strip + 1) * STRIP, self.count)
        for start in range(strip * STRIP, end, size):
            yield start, min(start + size, end)

    def values(self, model: int, start: int, stop: int) -> Array:
        """Values of one model, in the type that they are computed in and of its precision."""
        stored = self.inputs[model]
        values = widened(stored.read(start, stop), stored.kind)
        if stored.kind != self.kind:
            self._check_input(model, values)
            values = round_to(values.astype(self.kind.working), self.kind)
        return values

    def stored(self, model: int, start: int, stop: int) -> Array:
        """The same values, as the type that they are merged in is stored."""
        if self.inputs[model].kind == self.kind:
            return self.inputs[model].read(start, stop)
        return narrowed(self.values(model, start, stop), self.kind)

    def check_inputs(self, start: int, stop: int) -> None:
        """Refuse what is not finite there.

        Raises: `LoadError` naming the model and the tensor.
        """
        for model, stored in enumerate(self.inputs):
            self._check_input(model, widened(stored.read(start, stop), stored.kind))

    def _check_input(self, model: int, values: Array) -> None:
        if not np.isfinite(values).all():
            raise LoadError(
                f"checkpoint {self.models[model]!r}: {self.name!r} holds values that are not "
                "finite (NaN or infinity). Leave that model out, or repair it."
            )

    def finished(self, merged: Array | None, start: int, stop: int) -> Array:
        """A merged block as it is written.

        Raises: `LoadError` naming the model whose values are not finite; `InputError` if the
        result alone is not.
        """
        if merged is not None and self.out_kind != self.kind:
            values = widened(merged, self.kind).astype(self.out_kind.working, copy=False)
            stored = narrowed(values, self.out_kind)
            merged = stored if all_finite(stored, self.out_kind) else None
        return self._refuse(start, stop) if merged is None else merged

    def _refuse(self, start: int, stop: int) -> NoReturn:
        self.check_inputs(start, stop)
        raise InputError(
            f"the merge of {self.name!r} is not finite in {self.out_kind.torch_name}. "
            "Give smaller weights, or `out_dtype: float32` in a file."
        )


def merge_tensor(job: Job, run: Run, write: Write) -> None:
    """Merge the tensor and write it; `run` does a function of each strip, in order or at once."""

    def silently(work: Callable[[int], Any], numbers: Iterable[int]) -> Iterable[Any]:
        def silent(number: int) -> Any:
            # What is not finite is found where it comes out, with its name.
            with np.errstate(invalid="ignore", over="ignore"):
                return work(number)

        return run(silent, numbers)

    block, span = _PREPARED[job.method](job, silently), blocks().span(job.kind)

    def strip(number: int) -> None:
        at = block(number)
        for start, stop in job.blocks(number, span):
            write(job.name, start, job.finished(at(start, stop), start, stop))

    for _ in silently(strip, job.strips):
        pass


Block = Callable[[int, int], Array | None]
Strip = Callable[[int], Block]
"""Of a strip, the function that merges a block of it; None where the result is not finite."""


def _linear(job: Job, run: Run) -> Strip:
    whole, do = job.numbers.whole, blocks()

    def at(start: int, stop: int) -> Array | None:
        stored = [job.stored(model, start, stop) for model in range(len(job.inputs))]
        return do.mixed(stored, job.numbers.weights, job.kind, normalise=whole["normalize"])

    return lambda strip: at


def _slerp(job: Job, run: Run) -> Strip:
    def products(strip: int) -> NDArray[np.float64]:
        return sum(
            (methods.inner_products(job.values(0, *block), job.values(1, *block))
             for block in job.blocks(strip, BLOCK)),
            np.zeros(3),
        )  # fmt: skip

    whole: NDArray[np.float64] = sum(run(products, job.strips), np.zeros(3))
    if not np.isfinite(whole).all():  # it would spoil every block, and be looked for in the first
        for strip in job.strips:
            for start, stop in job.blocks(strip, BLOCK):
                job.check_inputs(start, stop)
    shares, do = methods.slerp_shares(whole.tolist(), job.numbers.whole["t"]), blocks()

    def at(start: int, stop: int) -> Array | None:
        both = [job.stored(model, start, stop) for model in (0, 1)]
        return do.mixed(both, shares, job.kind, normalise=False)

    return lambda strip: at


def _joined(job: Job, parts: Callable[[int, int, int], Change], *, elects: bool) -> Block:
    """Blocks of the base and the changes that `parts` gives of a model, from a start to a stop."""
    numbers, do = job.numbers, blocks()
    join = Join(numbers.weights, numbers.whole["normalize"], numbers.whole["lambda"], elects)

    def at(start: int, stop: int) -> Array | None:
        changes = [parts(model, start, stop) for model in range(1, len(job.inputs))]
        return do.joined(job.stored(0, start, stop), changes, join, job.kind)

    return at


def _task_arithmetic(job: Job, run: Run) -> Strip:
    def whole(model: int, start: int, stop: int) -> Change:
        return Change(job.stored(model, start, stop))

    return lambda strip: _joined(job, whole, elects=False)


def _ties(job: Job, run: Run) -> Strip:
    limits = [_threshold(job, model, run) for model in range(1, len(job.inputs))]

    def of_strip(strip: int) -> Block:
        # How many of those equal to the threshold this strip may still keep, model by model.
        trims = [
            None if limit is None else Trim(limit.value, limit.quota(strip)) for limit in limits
        ]

        def trimmed(model: int, start: int, stop: int) -> Change:
            return Change(job.stored(model, start, stop), trim=trims[model - 1])

        return _joined(job, trimmed, elects=True)

    return of_strip


def _threshold(job: Job, model: int, run: Run) -> methods.Threshold | None:
    """The magnitude that just survives the trim of a model; None where all do."""
    density = job.numbers.densities[model - 1]
    if density >= 1 or not job.count:
        return None
    if density <= 0:
        return methods.nothing(job.kind, len(job.strips))

    do = blocks()

    def counts(prefix: int, shift: int) -> Iterable[NDArray[np.uint32]]:
        def of_strip(strip: int) -> NDArray[np.uint32]:
            found = np.zeros(1 << methods.DIGIT_BITS, np.uint32)
            for block in job.blocks(strip, do.span(job.kind)):
                base, other = job.stored(0, *block), job.stored(model, *block)
                do.count(base, other, job.kind, (prefix, shift), found)
            return found

        return run(of_strip, job.strips)

    return methods.threshold(counts, job.kind, max(1, int(density * job.count)))


def _dare(job: Job, *, elects: bool) -> Strip:
    densities, rescale = job.numbers.densities, job.numbers.whole["rescale"]

    def of_strip(strip: int) -> Block:
        first = strip * STRIP
        size = min(STRIP, job.count - first)
        keeps = [
            choices(job.name, job.seed, model, strip, size, density)
            for model, density in enumerate(densities, start=1)
        ]

        def dropped(model: int, start: int, stop: int) -> Change:
            keep = keeps[model - 1][start - first : stop - first]
            return Change(
                job.stored(model, start, stop), drop=Drop(keep, densities[model - 1], rescale)
            )

        return _joined(job, dropped, elects=elects)

    return of_strip


def choices(
    name: str, seed: int, model: int, strip: int, size: int, density: float
) -> NDArray[np.bool_]:
    """Which changes of one strip of a tensor of one model DARE keeps.

    Drawn for the strip at once, from numbers of its own: they do not depend on blocks or threads.
    """
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32)
    seeds = np.random.SeedSequence([seed % 2**64, model, strip, *words.tolist()])
    return methods.kept(size, density, np.random.Generator(np.random.SFC64(seeds)))


_PREPARED: Final[dict[str, Callable[[Job, Run], Strip]]] = {
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": lambda job, run: _dare(job, elects=False),
    "dare_ties": lambda job, run: _dare(job, elects=True),
}
