"""Units turned into the batches that a model takes, in the plan's order.

Holds: ``Feed``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from secant.engine.plan import Batch, plan_batches
from secant.errors import InputError
from secant.load.data import Units
from secant.load.models import Loaded


class Feed:
    """Units turned into batches that one model takes, padded where they are texts."""

    def __init__(
        self, loaded: Loaded, units: Units, *, groups: int, batch_size: int, seed: int
    ) -> None:
        self.loaded = loaded
        if units.texts is not None:
            if loaded.tokenizer is None:
                raise InputError(
                    f"model {loaded.name!r} takes tensors, but {units.name!r} holds texts. "
                    "Give it tensors (.npy, .safetensors, demo:digits)."
                )
            self.ids = loaded.tokenizer(units.texts, truncation=True)["input_ids"]
            contents = [text.encode() for text in units.texts]
            lengths = [len(ids) for ids in self.ids]
        else:
            assert units.tensor is not None
            if loaded.tokenizer is not None:
                raise InputError(
                    f"model {loaded.name!r} reads text, but {units.name!r} holds tensors. "
                    "Give it a .txt, .jsonl or .csv file."
                )
            self.tensor = units.tensor.float()
            contents = [row.numpy().tobytes() for row in self.tensor]
            lengths = [1] * len(contents)
        self.contents = contents
        self.lengths = lengths
        self.batches = plan_batches(contents, lengths, groups=groups, size=batch_size, seed=seed)

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Callable[[], Any], Tensor | None]:
        """The forward call of one batch, to be made while sites are watched, and its mask."""
        if self.loaded.tokenizer is None:
            tensor = self.tensor[list(batch.units)]
            return lambda: model(tensor), None
        padded = self.loaded.tokenizer.pad(
            {"input_ids": [self.ids[unit] for unit in batch.units]}, return_tensors="pt"
        )
        return lambda: model(**padded), padded["attention_mask"].bool()
