"""Merging checkpoints on disk into one, tensor by tensor, in memory that does not grow with them.

Holds: ``merge``, ``merge_file``, ``Merge``; ``recipe_of``, ``merge_recipe``.
May import: numpy, ``secant.errors``, ``secant.load``, ``secant.uses``.

Everything that can be wrong is looked for before a value is written; the result is written beside
its place and moved there when it is whole. It is not synced: a merge can be made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np

from secant.errors import InputError
from secant.load.checkpoints import open_checkpoint
from secant.load.kinds import Array
from secant.load.shards import Planned, ShardWriter
from secant.uses.merge_cards import write_companions
from secant.uses.merge_plans import Plan, plan_merge
from secant.uses.merge_streams import merge_tensor
from secant.uses.recipes import METHODS, Part, Recipe, float_kind, same_model

SHARD_BYTES: Final = 5_000_000_000
FEW_STRIPS: Final = 8
"""Tensors of more strips are merged one after another, each by all threads."""
LARGE_BYTES: Final = 16_000_000
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Merge:
    """A merge that was written: where, its tensors and bytes, and what is to be known of it."""

    folder: Path
    tensors: int
    bytes: int
    notes: tuple[str, ...]


def merge(
    models: Sequence[Path | str], out: Path | str, *, method: str = "linear",
    base: Path | str | None = None, weight: float | Sequence[float] | None = None,
    density: float | Sequence[float] | None = None, t: float | None = None,
    normalize: bool | None = None, dtype: str | None = None, seed: int = 0,
    shard_bytes: int = SHARD_BYTES, progress: Progress | None = None,
) -> Merge:  # fmt: skip
    """Merge checkpoints into a new one in the folder `out`.

    `models` are .safetensors files, indices of shards, Hugging Face directories or state dicts.
    `method`: `linear` (default; weights are divided by their sum unless `normalize` is False),
    `slerp` (from the first model, at `t` = 0, to the second), or, for changes from `base`,
    `task_arithmetic`, `ties`, `dare_linear`, `dare_ties`. `weight` and `density` are one number, or
    one for each model; `weight` is 1 if not given. Values are merged in `dtype`, by default in the
    widest type that a tensor has in any model, and a tensor that is the same in type keeps it.
    `seed` draws the masks of DARE; the result is the same for any number of threads.

    Raises: `LoadError` for checkpoints that cannot be read, do not fit together, have different
    vocabularies, or hold values that are not finite; `InputError` for what is asked of them, an
    `out` that is not empty, and a disk that is full. Nothing is left in `out` then.
    """
    recipe = recipe_of(
        models, method=method, base=base, weight=weight, density=density, t=t,
        normalize=normalize, dtype=dtype,
    )  # fmt: skip
    return merge_recipe(recipe, out, seed=seed, shard_bytes=shard_bytes, progress=progress)


def recipe_of(
    models: Sequence[Path | str], *, method: str = "linear", base: Path | str | None = None,
    weight: float | Sequence[float] | None = None,
    density: float | Sequence[float] | None = None, t: float | None = None,
    normalize: bool | None = None, dtype: str | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a merge by arguments, as `merge` takes them.

    Raises: `InputError` for what does not go together.
    """
    names = [str(model) for model in models]
    base = None if base is None else str(base)
    if method == "slerp" and base is None and names:
        base, names = names[0], names[1:]
    elif base is not None and method in METHODS and METHODS[method].needs_base:
        names = [name for name in names if not same_model(name, base)]
    settings = {
        "weight": 1.0 if weight is None and method != "slerp" else weight,
        "density": density,
    }
    parts = []
    for number, name in enumerate(names):
        own = {
            key: given[number] if isinstance(given, Sequence) else given
            for key, given in settings.items()
            if given is not None and _fits(key, given, len(names))
        }
        parts.append(Part(name, own))
    whole = {key: value for key, value in (("t", t), ("normalize", normalize)) if value is not None}
    levels = (whole,) if whole else ()
    kind = None if dtype is None else float_kind(dtype)
    return Recipe(method, tuple(parts), base, levels, kind)


