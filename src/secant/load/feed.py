"""Units turned into the batches that a model takes, in the plan's order.

Holds: ``Feed``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secant.engine.plan import Batch, plan_batches
from secant.errors import InputError, ListenerError, SecantError
from secant.load.huggingface import quiet
from secant.load.images import open_image
from secant.load.loaded import Loaded
from secant.load.units import Units

Inputs = Tensor | dict[str, Tensor]
MASK = "attention_mask"
# What torch and transformers raise for inputs that a model was not made for.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


class Feed:
    """Units turned into batches that one model takes, padded on the right where they are texts.

    `units` are those that the batches count in: the given ones without empty texts. `notes`
    say what was dropped or cut off. The plan sees each unit's content, never its device or
    dtype; `digest` is its fingerprint. Texts and rows are kept in memory; images are opened batch
    by batch.
    """

    def __init__(
        self, loaded: Loaded, units: Units, *, groups: int, batch_size: int, seed: int
    ) -> None:
        self.loaded = loaded
        self.notes: list[str] = list(loaded.notes)
        spoilt = units.not_finite()
        if spoilt:
            self.notes.append(f"{spoilt} of {len(units)} units of the data hold NaN or infinity.")
        self.units = units
        self._takes = None if units.fields is not None else _keywords(loaded)
        if units.texts is not None:
            contents, lengths = self._read_texts(units.texts)
        elif units.images is not None:
            contents, lengths = self._read_images(units)
        elif units.fields is not None:
            self.fields = {key: _exact(rows) for key, rows in units.fields.items()}
            contents = [
                b"".join(rows[unit].numpy().tobytes() for rows in self.fields.values())
                for unit in range(len(units))
            ]
            lengths = [max(_length(rows[unit]) for rows in self.fields.values())
                       for unit in range(len(units))]  # fmt: skip
        else:
            self.tensor = self._read_tensor(units)
            is_whole = not self.tensor.is_floating_point()
            contents = [(row if is_whole else row.float()).numpy().tobytes() for row in self.tensor]
            lengths = [1] * len(contents)
        self.digest = digest_of(contents)
        self.contents = contents
        self.lengths = lengths
        self.batches = plan_batches(contents, lengths, groups=groups, size=batch_size, seed=seed)

    def _read_texts(self, texts: list[str]) -> tuple[list[bytes], list[int]]:
        tokenizer, limit = self.loaded.tokenizer, self.loaded.max_length
        if tokenizer is None:
            raise InputError(
                f"model {self.loaded.name!r} has no tokenizer{self._why()}, but "
                f"{self.units.name!r} holds texts. "
                "Give it tensors (.npy, .npz, .safetensors, demo:digits)."
            )
        with quiet():  # it warns of long texts, which are cut below
            found = dict(tokenizer(texts))
            long = [unit for unit, ids in enumerate(found["input_ids"])
                    if limit is not None and len(ids) > limit]  # fmt: skip
            if long:
                cut = tokenizer([texts[u] for u in long], truncation=True, max_length=limit)
                for key, rows in found.items():
                    for place, unit in enumerate(long):
                        rows[unit] = cut[key][place]
                self.notes.append(
                    f"{len(long)} of {len(texts)} texts were longer than the model's {limit} "
                    "tokens and were cut off there."
                )
        kept = [u for u, text in enumerate(texts) if text.strip() and found["input_ids"][u]]
        if not kept:
            raise InputError(
                f"data {self.units.name!r} holds no units: every text is empty. "
                "Name the column that holds the texts with --column."
            )
        if len(kept) < len(texts):
            self.notes.append(f"{len(texts) - len(kept)} of {len(texts)} texts were empty.")
            self.units = self.units.take(kept)
        self.fields = {
            key: [torch.tensor(rows[unit], dtype=torch.int64) for unit in kept]
            for key, rows in found.items()
        }
        contents = [texts[unit].encode() for unit in kept]
        return contents, [len(ids) for ids in self.fields["input_ids"]]

    def _why(self) -> str:
        return f" ({self.loaded.reader_error})" if self.loaded.reader_error else ""

    def _read_images(self, units: Units) -> tuple[list[bytes], list[int]]:
        assert units.images is not None
        if self.loaded.processor is None:
            raise InputError(
                f"model {self.loaded.name!r} has no image processor{self._why()}, but "
                f"{units.name!r} holds images. "
                "Give it tensors (.npy, .npz, .safetensors)."
            )
        contents = []
        for path in units.images:
            try:
                contents.append(hashlib.blake2b(path.read_bytes()).digest())
            except OSError as error:
                raise InputError(
                    f"image {str(path)!r} cannot be read ({error.strerror}). Check its permissions."
                ) from error
        return contents, [1] * len(contents)

    def _read_tensor(self, units: Units) -> Tensor:
        """Rows as floats, unless the model has an embedding, which takes whole numbers."""
        assert units.tensor is not None
        is_whole = not units.tensor.is_floating_point()
        takes_ids = any(isinstance(m, nn.Embedding) for m in self.loaded.model.modules())
        if is_whole and takes_ids and self.loaded.processor is None:
            return units.tensor.long()
        if self.loaded.tokenizer is not None:
            raise InputError(
                f"model {self.loaded.name!r} reads text, but {units.name!r} holds "
                f"{units.tensor.dtype}. Give it a .txt, .jsonl, .csv or .parquet file, or rows of "
                "token numbers."
            )
        wide = self.loaded.dtype == torch.float64
        return units.tensor.double() if wide else units.tensor.float()

    def inputs(self, batch: Batch) -> tuple[Inputs, Tensor | None]:
        """What the model is given for a batch, and its mask (batch, length) if it has one.

        Both lie on the model's device; floats have the model's dtype.
        """
        mask: Tensor | None = None
        if self.units.tensor is not None:
            return self._placed(self.tensor[list(batch.units)]), None
        if self.units.images is not None:
            found = self._process(batch)
        else:
            found = {key: self._pad(key, [rows[unit] for unit in batch.units])
                     for key, rows in self.fields.items()}  # fmt: skip
            if MASK in found and found[MASK].ndim == 2:
                mask = found[MASK].bool().to(self.loaded.device)
        taken = {key: self._placed(value) for key, value in found.items()
                 if self._takes is None or key in self._takes}  # fmt: skip
        return taken, mask

    def _process(self, batch: Batch) -> dict[str, Tensor]:
        assert self.units.images is not None
        assert self.loaded.processor is not None
        channels = getattr(getattr(self.loaded.model, "config", None), "num_channels", 3)
        images = [open_image(self.units.images[unit], "L" if channels == 1 else "RGB")
                  for unit in batch.units]  # fmt: skip
        try:
            return dict(self.loaded.processor(images=images, return_tensors="pt"))
        except REFUSALS as error:
            raise self._refusal(error) from error

    def _pad(self, key: str, rows: Sequence[Tensor]) -> Tensor:
        """Rows of one batch stacked, the shorter ones filled up on the right."""
        longest = max(_length(row) for row in rows)
        if all(_length(row) == longest for row in rows):
            shapes = {tuple(row.shape) for row in rows}
            if len(shapes) > 1:
                raise InputError(
                    f"data {self.units.name!r}: {key!r} has rows of shapes {sorted(shapes)[:2]}, "
                    "which cannot be one batch. Give rows of one shape."
                )
            return torch.stack(list(rows))
        if MASK not in self.fields:
            raise InputError(
                f"data {self.units.name!r}: {key!r} has rows of several lengths and no "
                f"{MASK!r} to say what is padding. Add one to the batches."
            )
        fill = self._fill(key)
        return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)

    def _fill(self, key: str) -> int:
        """What padding holds: masked positions, so any token that the model knows will do."""
        tokenizer = self.loaded.tokenizer
        if key != "input_ids" or tokenizer is None:
            return 0
        for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return 0

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self.loaded.dtype if value.is_floating_point() else value.dtype
        return value.to(self.loaded.device, dtype)

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Callable[[], Any], Tensor | None]:
        """The forward call of one batch, to be made while sites are watched, and its mask.

        The call raises `InputError` if the model refuses the batch or returns no tensor.
        """
        inputs, mask = self.inputs(batch)
        return lambda: self._run(model, inputs), mask

    def _run(self, model: nn.Module, inputs: Inputs) -> Any:
        try:
            if self.loaded.call is not None:
                output = self.loaded.call(model, inputs)
            else:
                output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        except SecantError:
            raise
        except ListenerError as error:  # no refusal of the model's, but it may want room too
            if _is_out_of_memory(error.cause):
                raise self._too_large(error.cause) from error
            raise
        except REFUSALS as error:
            raise self._refusal(error) from error
        if not _holds_tensor(output):
            raise InputError(
                f"model {self.loaded.name!r} must return a tensor, or a tuple or dict that holds "
                f"one; got {type(output).__name__}. Adapt its forward with --call."
            )
        return output

    def _too_large(self, error: Exception) -> InputError:
        return InputError(
            f"model {self.loaded.name!r} ran out of memory on a batch ({_first_line(error)}). "
            "Lower --batch-size."
        )

    def _refusal(self, error: Exception) -> InputError:
        if _is_out_of_memory(error):
            return self._too_large(error)
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        return InputError(
            f"model {self.loaded.name!r} refuses the data: {kind}{_first_line(error)} "
            "Check that the data has the shape that the model was made for, or use --call."
        )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def digest_of(contents: Sequence[bytes]) -> str:
    """A fingerprint of the units in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _keywords(loaded: Loaded) -> frozenset[str] | None:
    """What the model takes of a tokenizer's or processor's output; None for all of it.

    Tokenizers may give more than a model takes (token types for DistilBERT). An adapter of the
    user's gets everything.
    """
    if loaded.call is not None:
        return None
    return frozenset(inspect.signature(loaded.model.forward).parameters)


def _exact(rows: list[Tensor]) -> list[Tensor]:
    """Rows in a type that numpy has, so that their bytes can be hashed."""
    return [row.float() if row.dtype in (torch.bfloat16, torch.float16) else row for row in rows]


def _length(row: Tensor) -> int:
    return len(row) if row.ndim else 1


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensor(part) for part in value.values())
    if isinstance(value, tuple | list):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, Tensor)
