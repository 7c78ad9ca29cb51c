"""What a merge will do, tensor by tensor, once its checkpoints were found to fit together.

Holds: ``Plan``, ``plan_merge``.
May import: numpy, ``secant.errors``, ``secant.load``, ``secant.uses``.

Reads names, types, shapes, configurations and vocabularies, and values only of what is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from secant.errors import InputError, LoadError
from secant.load.checkpoints import Checkpoint, Stored
from secant.load.companions import config_differences, config_of, vocabulary_of
from secant.load.kinds import common_kind
from secant.uses.merge_streams import STRIP, Job
from secant.uses.recipes import Recipe, places_of, same_model

NAMED: Final = 10


@dataclass(frozen=True)
class Plan:
    """Tensors to merge and to copy, in the `order` of the first model, and what is beside them.

    `keeper` is the folder whose configuration is kept; None where models are lone files.
    """

    jobs: tuple[Job, ...]
    copies: Mapping[str, Stored]
    order: tuple[str, ...]
    shared: Mapping[str, str]
    keeper: Path | None
    tokenizer: Path | None
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors of the result."""
        merged = sum(job.count * job.out_kind.size for job in self.jobs)
        return merged + sum(one.bytes for one in self.copies.values())


def plan_merge(recipe: Recipe, checkpoints: Sequence[Checkpoint], seed: int) -> Plan:
    """Hold the checkpoints of `recipe.models` against each other and settle each tensor's numbers.

    Raises: `LoadError` where they do not fit, `InputError` where the recipe does not fit them.
    """
    notes: list[str] = []
    shared = _shared_by_all(checkpoints)
    order = [name for name in _common_names(checkpoints, notes) if name not in shared]
    _check_shapes(checkpoints, order)
    keeper = next(
        one for one, name in zip(checkpoints, recipe.models, strict=True)
        if same_model(name, recipe.keeper)
    )  # fmt: skip
    _compare_configs(checkpoints, keeper, notes)
    tokenizer = _compare_vocabularies(checkpoints, keeper, notes)
    places, layers = places_of(order)
    if recipe.layers is not None and recipe.layers != layers:
        raise InputError(
            f"the recipe's slice has layers [0, {recipe.layers}], the models have {layers}. "
            "Models are merged whole: write that number, or `models` in place of `slices`."
        )
    jobs, copies = [], {}
    mixed: list[str] = []
    for name in order:
        inputs = tuple(one.tensors[name] for one in checkpoints)
        if any(one.kind.working is None for one in inputs):
            copies[name] = _copied(name, checkpoints, keeper, notes)
            continue
        kind = recipe.kind or common_kind(one.kind for one in inputs)
        if len({one.kind for one in inputs}) > 1:
            mixed.append(name)
        numbers = recipe.numbers(name, places[name])
        jobs.append(
            Job(name, recipe.method, recipe.models, inputs, numbers, kind,
                recipe.out_kind or kind, seed)
        )  # fmt: skip
        if recipe.method == "linear" and numbers.whole["normalize"] and sum(numbers.weights) == 0:
            raise InputError(
                f"the weights of {name!r} sum to 0, so that their mean does not exist. "
                "Give weights of another sum, or `normalize: false` in a file."
            )
    if mixed:
        notes.append(
            f"{len(mixed)} tensors have different types in the models, first {mixed[0]!r}; each is "
            f"merged in {recipe.kind.torch_name if recipe.kind else 'the type that holds all'}."
        )
    return Plan(tuple(jobs), copies, tuple(order), shared, keeper.folder, tokenizer, tuple(notes))


