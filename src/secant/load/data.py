"""Data as units: whole documents or images, never tokens.

Holds: ``Units`` and ``load_data``.
May import: torch, numpy, safetensors, ``secant.errors``, ``secant.load.demo``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secant.errors import LoadError


@dataclass(frozen=True)
class Units:
    """Texts, or one tensor whose first dimension is the unit."""

    name: str
    texts: list[str] | None = None
    tensor: Tensor | None = None

    def __len__(self) -> int:
        """How many units."""
        return len(self.texts) if self.texts is not None else len(self.tensor)  # type: ignore[arg-type]

    def digest(self) -> str:
        """A fingerprint of the contents."""
        digest = hashlib.blake2b(digest_size=16)
        if self.texts is not None:
            for text in self.texts:
                digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
        elif self.tensor is not None:
            digest.update(f"{tuple(self.tensor.shape)} {self.tensor.dtype}".encode())
            digest.update(self.tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def first(self, count: int | None) -> Units:
        """The first `count` units, or all."""
        if count is None:
            return self
        texts = None if self.texts is None else self.texts[:count]
        tensor = None if self.tensor is None else self.tensor[:count]
        return Units(self.name, texts, tensor)


def load_data(source: str, column: str = "text") -> Units:
    """Units from `demo:digits`, `.txt` (a line each), `.jsonl`, `.csv`, `.npy`, `.safetensors`.

    `column` names the text field of `.jsonl` and `.csv`.

    Raises: `LoadError` for a file that is missing, empty, unreadable or lacks the column.
    """
    if source == "demo:digits":
        from secant.load.demo import digits

        return Units(source, tensor=digits()[0])
    path = Path(source)
    if not path.is_file():
        raise LoadError(
            f"data {source!r}: no such file. Give `demo:digits` or a .txt, .jsonl, .csv, "
            ".npy or .safetensors file."
        )
    if path.suffix in {".npy", ".safetensors"}:
        tensor = _read_tensor(path)
        if tensor.ndim == 0 or tensor.is_complex():
            raise LoadError(
                f"data {source!r} must be a real tensor whose first dimension is the unit; got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}. Save one row for each unit."
            )
        units = Units(path.name, tensor=tensor)
    else:
        units = Units(path.name, texts=_read_texts(path, column))
    if len(units) == 0:
        raise LoadError(f"data {source!r} holds no units. Give a file with at least a few.")
    return units


def _read_tensor(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        tensors = load_file(path)
    except SafetensorError as error:
        raise LoadError(
            f"data {str(path)!r} is not valid safetensors ({error}). Write it again."
        ) from error
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise LoadError(
            f"data {str(path)!r} cannot be read as an array ({error}). "
            "Save plain numbers, without objects."
        ) from error
    if len(tensors) != 1:
        raise LoadError(
            f"data {str(path)!r} must hold one tensor; got {sorted(tensors)}. Save one."
        )
    return next(iter(tensors.values()))


def _read_texts(path: Path, column: str) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".txt":
                return [line.strip() for line in file if line.strip()]
            if path.suffix == ".jsonl":
                records = [json.loads(line) for line in file if line.strip()]
            elif path.suffix == ".csv":
                records = list(csv.DictReader(file))
            else:
                raise LoadError(
                    f"data {str(path)!r}: unknown kind {path.suffix!r}. "
                    "Use .txt, .jsonl, .csv, .npy or .safetensors."
                )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise LoadError(
            f"data {str(path)!r} cannot be read ({error}). Save it as UTF-8 in its own format."
        ) from error
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not isinstance(record.get(column), str):
            found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise LoadError(
                f"data {str(path)!r}, record {number}: no text in column {column!r}; "
                f"found {found}. Name the text column with --column."
            )
    return [record[column] for record in records]
