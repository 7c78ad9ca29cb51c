"""Dataclasses from plain JSON data, every field checked against its type.

Holds: ``record``, ``NotARecordError``.
May import: the standard library.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


class NotARecordError(Exception):
    """Data without the fields or types that were expected; the message names the place."""


def record(kind: type[Made], data: Any, where: str) -> Made:
    """An instance of the dataclass `kind` from a dictionary; `where` begins the place in errors.

    Raises: `NotARecordError` for a missing, unknown or mistyped field, and for a null where a
    number must be.
    """
    if not isinstance(data, dict):
        raise NotARecordError(f"{where} should be an object, got {_kind(data)}")
    hints = get_type_hints(kind)
    listed = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(listed))
    if unknown:
        raise NotARecordError(f"{where} has the unknown field {unknown[0]!r}")
    values = {}
    for name, one in listed.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}.{name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise NotARecordError(f"{where} lacks the field {name!r}")
    return kind(**values)


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return data
    if origin in (Union, UnionType):
        if data is None and type(None) in inner:
            return None
        (wanted,) = (one for one in inner if one is not type(None))
        return _value(wanted, data, where)
    if is_dataclass(hint):
        return record(hint, data, where)  # type: ignore[arg-type]
    if origin is dict and isinstance(data, dict):
        return {key: _value(inner[1], item, f"{where}.{key}") for key, item in data.items()}
    if origin is list and isinstance(data, list):
        return [_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
    if origin is tuple and isinstance(data, list) and len(data) == len(inner):
        return tuple(_value(inner[i], item, f"{where}[{i}]") for i, item in enumerate(data))
    if hint is float and _is_number(data) and abs(data) < 1e308:
        return float(data)
    if hint is int and isinstance(data, int) and not isinstance(data, bool):
        return data
    if hint is str and isinstance(data, str):
        return data
    raise NotARecordError(f"{where} should be {_named(hint)}, got {_kind(data)}")


def _is_number(data: Any) -> bool:
    is_real = isinstance(data, int | float) and not isinstance(data, bool)
    return is_real and (isinstance(data, int) or math.isfinite(data))


def _named(hint: Any) -> str:
    plain = {float: "a number", int: "a whole number", str: "text"}
    if hint in plain:
        return plain[hint]
    made = {list: "a list", dict: "an object", tuple: f"a list of {len(get_args(hint))}"}
    return made[get_origin(hint)]


def _kind(data: Any) -> str:
    return "null" if data is None else type(data).__name__
