"""Builds the C kernel of `secant.nn.scan` into the wheel, where there is a C compiler.

Holds: ``build_kernel`` and hatchling's ``CustomBuildHook``.
May import: hatchling.

`python hatch_build.py` builds it beside its source, for work on a checkout. Without a compiler the
wheel is pure Python and `secant.nn.scan_routes` says so.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # the kernel of a checkout is built without hatchling
    BuildHookInterface = object

FOLDER = Path("src") / "secant" / "nn"
SOURCE = "_scan.c"
LIBRARY = "_scan.dll" if sys.platform == "win32" else "_scan.so"
# One rounding an operation, so that every processor gives the same numbers.
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]


def compiler() -> list[str] | None:
    """The C compiler's command: CC where it is set, else the first of the usual names."""
    if os.environ.get("CC"):
        named = shlex.split(os.environ["CC"])
        return named if shutil.which(named[0]) else None
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def build_kernel(root: Path, target: Path) -> str | None:
    """Compile the kernel to `target`; gives None, or why there is no library."""
    command = compiler()
    if command is None:
        return f"no C compiler (CC is {os.environ.get('CC')!r})"
    ran = subprocess.run(
        [*command, *FLAGS, str(root / FOLDER / SOURCE), "-o", str(target)],
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        return f"{command[0]} failed: {ran.stderr.strip()}"
    return None


def wheel_tag() -> str:
    """ctypes loads the library, so any Python 3 takes it, on this kind of machine."""
    name = sysconfig.get_platform().replace("universal2", platform.machine())
    return f"py3-none-{name.replace('-', '_').replace('.', '_')}"


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]
    """Adds the library to a wheel; an editable install has it beside the source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say so in the wheel's name."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if version == "editable":
            why = build_kernel(root, root / FOLDER / LIBRARY)
        else:
            self.folder = tempfile.TemporaryDirectory()
            target = Path(self.folder.name) / LIBRARY
            why = build_kernel(root, target)
            if why is None:
                build_data["force_include"][str(target)] = f"secant/nn/{LIBRARY}"
        if why is None:
            build_data["pure_python"] = False
            build_data["tag"] = wheel_tag()
        else:
            self.app.display_warning(f"secant.nn.scan goes without its C kernel: {why}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Nothing is left behind."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


if __name__ == "__main__":
    here = Path(__file__).parent
    trouble = build_kernel(here, here / FOLDER / LIBRARY)
    sys.exit(trouble)
