"""Units: what a survey samples and resamples, whole documents, images or rows.

Holds: ``Units``, ``encode_labels``.
May import: torch, numpy, ``secant.errors``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secant.errors import InputError


@dataclass(frozen=True)
class Units:
    """Units in exactly one of four forms, with labels that line up with them.

    `texts`: a document each. `tensor`: (units, ...), a row each. `fields`: tensors by name, a
    list with one row for each unit, for models that take keyword inputs. `images`: files, read
    when they are needed. `labels`: (units,) or (units, ...), None if there are none; where they
    number classes by name, `classes` holds the names.
    """

    name: str
    texts: list[str] | None = None
    tensor: Tensor | None = None
    fields: dict[str, list[Tensor]] | None = None
    images: list[Path] | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        forms = (self.texts, self.tensor, self.fields, self.images)
        assert sum(form is not None for form in forms) == 1, "units have exactly one form"
        if self.labels is not None and len(self.labels) != len(self):
            raise InputError(
                f"data {self.name!r} must have one label a unit; got {len(self.labels)} labels "
                f"for {len(self)} units. Give labels that line up."
            )

    def __len__(self) -> int:
        """How many units."""
        if self.fields is not None:
            return len(next(iter(self.fields.values())))
        for form in (self.texts, self.tensor, self.images):
            if form is not None:
                return len(form)
        raise AssertionError("units have exactly one form")

    def not_finite(self) -> int:
        """How many units hold NaN or infinity."""
        if self.tensor is not None:
            return int((~torch.isfinite(self.tensor).reshape(len(self), -1).all(1)).sum())
        return sum(
            not all(bool(torch.isfinite(row).all()) for row in unit)
            for unit in zip(*(self.fields or {}).values(), strict=True)
        )

    def first(self, count: int | None) -> Units:
        """The first `count` units, or all."""
        return self if count is None else self.take(range(min(count, len(self))))

    def take(self, which: Sequence[int]) -> Units:
        """The units at these positions, with their labels."""
        chosen = list(which)

        def of(form: list[Any] | None) -> list[Any] | None:
            return None if form is None else [form[unit] for unit in chosen]

        fields = self.fields
        return Units(
            self.name,
            texts=of(self.texts),
            tensor=None if self.tensor is None else self.tensor[chosen],
            fields=fields
            and {key: [rows[unit] for unit in chosen] for key, rows in fields.items()},
            images=of(self.images),
            labels=None if self.labels is None else self.labels[chosen],
            classes=self.classes,
        )


def encode_labels(values: Sequence[Any], where: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels as a tensor: whole numbers int64, other numbers float32, words classes by name.

    Words that all read as numbers, as every cell of a .csv does, are numbers. Classes are
    numbered in the order of their sorted names.

    Raises: `InputError` naming the first unit whose label is missing.
    """
    for number, value in enumerate(values, start=1):
        is_nan = isinstance(value, float) and math.isnan(value)
        if value is None or value == "" or is_nan or not isinstance(value, str | int | float):
            raise InputError(
                f"{where}: unit {number} must have a label that is a word or a number; got "
                f"{value!r}. Fill it in, or leave the unit out."
            )
    for kind, dtype in ((int, torch.int64), (float, torch.float32)):
        try:
            numbers = [kind(value) for value in values]
            if all(float(value) == number for value, number in zip(values, numbers, strict=True)):
                return torch.tensor(numbers, dtype=dtype), None
        except (ValueError, OverflowError, RuntimeError):
            continue
    names = tuple(sorted({str(value) for value in values}))
    index = {name: position for position, name in enumerate(names)}
    return torch.tensor([index[str(value)] for value in values], dtype=torch.int64), names
