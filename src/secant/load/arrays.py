"""Rows and labels from arrays: .npy, .npz, .safetensors.

Holds: ``read_array``.
May import: torch, numpy, safetensors, ``secant.errors``, ``secant.load``.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secant.errors import LoadError
from secant.load.units import Units, encode_labels

SUFFIXES: Final = frozenset({".npy", ".npz", ".safetensors"})
# What numpy, zipfile and zlib raise for files that are cut, foreign, or lie about their size
# (MemoryError), kind (NotImplementedError: a compression) or objects; all become one LoadError.
UNREADABLE: Final = (
    ValueError, TypeError, EOFError, OSError, KeyError, MemoryError, NotImplementedError,
    RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_array(path: Path, column: str, label_column: str | None) -> Units:
    """A row of the array a unit; of several arrays, the one that `column` names.

    `label_column` names the array of labels in an .npz or .safetensors file.

    Raises: `LoadError` for a file that cannot be read, holds objects, or lacks the array.
    """
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    try:
        if path.suffix == ".npy":
            if label_column is not None:
                raise LoadError(
                    f"data {str(path)!r}: an .npy file holds one array; got label column "
                    f"{label_column!r}. Use .npz or .safetensors for rows with labels."
                )
            rows = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                rows, labels, classes = _choose(
                    path, list(file.files), lambda key: file[key], column, label_column
                )
        else:
            with safe_open(path, framework="pt") as file:
                rows, labels, classes = _choose(
                    path, list(file.keys()), file.get_tensor, column, label_column
                )
    except LoadError:
        raise
    except SafetensorError as error:
        raise LoadError(
            f"data {str(path)!r} is not valid safetensors ({error}). Write it again."
        ) from error
    except UNREADABLE as error:
        raise LoadError(
            f"data {str(path)!r} cannot be read as an array ({error}). "
            "Save plain numbers, without objects."
        ) from error
    return Units(path.name, tensor=check_rows(rows, str(path)), labels=labels, classes=classes)


def check_rows(rows: Tensor, where: str) -> Tensor:
    """`rows`, if it is a real tensor with a first dimension; `LoadError` otherwise."""
    if rows.ndim == 0 or rows.is_complex():
        raise LoadError(
            f"data {where!r} must be a real tensor whose first dimension is the unit; got "
            f"{rows.dtype} of shape {tuple(rows.shape)}. Save one row for each unit."
        )
    return rows


def _choose(
    path: Path,
    keys: list[str],
    get: Callable[[str], Any],
    column: str,
    label_column: str | None,
) -> tuple[Tensor, Tensor | None, tuple[str, ...] | None]:
    """The array of rows and that of labels, read from a file of several."""
    if label_column is not None and label_column not in keys:
        raise LoadError(
            f"data {str(path)!r}: no array {label_column!r}; found {sorted(keys)}. "
            "Name the labels with --label-column."
        )
    others = [key for key in keys if key != label_column]
    if column not in others and len(others) != 1:
        raise LoadError(
            f"data {str(path)!r} must hold one array of rows, or one named {column!r}; got "
            f"{sorted(others)}. Name one of several with --column."
        )
    rows = get(column if column in others else others[0])
    rows = rows if isinstance(rows, Tensor) else torch.from_numpy(rows)
    if label_column is None:
        return rows, None, None
    labels = get(label_column)
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind == "U":
            return rows, *encode_labels(labels.tolist(), f"data {str(path)!r}")
        labels = torch.from_numpy(labels)
    return rows, check_rows(labels, f"{path}, {label_column}"), None
