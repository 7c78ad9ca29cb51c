"""Compiled C beside the Python file that calls it: loading it, or why it is not there.

Holds: ``Native``.
May import: ctypes, pathlib.

``hatch_build.py`` compiles every ``_name.c`` of the package into the wheel where it finds a C
compiler. The libraries know neither torch nor Python, so one file serves all versions of both.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Native:
    """The library made of `source`, which must have the layout of arguments that its caller has.

    `layout` is what the library's ``secant_name_layout()`` gives, for a source ``_name.c``.
    """

    source: Path
    layout: int

    @property
    def file(self) -> Path:
        """Where the library lies if it was built."""
        return self.source.with_suffix(".dll" if sys.platform == "win32" else ".so")

    def library(self) -> ctypes.CDLL | None:
        """The library, or None where there is none that fits. Loaded once."""
        return _loaded(self.file, f"secant{self.source.stem}_layout", self.layout)

    def absence(self) -> str | None:
        """Why there is no library, or None where there is one."""
        if self.library() is not None:
            return None
        if not self.file.exists():
            return (
                f"{self.file.name} is not in the package: no C compiler was found when it was "
                "installed. Install one and reinstall secant."
            )
        return f"{self.file} is not for this machine or this version of secant. Reinstall secant."


@cache
def _loaded(file: Path, symbol: str, layout: int) -> ctypes.CDLL | None:
    if not file.exists():
        return None
    try:
        found = ctypes.CDLL(str(file))
        told = getattr(found, symbol)
    except (OSError, AttributeError):  # built for another machine; `Native.absence` says so
        return None
    told.restype = ctypes.c_int64
    return found if told() == layout else None
