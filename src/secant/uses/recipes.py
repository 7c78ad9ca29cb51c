"""What to merge and how: a method, its models, and numbers that may differ from layer to layer.

Holds: ``METHODS``, ``Method``, ``Recipe``, ``Part``, ``Numbers``, ``resolved``.
May import: ``secant.errors``, ``secant.load``.

A setting is one number; a list, which runs evenly from the first layer to the last; or a list of
`{filter: part of a name, value: …}`, of which the first that fits counts. What stands beside a
model goes before what stands beside a slice, and that before what stands at the top.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from secant.errors import InputError
from secant.load.kinds import KINDS, Kind

LAYER: Final = re.compile(r"(?:^|(?<=\.))(\d+)(?=\.)")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A way of merging: where it comes from, and the settings of each model and of the whole.

    A setting without a default is None here and must be given.
    """

    source: str
    of_model: Mapping[str, float | None]
    of_whole: Mapping[str, float | bool | None]
    needs_base: bool = True


# `int8_mask` is read because recipes have it: it halves another tool's memory, and no number.
_WHOLE: Final = {"lambda": 1.0, "int8_mask": False}
METHODS: Final = {
    "linear": Method("arXiv:2203.05482", {"weight": None}, {"normalize": True}, needs_base=False),
    "slerp": Method("Shoemake 1985", {}, {"t": None}),
    "task_arithmetic": Method(
        "arXiv:2212.04089", {"weight": None}, {"normalize": False, **_WHOLE}
    ),
    "ties": Method(
        "arXiv:2306.01708", {"weight": None, "density": 1.0}, {"normalize": True, **_WHOLE}
    ),
    "dare_linear": Method(
        "arXiv:2311.03099", {"weight": None, "density": 1.0},
        {"normalize": False, "rescale": True, **_WHOLE},
    ),
    "dare_ties": Method(
        "arXiv:2311.03099 and arXiv:2306.01708", {"weight": None, "density": 1.0},
        {"normalize": False, "rescale": True, **_WHOLE},
    ),
}  # fmt: skip
TRUTHS: Final = {"normalize", "rescale", "int8_mask"}


@dataclass(frozen=True)
class Part:
    """A model of a merge and the settings that are its own."""

    model: str
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers:
    """The settings of one tensor: those of each model in order, and those of the whole."""

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    whole: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A merge, checked as far as it can be without its checkpoints.

    `parts` are the models merged, without the base; of a linear merge all models, and `base` says
    only whose configuration is kept. `levels` are settings of the whole, the strongest first.
    Values are taken to `kind` before the merge and to `out_kind` after it; None leaves them.
    `layers` is the number of layers that a file of slices spoke of.

    Raises: `InputError` for a method, a setting or a number of models that does not exist.
    """

    method: str
    parts: tuple[Part, ...]
    base: str | None = None
    levels: tuple[Settings, ...] = ()
    kind: Kind | None = None
    out_kind: Kind | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"merge method {self.method!r} is not one of {', '.join(METHODS)}. Name one."
            )
        for part in self.parts:
            _check_names(self.method, part.settings, self.way.of_model, f"model {part.model!r}")
        for level in self.levels:
            _check_names(
                self.method, level, {**self.way.of_model, **self.way.of_whole}, "the merge"
            )
        if self.way.needs_base and self.base is None:
            raise InputError(
                f"{self.method} merges changes from a base; got none. Name it with --base, or as "
                "base_model in the file."
            )
        is_listed = any(self.base and same_model(part.model, self.base) for part in self.parts)
        if not self.way.needs_base and self.base is not None and not is_listed:
            raise InputError(
                f"linear takes no changes from a base, and {self.base!r} is not among its "
                "models. Leave it out, or merge it with a weight."
            )
        least = 1 if self.way.needs_base else 2
        if len(self.parts) < least or (self.method == "slerp" and len(self.parts) != 1):
            wanted = "exactly one model" if self.method == "slerp" else f"{least} models or more"
            beside = " beside its base" if self.way.needs_base else ""
            raise InputError(
                f"{self.method} takes {wanted}{beside}; got {len(self.parts)}. Name as many models."
            )

    @property
    def way(self) -> Method:
        """The method's description."""
        return METHODS[self.method]

    @property
    def models(self) -> tuple[str, ...]:
        """The checkpoints to open, a base that is merged first."""
        models = tuple(part.model for part in self.parts)
        return (self.base, *models) if self.way.needs_base and self.base else models

    @property
    def parents(self) -> tuple[str, ...]:
        """The models that the merge is between: of slerp, the base as well."""
        return self.models if self.method == "slerp" else tuple(part.model for part in self.parts)

    @property
    def origin(self) -> str | None:
        """The model that changes are counted from, if it is none of the parents."""
        return self.base if self.way.needs_base and self.method != "slerp" else None

    @property
    def keeper(self) -> str:
        """The model whose configuration and tokenizer the merge keeps."""
        return self.base if self.base is not None else self.parts[0].model

    def numbers(self, name: str, place: float) -> Numbers:
        """The settings of the tensor `name`, at `place` from the first layer, 0, to the last, 1.

        Raises: `InputError` for one that has no value there, or one of the wrong kind.
        """
        found: dict[str, list[float]] = {"weight": [], "density": []}
        for setting, default in self.way.of_model.items():
            for part in self.parts:
                levels = (part.settings, *self.levels)
                value = _first(levels, setting, default, name, place, f"model {part.model!r}")
                found[setting].append(value)
        whole = {
            setting: _first(self.levels, setting, default, name, place, "the merge")
            for setting, default in self.way.of_whole.items()
        }
        for density in found["density"]:
            if not 0 <= density <= 1:
                raise InputError(
                    f"density must be from 0 to 1; {density:g} for {name!r}. It is the share of "
                    "changes that are kept."
                )
        return Numbers(tuple(found["weight"]), tuple(found["density"]), whole)

    def table(self) -> dict[str, Any]:
        """The recipe as a file of settings has it."""
        models = [{"model": part.model, "parameters": dict(part.settings)} for part in self.parts]
        top: dict[str, Any] = {"merge_method": self.method, "models": models}
        if self.base is not None:
            top["base_model"] = self.base
        settings = {key: value for level in self.levels[::-1] for key, value in level.items()}
        if settings:
            top["parameters"] = settings
        for key, kind in (("dtype", self.kind), ("out_dtype", self.out_kind)):
            if kind is not None:
                top[key] = kind.torch_name
        return top


