"""Recipes of merges from YAML files, in the form that mergekit's users have.

Holds: ``read_recipe``.
May import: yaml, ``secant.errors``, ``secant.load``, ``secant.uses``.

A key that is not understood is refused by name: a merge without it would be another merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from secant.errors import InputError
from secant.uses.recipes import Part, Recipe, float_kind, same_model

TOP: Final = {
    "merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source",
}  # fmt: skip


def _check_twice(node: yaml.Node | None) -> None:
    """YAML's own reader keeps the last of two equal keys, without a word."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise InputError(f"the key {twice[0]!r} stands twice. Leave one.")
    if isinstance(node, yaml.CollectionNode):
        for part in node.value:
            for one in part if isinstance(part, tuple) else (part,):
                _check_twice(one)


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a YAML file. Paths in it are relative to the current directory.

    Raises: `InputError` for a file that cannot be read, and for keys, methods, parameters and
    slices that secant does not merge by.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node, found = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"recipe {str(path)!r} cannot be read ({error}). Give a YAML file."
        ) from error
    try:
        _check_twice(node)
        return _recipe(found)
    except InputError as error:
        raise InputError(f"recipe {str(path)!r}: {error}") from error


def _recipe(found: Any) -> Recipe:
    top = _table(found, "the file", TOP)
    if "merge_method" not in top:
        raise InputError("no merge_method. Write one, such as `merge_method: linear`.")
    if ("models" in top) == ("slices" in top):
        raise InputError("it must have either models or slices. Write one of the two.")
    levels = [_settings(top)]
    base = _base(top)
    layers = None
    if "models" in top:
        entries = _tables(top["models"], "models", {"model", "parameters"})
    else:
        piece, entries, layers = _slice(top["slices"])
        levels.insert(0, _settings(piece))
        base = _base(piece) or base
    parts = tuple(Part(_model(entry), _settings(entry)) for entry in entries)
    method = str(top["merge_method"])
    if method != "linear" and base is not None:
        for part in parts:
            if same_model(part.model, base) and part.settings:
                raise InputError(
                    f"the base {base!r} has parameters of its own, but {method} merges changes "
                    "from it. Leave them out."
                )
        parts = tuple(part for part in parts if not same_model(part.model, base))
    kinds = {
        key: None if top.get(key) is None else float_kind(str(top[key]))
        for key in ("dtype", "out_dtype")
    }
    given = tuple(level for level in levels if level)
    recipe = Recipe(method, parts, base, given, kinds["dtype"], kinds["out_dtype"], layers)
    _check_tokenizer(top.get("tokenizer_source"), recipe.keeper)
    return recipe


def _slice(slices: Any) -> tuple[Mapping[str, Any], list[Mapping[str, Any]], int]:
    """The one slice, its sources, and the layers that each of them gives, from the first."""
    pieces = _tables(slices, "slices", {"sources", "base_model", "parameters"})
    if len(pieces) != 1:
        raise InputError(
            f"it stacks {len(pieces)} slices into a new model, which is no merge of weights. "
            "Give one slice with all layers."
        )
    entries = _tables(pieces[0].get("sources"), "sources", {"model", "layer_range", "parameters"})
    ranges = [entry.get("layer_range") for entry in entries]
    first: Any = ranges[0]
    is_range = isinstance(first, list) and len(first) == 2 and type(first[1]) is int
    if not is_range or first[0] != 0 or any(one != first for one in ranges):
        raise InputError(
            f"layer_range must be [0, number of layers] for each source; got {ranges}. "
            "Models are merged whole."
        )
    return pieces[0], entries, int(first[1])


def _table(found: Any, what: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"{what} must be a table; got {type(found).__name__}. Write keys.")
    unknown = [str(key) for key in found if key not in known]
    if unknown:
        raise InputError(
            f"{what} has the key {unknown[0]!r}, which secant does not merge by; it knows "
            f"{', '.join(sorted(known))}. Leave it out if the merge is right without it."
        )
    return found


def _tables(found: Any, what: str, known: set[str]) -> list[Mapping[str, Any]]:
    if not isinstance(found, list) or not found:
        raise InputError(f"{what} must be a list; got {found!r}. List one or more.")
    return [_table(one, f"an entry of {what}", known) for one in found]


def _settings(table: Mapping[str, Any]) -> Mapping[str, Any]:
    found = table.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise InputError(f"parameters must be a table; got {found!r}. Write name: value.")
    return found or {}


def _base(table: Mapping[str, Any]) -> str | None:
    base = table.get("base_model")
    if base is not None and not isinstance(base, str):
        raise InputError(f"base_model must be a path; got {base!r}. Name a folder or file.")
    return base


def _model(entry: Mapping[str, Any]) -> str:
    model = entry.get("model")
    if not isinstance(model, str):
        raise InputError(f"a model must be a path; got {model!r}. Name a folder or file.")
    return model


def _check_tokenizer(source: Any, keeper: str) -> None:
    """Vocabularies must be one, so whose tokenizer is kept makes no difference to the tokens."""
    if source in (None, "base") or (isinstance(source, str) and same_model(source, keeper)):
        return
    raise InputError(
        f"tokenizer_source {source!r} is not supported: vocabularies must be one, and the "
        f"tokenizer of {keeper!r} is kept. Write `base`, or make that model the base."
    )
