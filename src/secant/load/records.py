"""Texts and labels from files of records: .txt, .jsonl, .csv, .parquet.

Holds: ``read_texts``.
May import: the standard library, pyarrow (extra ``parquet``), ``secant.errors``, ``secant.load``.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secant.errors import LoadError
from secant.load.units import Units, encode_labels


def read_texts(path: Path, column: str, label_column: str | None, rows: int | None) -> Units:
    """A text a unit: the lines of a .txt that are not blank, or `column` of the records.

    `label_column` names the field that holds the labels, which .txt does not have.

    Raises: `LoadError` for a file that cannot be read or lacks a column.
    """
    name = path.name
    if path.suffix == ".txt":
        if label_column is not None:
            raise LoadError(
                f"data {str(path)!r}: a .txt file has no columns; got label column "
                f"{label_column!r}. Use .jsonl, .csv or .parquet for labels."
            )
        return Units(name, texts=[record["text"] for record in _records(path, ["text"])][:rows])
    wanted = [column] if label_column is None else [column, label_column]
    records = _records(path, wanted)[:rows]
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not isinstance(record.get(column), str):
            found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise LoadError(
                f"data {str(path)!r}, record {number}: no text in column {column!r}; "
                f"found {found}. Name the text column with --column."
            )
        if label_column is not None and label_column not in record:
            raise LoadError(
                f"data {str(path)!r}, record {number}: no label column {label_column!r}; "
                f"found {sorted(map(str, record))}. Name it with --label-column."
            )
    labels = classes = None
    if label_column is not None:
        values = [record[label_column] for record in records]
        labels, classes = encode_labels(values, f"data {str(path)!r}, column {label_column!r}")
    texts = [record[column] for record in records]
    return Units(name, texts=texts, labels=labels, classes=classes)


def _records(path: Path, columns: list[str]) -> list[Any]:
    if path.suffix == ".parquet":
        return _parquet(path, columns)
    try:
        # utf-8-sig: spreadsheets begin a .csv with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file, _long_cells():
            if path.suffix == ".txt":
                return [{"text": line.strip()} for line in file if line.strip()]
            if path.suffix == ".jsonl":
                return [json.loads(line) for line in file if line.strip()]
            if path.suffix == ".csv":
                return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error, RecursionError) as error:
        raise LoadError(
            f"data {str(path)!r} cannot be read ({error}). Save it as UTF-8 in its own format."
        ) from error
    raise LoadError(
        f"data {str(path)!r}: unknown kind {path.suffix!r}. Use .txt, .jsonl, .csv, .parquet, "
        ".npy, .npz, .safetensors or a folder of images."
    )


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let a .csv cell hold a whole document; the module's limit is 128 KiB."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, columns: list[str]) -> list[Any]:
    if importlib.util.find_spec("pyarrow") is None:
        raise LoadError(
            f"data {str(path)!r}: .parquet needs pyarrow, which is not installed. "
            "Install with `pip install 'secant[parquet]'`."
        )
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        known = [column for column in columns if column in names]
        records = parquet.read_table(path, columns=known).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        raise LoadError(
            f"data {str(path)!r} is not a whole parquet file "
            f"({str(error).splitlines()[0]}). Write it again."
        ) from error
    if len(known) < len(columns):
        lost = next(column for column in columns if column not in names)
        option = "--column" if lost == columns[0] else "--label-column"
        raise LoadError(
            f"data {str(path)!r}: no column {lost!r}; found {names}. Name one with {option}."
        )
    return records  # type: ignore[no-any-return]
