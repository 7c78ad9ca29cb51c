"""Files that are whole or not there, and folders that a failed run takes away again.

Holds: ``written_whole``, ``folder_for``.
May import: the standard library.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to within; what is there at the end takes the place of `path`.

    It is on the disk before it moves, and the move is too before this ends: neither a kill nor a
    power cut leaves half a file. After an error nothing is left but what `path` held before.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync(path.parent)
    except BaseException:  # Ctrl-C as well leaves no half of a file
        part.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """`folder` is made and tried out; after an error within, the empty folders made go again.

    Raises: `OSError` if nothing can be written there.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        yield
    except BaseException:  # Ctrl-C as well leaves no empty folder
        for one in made:
            if not one.is_dir() or any(one.iterdir()):
                break
            one.rmdir()
        raise
