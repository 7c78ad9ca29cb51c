"""Data as units, from files, folders or Python: whole documents or images, never tokens.

Holds: ``Units`` (re-exported) and ``load_data``.
May import: torch, numpy, ``secant.errors``, ``secant.load``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secant.errors import LoadError
from secant.load.arrays import SUFFIXES, read_array
from secant.load.demo import digits
from secant.load.images import read_folder
from secant.load.loaders import from_object
from secant.load.options import DEFAULTS, LoadOptions
from secant.load.records import read_texts
from secant.load.units import Units as Units


def load_data(
    source: Any, column: str = "text", options: LoadOptions = DEFAULTS, rows: int | None = None
) -> Units:
    """Units from a name or an object; the first `rows` of them.

    By name: `demo:digits`; `.txt` (a line each), `.jsonl`, `.csv`, `.parquet` (extra `parquet`),
    whose text field `column` names; `.npy`, `.npz`, `.safetensors`, where `column` names one of
    several arrays; a folder of .png and .jpg files (extra `images`), whose subfolders are labels.

    From Python: a tensor (units, ...), a list of texts, or a DataLoader or other iterable of
    batches, which is read once, until there are `rows` units, and kept in memory
    (see `from_object`).

    Labels come from the field or array `options.label_column`, from subfolders, from the
    batches or with the digits, and line up with the units.

    Raises: `LoadError` for a file that is missing, empty, unreadable or lacks the column;
    `InputError` for an object of another kind, and if there is no number in it, only NaN.
    """
    if isinstance(source, str | Path):
        units = _from_file(str(source), column, options.label_column, rows).first(rows)
    else:
        units = from_object(source, column, options.label_column, rows)
    if len(units) == 0:
        raise LoadError(f"data {units.name!r} holds no units. Give at least a few.")
    tables: dict[str, Iterable[Tensor]] = dict(units.fields or {})
    if units.tensor is not None:
        tables[""] = units.tensor
    for name, values in tables.items():
        if not any(bool(torch.isfinite(row).any()) for row in values):
            field = f" in {name!r}" if name else ""
            raise LoadError(
                f"data {units.name!r} must hold numbers; every value{field} of all {len(units)} "
                f"units, of shape {tuple(next(iter(values)).shape)}, is NaN or infinite. "
                "Check how the data was made, and fill in what is missing."
            )
    return units


def _from_file(source: str, column: str, label_column: str | None, rows: int | None) -> Units:
    path = Path(source)
    if label_column is not None and (source == "demo:digits" or path.is_dir()):
        raise LoadError(
            f"data {source!r} has labels of its own; got label column {label_column!r}. "
            "Leave --label-column out."
        )
    if source == "demo:digits":
        images, labels = digits()
        return Units(source, tensor=images, labels=labels)
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise LoadError(
            f"data {source!r}: no such file. Give `demo:digits`, a .txt, .jsonl, .csv, .parquet, "
            ".npy, .npz or .safetensors file, or a folder of images."
        )
    if path.suffix in SUFFIXES:
        return read_array(path, column, label_column)
    return read_texts(path, column, label_column, rows)