def float_kind(name: str) -> Kind:
    """The type of this torch name.

    Raises: `InputError` if it is none that merges are computed in.
    """
    kinds = {kind.torch_name: kind for kind in KINDS.values() if kind.working is not None}
    if name not in kinds:
        raise InputError(f"type {name!r} is not one of {', '.join(kinds)}. Name one.")
    return kinds[name]


def same_model(one: str, other: str) -> bool:
    """Whether two names are one path."""
    return Path(one).resolve() == Path(other).resolve()


def places_of(names: Sequence[str]) -> tuple[dict[str, float], int]:
    """Where each tensor's layer stands in its stack, from 0 to 1, and the layers of the largest.

    A stack is what stands before the first number of a name; what is in none is at 0.
    """
    layers: dict[str, int] = {}
    found: dict[str, tuple[str, int]] = {}
    for name in names:
        number = LAYER.search(name)
        if number is not None:
            stack, layer = name[: number.start()], int(number[1])
            found[name] = stack, layer
            layers[stack] = max(layers.get(stack, 0), layer + 1)
    places = dict.fromkeys(names, 0.0)
    for name, (stack, layer) in found.items():
        places[name] = layer / (layers[stack] - 1) if layers[stack] > 1 else 1.0
    return places, max(layers.values(), default=0)


def _check_names(method: str, given: Settings, known: Settings, where: str) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(
            f"{where}: {method} has no parameter {unknown[0]!r} there; it knows "
            f"{', '.join(known) or 'none'}. Leave it out, or choose the method that has it."
        )


def _first(
    levels: Sequence[Settings], setting: str, default: Any, name: str, place: float, where: str
) -> Any:
    is_truth = setting in TRUTHS
    for level in levels:
        if setting in level:
            value = resolved(level[setting], name, place, is_truth=is_truth, what=setting)
            if value is not None:
                return value
    if default is None:
        raise InputError(
            f"{where} has no {setting} for {name!r}. Give it one, such as `{setting}: 0.5`."
        )
    return default


def resolved(setting: Any, name: str, place: float, *, is_truth: bool, what: str) -> Any:
    """The value of a setting for a tensor; None where no condition fits.

    Raises: `InputError` for a setting of another form.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list | tuple):
        return _value(setting, is_truth, what)
    if setting and all(isinstance(one, Mapping) for one in setting):
        for one in setting:
            if "value" not in one or one.keys() - {"value", "filter"}:
                raise InputError(
                    f"{what} must be conditions of a value and a filter; got {dict(one)!r}. "
                    "Write {filter: part of a name, value: number}."
                )
            if one.get("filter") in (None, "*") or str(one["filter"]) in name:
                return resolved(one["value"], name, place, is_truth=is_truth, what=what)
        return None
    values = [_value(one, is_truth, what) for one in setting]
    if not values:
        return None
    along = place * (len(values) - 1)
    first = int(along)
    if is_truth:
        return values[first]
    second, part = min(first + 1, len(values) - 1), along - first
    return (1 - part) * values[first] + part * values[second]


def _value(given: Any, is_truth: bool, what: str) -> Any:
    if is_truth:
        if isinstance(given, bool):
            return given
        raise InputError(f"{what} must be true or false; got {given!r}. Write one of these.")
    if isinstance(given, int | float | str) and not isinstance(given, bool):
        try:  # YAML reads 1e-3 as a text
            number = float(given)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise InputError(
        f"{what} must be a number, a list of numbers, or conditions; got {given!r}. "
        "Write a number such as 0.5."
    )