def _shared_by_all(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Names that are one tensor under another name in every model that says so."""
    first, *others = (one.shared for one in checkpoints)
    return {
        twin: kept for twin, kept in first.items() if all(one.get(twin) == kept for one in others)
    }


def _common_names(checkpoints: Sequence[Checkpoint], notes: list[str]) -> list[str]:
    """The tensors that all models have; another may be left out if it is only a tied copy.

    Raises: `LoadError` naming the first ten that some models have and others do not.
    """
    everything = list(dict.fromkeys(name for one in checkpoints for name in one.tensors))
    common = [name for name in everything if all(name in one.tensors for one in checkpoints)]
    uncommon = [name for name in everything if name not in set(common)]
    lost = []
    for name in uncommon:
        having = [one for one in checkpoints if name in one.tensors]
        lacking = next(one for one in checkpoints if name not in one.tensors)
        twin = next((other for other in common if _are_twins(having, name, other)), None)
        if twin is None:
            lost.append(f"{name!r} is not in {str(lacking.path)!r}")
        else:
            notes.append(
                f"{name!r} is not in {str(lacking.path)!r}; elsewhere it is a copy of {twin!r}, to "
                "which the model ties it, and is left out."
            )
    if lost:
        _refuse("do not have the same tensors", lost)
    return common


def _are_twins(having: Sequence[Checkpoint], name: str, other: str) -> bool:
    """Whether the two tensors have the same values in each of these models."""
    return all(_is_same(one.tensors[name], one.tensors[other]) for one in having)


def _is_same(one: Stored, other: Stored) -> bool:
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    return all(
        np.array_equal(one.read(start, stop).view(np.uint8), other.read(start, stop).view(np.uint8))
        for start, stop in _spans(one.count)
    )


def _spans(count: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + STRIP, count)) for start in range(0, count, STRIP))


def _check_shapes(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> None:
    first, *others = checkpoints
    differing = [
        f"{name!r} is {list(first.tensors[name].shape)} in {str(first.path)!r} and "
        f"{list(other.tensors[name].shape)} in {str(other.path)!r}"
        for name in names
        for other in others
        if first.tensors[name].shape != other.tensors[name].shape
    ]
    if differing:
        _refuse("do not have the same shapes", differing)


def _refuse(what: str, differing: Sequence[str]) -> None:
    more = f", and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    raise LoadError(
        f"the checkpoints {what} in {len(differing)} places: {'; '.join(differing[:NAMED])}{more}. "
        "Merge models of one architecture and one size."
    )


def _copied(
    name: str, checkpoints: Sequence[Checkpoint], keeper: Checkpoint, notes: list[str]
) -> Stored:
    """A tensor of integers: the same in all models, or one counter, which is taken from `keeper`.

    Raises: `LoadError` for others: no mean of token numbers or of packed weights has a sense.
    """
    kept = keeper.tensors[name]
    differing = [one for one in checkpoints if not _is_same(one.tensors[name], kept)]
    if not differing:
        return kept
    if kept.count == 1 and all(one.tensors[name].kind == kept.kind for one in checkpoints):
        notes.append(f"{name!r}, a counter, differs and is that of {str(keeper.path)!r}.")
        return kept
    raise LoadError(
        f"{name!r} has type {kept.kind.torch_name} and differs between {str(keeper.path)!r} and "
        f"{str(differing[0].path)!r}. Only floats are merged; unpack quantised weights first."
    )


def _compare_configs(
    checkpoints: Sequence[Checkpoint], keeper: Checkpoint, notes: list[str]
) -> None:
    kept = config_of(keeper.folder)
    if kept is None:
        return
    for other in checkpoints:
        config = config_of(other.folder)
        if config is None:
            continue
        keys = config_differences(kept, config)
        for key in ("model_type", "architectures"):
            if key in keys and key in kept and key in config:
                raise LoadError(
                    f"{key} is {kept[key]!r} in {str(keeper.path)!r} and {config[key]!r} in "
                    f"{str(other.path)!r}. Merge models of one architecture."
                )
        if keys:
            notes.append(
                f"The configuration of {str(other.path)!r} differs in {_listed(keys)}; that of "
                f"{str(keeper.path)!r} is kept."
            )
    if "auto_map" in kept:
        notes.append(
            f"The model needs Python files that lie in {str(keeper.path)!r}; code is not copied."
        )


def _compare_vocabularies(
    checkpoints: Sequence[Checkpoint], keeper: Checkpoint, notes: list[str]
) -> Path | None:
    """The folder whose tokenizer is kept.

    Raises: `LoadError` where a token has another number in another model.
    """
    known = [(one, vocabulary_of(one.folder)) for one in (keeper, *checkpoints)]
    having = [(one, words) for one, words in known if words is not None]
    if not having:
        return None
    owner, kept = having[0]
    for other, words in having[1:]:
        differing = [
            word for word in kept.keys() | words.keys() if kept.get(word) != words.get(word)
        ]
        if differing:
            raise LoadError(_of_words(owner.path, kept, other.path, words, sorted(differing)))
    if owner is not keeper:
        notes.append(f"{str(keeper.path)!r} has no tokenizer; that of {str(owner.path)!r} is kept.")
    lacking = sorted({str(one.path) for one, words in known if words is None} - {str(keeper.path)})
    if lacking:
        notes.append(f"No tokenizer to compare in {_listed(lacking)}.")
    return owner.folder


def _of_words(
    path: Path, kept: Mapping[str, Any], other: Path, words: Mapping[str, Any], differing: list[str]
) -> str:
    word = differing[0]
    return (
        f"the tokenizers of {str(path)!r} and {str(other)!r} differ in {len(differing)} tokens, "
        f"first {word!r} (number {kept.get(word)} and {words.get(word)}): rows of different tokens "
        "would be mixed. Merge models of one vocabulary."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more
