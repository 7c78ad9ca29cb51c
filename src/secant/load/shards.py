"""Checkpoints written to disk: safetensors in shards with an index, any piece at any time.

Holds: ``Planned``, ``ShardWriter``.
May import: numpy, ``secant.errors``, ``secant.load``.

Sizes are known before the first value, so headers are written first and pieces of tensors go to
their places from any thread.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from secant.errors import InputError
from secant.load.kinds import Array, Kind


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.kind.size


class ShardWriter:
    """Open files for all tensors, in shards of at most `shard_bytes` where one tensor allows it.

    `shared` are further names of a tensor, kept in the file's metadata as safetensors' own
    `save_model` keeps them.
    """

    def __init__(
        self, folder: Path, tensors: Sequence[Planned], shard_bytes: int, shared: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.places: dict[str, tuple[int, int]] = {}
        self.names: list[str] = []
        self._files = ExitStack()
        shards: list[list[Planned]] = [[]]
        size = 0
        for tensor in tensors:
            if shards[-1] and size + tensor.bytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(tensor)
            size += tensor.bytes
        try:
            index: dict[str, str] = {}
            for number, shard in enumerate(shards, start=1):
                name = "model.safetensors"
                if len(shards) > 1:
                    name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
                self._begin(name, shard, shared)
                index |= {tensor.name: name for tensor in shard}
            if len(shards) > 1:
                total = sum(tensor.bytes for tensor in tensors)
                table = {"metadata": {"total_size": total}, "weight_map": index}
                path = folder / "model.safetensors.index.json"
                path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            self._files.close()
            raise _failed(folder, error) from error
        except BaseException:
            self._files.close()
            raise

    def _begin(self, name: str, shard: Sequence[Planned], shared: Mapping[str, str]) -> None:
        """Open a shard and write its header."""
        own = {tensor.name for tensor in shard}
        twins = {twin: kept for twin, kept in shared.items() if kept in own}
        header: dict[str, object] = {"__metadata__": {"format": "pt", **twins}}
        end = 0
        # Widest types first, as safetensors itself has them, so that each tensor is aligned.
        for tensor in sorted(shard, key=lambda one: -one.kind.size):
            header[tensor.name] = {
                "dtype": tensor.kind.name, "shape": tensor.shape,
                "data_offsets": [end, end + tensor.bytes],
            }  # fmt: skip
            self.places[tensor.name] = (0, end)
            end += tensor.bytes
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        raw += b" " * (-len(raw) % 8)
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._files.callback(os.close, descriptor)
        _write_all(descriptor, memoryview(len(raw).to_bytes(8, "little") + raw), 0)
        os.truncate(descriptor, 8 + len(raw) + end)
        for tensor in shard:
            start = self.places[tensor.name][1]
            self.places[tensor.name] = (descriptor, 8 + len(raw) + start)
        self.names.append(name)

    def write(self, name: str, start: int, stored: Array) -> None:
        """Put values of the tensor `name`, from `start` of the flat tensor on, to their place.

        Raises: `InputError` if the disk takes no more.
        """
        descriptor, offset = self.places[name]
        try:
            _write_all(descriptor, stored.view(np.uint8).data, offset + start * stored.itemsize)
        except OSError as error:
            raise _failed(self.folder, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._files.close()
        except OSError as failure:  # some file systems say only now that they are full
            raise _failed(self.folder, failure) from failure


def _write_all(descriptor: int, raw: memoryview, offset: int) -> None:
    done = 0
    while done < len(raw):
        done += os.pwrite(descriptor, raw[done:], offset + done)


def _failed(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"the merge cannot be written in {str(folder.parent)!r} ({error.strerror}), and nothing of "
        "it is left there. Make room, or name another folder with --out."
    )