def merge_file(
    recipe: Path | str, out: Path | str, *, seed: int = 0, shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Merge:  # fmt: skip
    """Merge by a YAML file as mergekit's users have it, for the methods of `merge`.

    Raises: as `merge` does, and `InputError` for a key or a method that secant does not merge by.
    """
    # Only here: a merge without a file needs no YAML.
    from secant.uses.recipe_files import read_recipe

    return merge_recipe(
        read_recipe(recipe), out, seed=seed, shard_bytes=shard_bytes, progress=progress
    )


def _fits(what: str, given: float | Sequence[float], models: int) -> bool:
    if isinstance(given, Sequence) and len(given) != models:
        raise InputError(
            f"{what} must be one number or one for each of {models} merged models; got "
            f"{len(given)}. The base of a merge of changes has none."
        )
    return True


def merge_recipe(
    recipe: Recipe, out: Path | str, *, seed: int = 0, shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Merge:  # fmt: skip
    """Merge by a recipe. Raises: as `merge` does."""
    out = Path(out)
    if shard_bytes < 1:
        raise InputError(f"shard_bytes must be at least 1; got {shard_bytes}. Give a size.")
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(open_checkpoint(name)) for name in recipe.models]
        plan = plan_merge(recipe, checkpoints, seed)
        with _folder_in_the_end(out, plan.bytes) as part:
            tensors = [Planned(job.name, job.out_kind, job.inputs[0].shape) for job in plan.jobs]
            tensors += [Planned(name, one.kind, one.shape) for name, one in plan.copies.items()]
            by_name = {tensor.name: tensor for tensor in tensors}
            ordered = [by_name[name] for name in plan.order]
            with ShardWriter(part, ordered, shard_bytes, plan.shared) as writer:
                _write_values(plan, writer, progress)
            write_companions(part, out.name, recipe, plan, seed)
    return Merge(out, len(ordered), plan.bytes, plan.notes)


def _write_values(plan: Plan, writer: ShardWriter, progress: Progress | None) -> None:
    """Copy what is copied and merge the rest, on all processors."""
    done, told, whole, lock = 0, 0, plan.bytes, Lock()
    # glibc takes each array of a block from the system anew, and clears it, until it has seen a
    # larger one given back: that alone would take longer than the merge.
    np.empty(LARGE_BYTES, np.uint8)

    def write(name: str, start: int, values: Array) -> None:
        nonlocal done, told
        writer.write(name, start, values)
        with lock:
            done += values.nbytes
            # The threads wait for each other while it is told: not for every block.
            if progress is not None and (done - told >= whole / 100 or done == whole):
                told = done
                progress("merging", done, whole)

    for name, stored in plan.copies.items():
        write(name, 0, stored.read(0, stored.count))
    few = [job for job in plan.jobs if len(job.strips) <= FEW_STRIPS]
    many = [job for job in plan.jobs if len(job.strips) > FEW_STRIPS]
    pool = ThreadPoolExecutor(_processors())
    try:
        for job in many:
            merge_tensor(job, pool.map, write)
        for _ in pool.map(lambda job: merge_tensor(job, map, write), few):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _folder_in_the_end(out: Path, needed: int) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well, and goes otherwise."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                f"{str(out)!r} is there already and not empty. Name a new folder with --out."
            )
        made = [one for one in out.absolute().parents if not one.exists()]
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        part = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
        try:
            free = shutil.disk_usage(part.parent).free
            if free < needed:
                raise InputError(
                    f"the merge takes {needed / 1e9:.2f} GB and {str(part.parent)!r} has "
                    f"{free / 1e9:.2f} GB left. Make room, or name another folder with --out."
                )
            part.mkdir()
            yield part
            part.replace(out)
        except BaseException:  # Ctrl-C as well leaves nothing
            shutil.rmtree(part, ignore_errors=True)
            for one in made:
                if any(one.iterdir()):
                    break
                one.rmdir()
            raise
    except OSError as error:
        raise InputError(
            f"cannot write to folder {str(out)!r} ({error.strerror}). "
            "Name a folder that you may write to with --out."
        ) from error
