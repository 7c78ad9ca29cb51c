"""Units from Python: tensors, lists of texts, and DataLoaders or other batches.

Holds: ``from_object``.
May import: torch, ``secant.errors``, ``secant.load``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from secant.errors import InputError
from secant.load.arrays import check_rows
from secant.load.units import Units, encode_labels

LABEL_KEYS: Final = ("labels", "label")
MASK: Final = "attention_mask"


def from_object(data: Any, column: str, label_column: str | None, rows: int | None) -> Units:
    """Units from a tensor (units, ...), a list of texts, or an iterable of batches.

    A batch is a tensor, `(tensor, labels)`, a list of texts, `(texts, labels)`, or a dict of
    tensors by keyword (labels under `label_column`, else `labels` or `label`) or with texts
    under `column`; a unit is a row of it. The batches are read once, until there are `rows`
    units, and kept in memory. Where a dict has an `attention_mask`, the padding at both ends
    is cut off, so that a document is the same unit whatever it was padded beside.

    Raises: `InputError` for a batch of another kind.
    """
    name = type(data).__name__
    if isinstance(data, Units):
        return data.first(rows)
    if isinstance(data, Tensor):
        return Units(name, tensor=check_rows(data.detach().cpu(), name)).first(rows)
    if _is_texts(data):
        return Units("texts", texts=list(data)).first(rows)
    if not isinstance(data, Iterable) or isinstance(data, Mapping):
        raise InputError(
            f"data must be a file's name, a tensor, a list of texts or a DataLoader; got {name}. "
            "Wrap a Dataset in torch.utils.data.DataLoader."
        )
    gathered = _Gathered()
    for batch in data:
        gathered.add(batch, column, label_column)
        if rows is not None and gathered.count >= rows:
            break
    return gathered.units(name).first(rows)


def _is_texts(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(isinstance(part, str) for part in value)


class _Gathered:
    """Batches taken apart into rows."""

    def __init__(self) -> None:
        self.count = 0
        self.parts: tuple[str, ...] | None = None
        self.texts: list[str] = []
        self.fields: dict[str, list[Tensor]] = {}
        self.labels: list[Any] = []

    def add(self, batch: Any, column: str, label_column: str | None) -> None:
        """Append the rows of one batch."""
        inputs, labels = _split(batch, column, label_column)
        found: dict[str, Any] = {}
        if _is_texts(inputs):
            parts, rows = ["texts"], len(inputs)
            self.texts += inputs
        else:
            found = _as_fields(inputs)
            parts, rows = sorted(found), len(next(iter(found.values())))
        parts += [] if labels is None else ["with labels"]
        if self.parts is None:
            self.parts = tuple(parts)
        if self.parts != tuple(parts):
            raise InputError(
                f"data: every batch must have the same parts; got {parts} after "
                f"{list(self.parts)}. Change the DataLoader's collate_fn."
            )
        for key, value in found.items():
            # Cloned, because a row that is a view would keep its whole batch in memory.
            self.fields.setdefault(key, []).extend(row.clone() for row in value.detach().cpu())
        if labels is not None:
            if len(labels) != rows:
                raise InputError(
                    f"data: a batch must have one label a unit; got {len(labels)} labels for "
                    f"{rows} units. Change the DataLoader's collate_fn."
                )
            self.labels += list(labels)
        self.count += rows

    def units(self, name: str) -> Units:
        """Everything gathered, as units."""
        labels: Tensor | None = None
        classes = None
        if self.labels and isinstance(self.labels[0], Tensor):
            labels = torch.stack([label.detach().cpu() for label in self.labels])
        elif self.labels:
            labels, classes = encode_labels(self.labels, "data")
        if self.texts or not self.fields:
            return Units(name, texts=self.texts, labels=labels, classes=classes)
        if set(self.fields) == {""}:
            rows = self.fields[""]
            shapes = sorted({tuple(row.shape) for row in rows})
            if len(shapes) > 1:
                raise InputError(
                    f"data: rows must have one shape; got {shapes[0]} and {shapes[1]}. "
                    "Give a dict with an attention_mask for inputs of several lengths."
                )
            return Units(name, tensor=torch.stack(rows), labels=labels, classes=classes)
        return Units(name, fields=_unpadded(self.fields), labels=labels, classes=classes)


def _split(batch: Any, column: str, label_column: str | None) -> tuple[Any, Any]:
    """The inputs of a batch and its labels, None if it has none."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        keys = LABEL_KEYS if label_column is None else (label_column,)
        key = next((key for key in keys if key in inputs), None)
        if key is None and label_column is not None:
            raise InputError(
                f"data: no labels {label_column!r} in a batch of {sorted(inputs)}. "
                "Name the labels with label_column."
            )
        labels = None if key is None else inputs.pop(key)
        return (inputs[column] if _is_texts(inputs.get(column)) else inputs), labels
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= 2 and not _is_texts(batch):
        return batch[0], batch[1] if len(batch) == 2 else None
    return batch, None


def _as_fields(inputs: Any) -> dict[str, Tensor]:
    """Tensors by keyword; the name of a tensor alone is empty."""
    found = {"": inputs} if isinstance(inputs, Tensor) else inputs
    is_fields = isinstance(found, dict) and found
    if not is_fields or not all(isinstance(v, Tensor) and v.ndim for v in found.values()):
        raise InputError(
            "data: a batch must be a tensor, (tensor, labels), texts or a dict of tensors; got "
            f"{_shape_of(inputs)}. Change the DataLoader's collate_fn."
        )
    for key, value in found.items():
        check_rows(value, key or "batch")
    if len({len(value) for value in found.values()}) != 1:
        raise InputError(
            f"data: the tensors of a batch must have one first dimension; got "
            f"{ {key: tuple(value.shape) for key, value in found.items()} }. "
            "Give one row for each unit."
        )
    return dict(found)


def _unpadded(fields: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Rows without the padding that the attention mask shows at their ends."""
    masks = fields.get(MASK)
    if masks is None or any(mask.ndim != 1 for mask in masks):
        return fields
    spans = []
    for number, mask in enumerate(masks, start=1):
        kept = mask.nonzero().flatten()
        if len(kept) == 0:
            raise InputError(
                f"data: the attention_mask of unit {number} is empty. Leave such units out."
            )
        spans.append(slice(int(kept[0]), int(kept[-1]) + 1))
    along = {
        key: all(row.ndim and len(row) == len(mask) for row, mask in zip(rows, masks, strict=True))
        for key, rows in fields.items()
    }
    return {
        key: [row[span] for row, span in zip(rows, spans, strict=True)] if along[key] else rows
        for key, rows in fields.items()
    }


def _shape_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {sorted(map(str, value))}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
