"""Rows of numbers from files of records: .csv and .jsonl, a column a feature.

Holds: ``read_table``.
May import: torch, ``secant.errors``, ``secant.load``.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Final

import torch

from secant.errors import LoadError
from secant.load.units import Units, encode_labels

SUFFIXES: Final = frozenset({".csv", ".jsonl"})


def read_table(path: Path, label_column: str | None, rows: int | None) -> Units:
    """A row of float64 a record: every column but the labels', in the first record's order.

    Raises: `LoadError` for a file that cannot be read, another set of columns, or a cell that is
    no number.
    """
    records = _records(path)[:rows]
    if not records:
        raise LoadError(f"data {str(path)!r} holds no records. Give at least a few.")
    if not isinstance(records[0], dict):
        raise LoadError(
            f"data {str(path)!r}, record 1: a record must name its columns; got "
            f"{type(records[0]).__name__}. Write an object a line."
        )
    names = [name for name in records[0] if name != label_column]
    if label_column is not None and label_column not in records[0]:
        raise LoadError(
            f"data {str(path)!r}: no label column {label_column!r}; found {sorted(names)}. "
            "Name it with --label-column."
        )
    if not names:
        raise LoadError(
            f"data {str(path)!r} must have a column of numbers besides the labels; found none. "
            "Add one for each feature."
        )
    values = []
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or set(record) != set(records[0]):
            found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise LoadError(
                f"data {str(path)!r}, record {number}: columns must be those of the first, "
                f"{sorted(records[0])}; found {found}. Fill in what is missing."
            )
        values.append([_number(path, number, name, record[name]) for name in names])
    labels = classes = None
    if label_column is not None:
        named = [record[label_column] for record in records]
        labels, classes = encode_labels(named, f"data {str(path)!r}, column {label_column!r}")
    table = torch.tensor(values, dtype=torch.float64)
    return Units(path.name, tensor=table, labels=labels, classes=classes)


def _records(path: Path) -> list[Any]:
    try:
        # utf-8-sig: spreadsheets begin a .csv with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return list(csv.DictReader(file))
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise LoadError(
            f"data {str(path)!r} cannot be read ({error}). Save it as UTF-8 in its own format."
        ) from error


def _number(path: Path, number: int, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise LoadError(
            f"data {str(path)!r}, record {number}: column {name!r} must hold numbers; got "
            f"{value!r}. Give numbers alone, or a --model that reads the text."
        ) from error
