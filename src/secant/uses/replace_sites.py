"""Where something may stand in: blocks and sub-blocks, how they are called, and their sums.

Holds: ``candidate_sites``, ``watched``, ``Watched``, ``refitted``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.maps``, ``secant.uses``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from secant.engine.memory import free_bytes
from secant.engine.plan import Batch
from secant.errors import InputError
from secant.maps.calls import first_tensor
from secant.maps.features import rows
from secant.uses.replace_fit import FOLDS, Fitted, SiteFit, fitted, ranks_for
from secant.uses.replace_parts import AFFINE, DROP, Map, place_of, within
from secant.uses.replace_runs import Forms, Runner

Tell = Callable[[int, int], None]


class Watched(NamedTuple):
    """The fits of every site that can be stood in for, and why the others cannot."""

    fits: dict[str, Fitted]
    left: dict[str, str]


def candidate_sites(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    """The blocks, and of their children those with two weight matrices or more."""
    found = []
    for block in blocks:
        found.append(block)
        for name, child in model.get_submodule(block).named_children():
            matrices = sum(one.ndim > 1 for one in child.parameters())
            if matrices > 1:
                found.append(f"{block}.{name}")
    return list(dict.fromkeys(found))


def block_of(site: str, blocks: Sequence[str]) -> int:
    """The number of the block that the site is or lies in."""
    return next(number for number, block in enumerate(blocks) if within(site, block))


def watched(runner: Runner, sites: Sequence[str], batches: Sequence[Batch], tell: Tell) -> Watched:
    """One pass over `batches`: sums of every site, and how it is called; then the solutions.

    Raises: `InputError` if the sums do not fit in the memory. Cost: a forward of the data, and
    products of the width squared a row.
    """
    sums: dict[str, SiteFit] = {site: SiteFit() for site in sites}
    left: dict[str, str] = {}
    free, promised = free_bytes(), 0.0
    mask: Tensor | None = None
    fold = 0

    def listen(site: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal promised
        if site in left or site.partition("@")[0] in left:
            return
        try:
            if "@" in site:
                site = site.partition("@")[0]
                raise InputError("it is called several times in one forward")
            x = first_tensor(args if args else kwargs, site, "input")
            y = _only_tensor(output)
            if site not in runner.places:
                runner.places[site] = place_of(
                    runner.model, site, block_of(site, runner.blocks), x, output
                )
                d, m = runner.places[site].widths
                promised += 8.0 * FOLDS * (d * d + d * m + m * m)
                if free is not None and promised > free / 2:
                    raise MemoryError
            one, other = rows(x, mask), rows(y, mask)
            if len(one) != len(other):
                raise InputError("no row of its input has an output of its own")
            sums[site].add(one, other, fold)
        except InputError as error:
            left[site] = str(error)
            runner.places.pop(site, None)

    total = sum(len(batch.units) for batch in batches)
    done = 0
    for batch in batches:
        mask = runner.feed.inputs(batch)[1]
        fold = batch.group % FOLDS
        try:
            runner.run(batch, {}, sites=list(sites), listen=listen)
        except MemoryError as error:
            raise InputError(
                f"replace: the sums of {len(sites)} sites need more than half of the free memory, "
                f"{(free or 0) / 1e9:.1f} GB. Name fewer sites with --site."
            ) from error
        done += len(batch.units)
        tell(done, total)
    fits = {}
    for site in runner.places:
        fits[site] = fitted(sums[site], ranks_for(*runner.places[site].widths))
    for site in sites:
        if site not in fits and site not in left:
            left[site] = "it was never called"
    return Watched(fits, left)


def _only_tensor(output: Any) -> Tensor:
    """The tensor that a site returns, alone or first in a tuple with nothing else."""
    if isinstance(output, Tensor):
        return output
    is_alone = isinstance(output, tuple) and not hasattr(output, "_fields") and bool(output)
    if not is_alone or not isinstance(output[0], Tensor) or any(p is not None for p in output[1:]):
        raise InputError("it returns more than one tensor")
    first: Tensor = output[0]
    return first


def refitted(
    runner: Runner, forms: Forms, first: int, batches: Sequence[Batch], tell: Tell
) -> dict[str, Map]:
    """The forms, those from block `first` on fitted anew, in order, on the network as it now is.

    Each takes what the changed network gives it and is fitted to what the model's own site gives
    where nothing was changed: it makes up for what those before it left over. Where the blocks are
    a chain each pass goes on where the last ended.

    Cost: with a chain at most two forwards of `batches` in all, else two for each form.
    """
    found: dict[str, Map] = dict(forms)
    todo = [
        site for site, place in runner.places.items()
        if site in forms and forms[site].kind != DROP and place.block >= first
    ]  # fmt: skip
    at = 0
    now: list[Tensor | None] = [None] * len(batches)
    true: list[Tensor | None] = [None] * len(batches)
    for done, site in enumerate(todo):
        sums, form = SiteFit(), found[site]
        for number, batch in enumerate(batches):
            here = runner.heard(batch, found, site, at, now[number])
            there = runner.heard(batch, {}, site, at, true[number])
            sums.add(rows(here.x, here.mask), rows(there.y, there.mask), batch.group % FOLDS)
            if runner.is_chain:
                now[number], true[number] = here.stream, there.stream
        is_added = _is_added(form, runner.places[site].widths)
        found[site] = fitted(sums, [], is_added).map(form.kind, form.rank)
        at = runner.places[site].block if runner.is_chain else 0
        tell(done + 1, len(todo))
    return found


def _is_added(form: Map, widths: tuple[int, int]) -> bool | None:
    """Of a whole map it is no longer to be seen whether x was added; the sums tell again."""
    return None if form.kind == AFFINE and widths[0] == widths[1] else form.is_added
