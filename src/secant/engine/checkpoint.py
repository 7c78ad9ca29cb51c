"""What a long run has found so far, on disk, so that it can go on after a kill.

Holds: ``Checkpoint``, ``open_checkpoint``.
May import: torch, safetensors, ``secant.errors``, ``secant.engine.files``. Knows no model.

Every file is written whole or not at all, so a kill leaves the last whole one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secant.engine.files import folder_for, written_whole
from secant.errors import InputError, StateError

PLAN = "plan.json"


@dataclass
class Checkpoint:
    """Named steps of one run in a folder; `every_seconds` is how often sums are worth saving."""

    folder: Path
    every_seconds: float = 60.0
    _saved_at: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved_at >= self.every_seconds

    def save_sums(self, step: str, sums: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Keep tensors and where the step stands, in place of what was kept of it before.

        Raises: `StateError` if they cannot be written.
        """
        whole: dict[str, Tensor] = {}
        stored: set[int] = set()
        for name, tensor in sums.items():
            flat = tensor.contiguous().cpu()
            # safetensors refuses tensors that share memory, as two sites' centres may.
            whole[name] = flat.clone() if flat.data_ptr() in stored else flat
            stored.add(flat.data_ptr())
        with _writing(self.folder), written_whole(self._sums(step)) as part:
            save_file(whole, part, metadata={"progress": json.dumps(progress)})
        self._saved_at = time.monotonic()

    def sums(self, step: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_sums` kept of the step, None if nothing.

        Raises: `StateError` if the file cannot be read.
        """
        path = self._sums(step)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                progress = json.loads(file.metadata()["progress"])
                # Cloned: BLAS rounds by a tensor's place in memory, and a file's is not aligned.
                sums = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return sums, progress
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise _spoiled(path, error) from error

    def save_found(self, step: str, found: Any) -> None:
        """Keep a finished step's outcome as JSON, and no longer its sums; floats keep every bit.

        Raises: `StateError` if it cannot be written.
        """
        with _writing(self.folder):
            _write_json(self.folder / f"{step}.json", found)
            self._sums(step).unlink(missing_ok=True)

    def _sums(self, step: str) -> Path:
        return self.folder / f"{step}.safetensors"

    def found(self, step: str) -> Any | None:
        """What `save_found` kept of the step, None if nothing.

        Raises: `StateError` if the file cannot be read.
        """
        path = self.folder / f"{step}.json"
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _spoiled(path, error) from error

    def spoiled(self, step: str, error: Exception) -> StateError:
        """What to raise where the step's file can be read but is not what this run keeps."""
        return _spoiled(self.folder / step, error)

    def check(self, step: str, mark: str) -> None:
        """Note `mark` for the step, or make sure that it is the one noted before the kill.

        Raises: `InputError` if it is another.
        """
        noted = self.found(step)
        if noted is None:
            self.save_found(step, mark)
        elif noted != mark:
            raise InputError(
                f"the run kept in {str(self.folder)!r} had another fingerprint at {step!r}. "
                "Give the same models and data again, or start anew without --resume."
            )

    def drop(self) -> None:
        """Remove the files of a run and the folder, unless somebody put something else there."""
        with _writing(self.folder):
            _remove(self.folder)


def open_checkpoint(folder: Path, plan: Mapping[str, Any], *, resume: bool) -> Checkpoint:
    """A checkpoint for the run that `plan` describes; without `resume` it starts empty.

    Raises: `InputError` if there is nothing to resume, or what is there came from another plan;
    `StateError` if the folder cannot be written or read.
    """
    path = folder / PLAN
    wanted = json.loads(json.dumps(plan))
    if resume:
        if not path.is_file():
            raise InputError(
                f"nothing to resume in {str(folder)!r}: no run was cut off there. "
                "Start without --resume, or name the --out folder of the run that was."
            )
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _spoiled(path, error) from error
        known = kept if isinstance(kept, dict) else {}
        differing = [key for key, value in wanted.items() if known.get(key) != value]
        if differing:
            raise InputError(
                f"the run kept in {str(folder)!r} differs from this one in {', '.join(differing)}. "
                "Repeat its command exactly, or start anew without --resume."
            )
        return Checkpoint(folder)
    if folder.exists() or folder.is_symlink():
        is_folder = folder.is_dir() and not folder.is_symlink()
        if not is_folder or (any(folder.iterdir()) and not path.exists()):
            raise InputError(
                f"{str(folder)!r} is there and is not the state of a run, so it is left alone. "
                "Name another folder, or remove it."
            )
    with _writing(folder, "Make room there, or name another --out."):
        if folder.exists():
            _remove(folder)
        with folder_for(folder):
            _write_json(path, wanted)
    return Checkpoint(folder)


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix in {".json", ".safetensors", ".part"}:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


GO_ON = "Make room there, or make it writable; the same command with --resume then goes on."


@contextmanager
def _writing(path: Path, advice: str = GO_ON) -> Iterator[None]:
    """Turns what goes wrong in writing into an error that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"the state of this run cannot be kept in {str(path)!r} ({error}). {advice}"
        ) from error


def _write_json(path: Path, value: Any) -> None:
    with written_whole(path) as part:
        part.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")


def _spoiled(path: Path, error: Exception) -> StateError:
    return StateError(
        f"the state kept in {str(path)!r} cannot be read ({error}). Start anew without --resume."
    )
