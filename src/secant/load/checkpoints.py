"""Checkpoints on disk as named tensors: names, types and shapes at once, values piece by piece.

Holds: ``Stored``, ``Checkpoint``, ``open_checkpoint``, ``weights_in``.
May import: numpy, ``secant.errors``, ``secant.load``; for state dicts torch, when one is opened.

Reads a .safetensors file, a sharded checkpoint by its index, a Hugging Face directory, or a state
dict (.pt, .pth, .bin). Headers and indices are only claims: each is held against the file, and an
index cannot name a file outside its folder. A pickle that needs code is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np

from secant.errors import LoadError
from secant.load.kinds import KINDS, Array, Kind

INDEX: Final = ".index.json"
STATE_DICTS: Final = (".pt", ".pth", ".bin")
IN_FOLDER: Final = (  # in the order in which transformers looks for them
    "model.safetensors", f"model.safetensors{INDEX}",
    "pytorch_model.bin", f"pytorch_model.bin{INDEX}",
)  # fmt: skip
LARGEST_HEADER: Final = 100_000_000  # the format's own limit
NAMED: Final = 10


class Source(Protocol):
    """Where a tensor's bytes are."""

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` with the bytes from `offset` on."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: its type and shape, and where its values are."""

    kind: Kind
    shape: tuple[int, ...]
    source: Source
    offset: int

    @property
    def count(self) -> int:
        """How many values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        return self.count * self.kind.size

    def read(self, start: int, stop: int) -> Array:
        """The values from `start` to `stop` of the flat tensor, in their stored type."""
        found = np.empty(stop - start, self.kind.stored)
        self.source.read(found.view(np.uint8).data, self.offset + start * self.kind.size)
        return found


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by name, in order; a context that closes its files.

    `folder` holds what belongs to the model beside its weights; None for a lone file.
    `shared` says of which other tensor a name is the same, where a state dict holds one twice.
    """

    path: Path
    folder: Path | None
    tensors: Mapping[str, Stored]
    shared: Mapping[str, str]
    files: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.files.close()


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a checkpoint without reading its values.

    Raises: `LoadError` for files that are missing, cut, or not what they say; for an index that
    names a file outside its folder or disagrees with its shards; for pickles that need code.
    """
    path = Path(path)
    place = weights_in(path) if path.is_dir() else path
    if not place.is_file():
        raise LoadError(
            f"checkpoint {str(path)!r}: no such file or folder. Give a folder with weights, a "
            ".safetensors file, an index of shards, or a state dict (.pt, .pth, .bin) on this disk."
        )
    folder = path if path.is_dir() else path.parent if place.name.endswith(INDEX) else None
    with ExitStack() as files:
        shared: dict[str, str] = {}
        if place.name.endswith(INDEX):
            tensors = _sharded(place, files, shared)
        else:
            tensors = _one_file(place, files, shared)
        if not tensors:
            raise LoadError(f"checkpoint {str(path)!r} holds no tensors. Give one with weights.")
        return Checkpoint(path, folder, tensors, shared, files.pop_all())


def weights_in(folder: Path) -> Path:
    """The weights of a folder: a file, or the index of its shards.

    Raises: `LoadError` if it holds none, or several and none by the usual name.
    """
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    others = sorted(one for one in folder.iterdir() if one.name.endswith(".safetensors"))
    others += sorted(one for one in folder.iterdir() if one.suffix in STATE_DICTS)
    if (folder / "adapter_config.json").is_file() or len(others) != 1:
        raise LoadError(
            f"checkpoint {str(folder)!r} must hold one of {', '.join(IN_FOLDER)}; it holds "
            f"{_some([one.name for one in others])}. Give the folder of a whole model, or a file."
        )
    return others[0]


def _one_file(path: Path, files: ExitStack, shared: dict[str, str]) -> dict[str, Stored]:
    if path.suffix == ".safetensors":
        return _safetensors(path, files)
    if path.suffix in STATE_DICTS:
        return _state_dict(path, shared)
    raise LoadError(
        f"checkpoint {str(path)!r}: unknown kind {path.suffix!r}. "
        "Use .safetensors, its index .json, or .pt, .pth or .bin as torch.save writes them."
    )


def _sharded(index: Path, files: ExitStack, shared: dict[str, str]) -> dict[str, Stored]:
    """The tensors of all shards, in the order of the index."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"index {str(index)!r} cannot be read ({error}). Get the whole checkpoint again."
        ) from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
        raise LoadError(
            f"index {str(index)!r} must have a 'weight_map' of tensors to files; it has none. "
            "Get the whole checkpoint again."
        )
    names = list(dict.fromkeys(places.values()))
    for name in names:
        parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
        # Only by its name: caches of downloads keep links in the folder to files elsewhere.
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts:
            raise LoadError(
                f"index {str(index)!r} names {name!r}, which is outside its folder, and is "
                "refused. Get the checkpoint from a source that you trust."
            )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise LoadError(
            f"checkpoint {str(index.parent)!r}: {len(missing)} of {len(names)} shards are not "
            f"there: {_some(missing)}. Get the whole checkpoint."
        )
    tensors = {}
    for name in names:
        shard = _one_file(index.parent / name, files, shared)
        wanted = {key for key, place in places.items() if place == name}
        if wanted != shard.keys():
            raise LoadError(
                f"shard {str(index.parent / name)!r} does not fit its index: missing "
                f"{_some(sorted(wanted - shard.keys()))}, not named there "
                f"{_some(sorted(shard.keys() - wanted))}. Get the whole checkpoint again."
            )
        tensors.update(shard)
    return {key: tensors[key] for key in places}


@dataclass(frozen=True)
class _File:
    """Bytes of an open file. Read, not mapped: memory stays small, and a file that is cut while
    it is read is an error, not a signal."""

    path: Path
    descriptor: int

    def read(self, into: memoryview, offset: int) -> None:
        done = 0
        while done < len(into):
            got = os.preadv(self.descriptor, [into[done:]], offset + done)
            if not got:
                raise _lying(self.path, "it ends before its last tensor")
            done += got


def _safetensors(path: Path, files: ExitStack) -> dict[str, Stored]:
    """The tensors that the header names, after every claim of it was held against the file."""
    source = _File(path, _opened(path, files))
    whole = path.stat().st_size
    if whole < 8:
        raise _lying(path, "it is shorter than its header")
    first = bytearray(8)
    source.read(memoryview(first), 0)
    size = int.from_bytes(first, "little")
    if size > min(whole - 8, LARGEST_HEADER):
        raise _lying(path, f"its header claims {size} bytes")
    raw = bytearray(size)
    source.read(memoryview(raw), 8)
    try:
        header = json.loads(raw, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise _lying(path, f"its header is not JSON: {str(error)[:80]}") from error
    if not isinstance(header, dict):
        raise _lying(path, "its header is not a table")
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    tensors, end = {}, 0
    for name, (kind, shape, start, stop) in sorted(spans.items(), key=lambda one: one[1][2:]):
        if start != end:
            raise _lying(path, f"{name!r} starts at byte {start}, not {end}")
        end = stop
        tensors[name] = Stored(kind, shape, source, 8 + size + start)
    if 8 + size + end != whole:
        raise _lying(path, f"its tensors take {end} bytes and it has {whole - 8 - size}")
    return {name: tensors[name] for name in header}


def _opened(path: Path, files: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise LoadError(
            f"checkpoint {str(path)!r} cannot be opened ({error.strerror}). Check its permissions."
        ) from error
    files.callback(os.close, descriptor)
    return descriptor


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _span(path: Path, name: str, entry: Any) -> tuple[Kind, tuple[int, ...], int, int]:
    """A tensor's type, shape, first and last byte, if they agree."""
    is_table = isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"}
    if not is_table:
        raise _lying(path, f"{name!r} has no type, shape and place")
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _lying(path, f"{name!r} has shape {shape!r} and place {offsets!r}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in KINDS:
        raise LoadError(
            f"checkpoint {str(path)!r}: {name!r} has type {entry['dtype']!r}; known are "
            f"{', '.join(KINDS)}. Save it in one of these."
        )
    kind = KINDS[entry["dtype"]]
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * kind.size:
        raise _lying(path, f"{name!r} of shape {shape!r} cannot lie at {offsets!r}")
    return kind, tuple(shape), offsets[0], offsets[1]


def _lying(path: Path, why: str) -> LoadError:
    return LoadError(
        f"checkpoint {str(path)!r} cannot be read ({why}). "
        "The file is cut, corrupt or of another kind; get or write it again."
    )


@dataclass(frozen=True)
class _Memory:
    """Bytes of an array, which is itself mapped from a file."""

    bytes: Array

    def read(self, into: memoryview, offset: int) -> None:
        np.frombuffer(into, np.uint8)[:] = self.bytes[offset : offset + len(into)]


def _state_dict(path: Path, shared: dict[str, str]) -> dict[str, Stored]:
    # Only here: torch takes longer to import than a merge of safetensors to run.
    from secant.load.state_dicts import mapped_arrays

    arrays, twins = mapped_arrays(path)
    shared.update(twins)
    return {
        name: Stored(kind, shape, _Memory(raw), 0) for name, (kind, shape, raw) in arrays.items()
    }


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more
