"""Builds the package's C files into the wheel, where there is a C compiler.

Holds: ``build`` and hatchling's ``CustomBuildHook``.
May import: hatchling.

Each `_name.c` becomes a library beside it. `python hatch_build.py` builds them in a checkout, for
work on it. Without a compiler the wheel is pure Python; what is slower then says so.
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

SUFFIX = ".dll" if sys.platform == "win32" else ".so"
# One rounding an operation, so that every processor gives the same numbers.
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]


def compiler() -> list[str] | None:
    """The C compiler's command: CC where it is set, else the first of the usual names."""
    if os.environ.get("CC"):
        named = shlex.split(os.environ["CC"])
        return named if shutil.which(named[0]) else None
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def sources(root: Path) -> list[Path]:
    """The C files that become libraries, from the root of the checkout."""
    return sorted(one.relative_to(root) for one in root.glob("src/secant/*/_*.c"))


def build(root: Path, target: Path) -> str | None:
    """Compile all, each to its place under `target`; gives None, or why there are none."""
    command = compiler()
    if command is None:
        return f"no C compiler (CC is {os.environ.get('CC')!r})"
    shared = f"-I{root / 'src' / 'secant' / 'engine'}"
    for source in sources(root):
        library = (target / source).with_suffix(SUFFIX)
        library.parent.mkdir(parents=True, exist_ok=True)
        ran = subprocess.run(
            [*command, *FLAGS, shared, str(root / source), "-o", str(library)],
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
    """Adds the libraries to a wheel; an editable install has them beside their sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say so in the wheel's name."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if version == "editable":
            why = build(root, root)
        else:
            self.folder = tempfile.TemporaryDirectory()
            target = Path(self.folder.name)
            why = build(root, target)
            if why is None:
                for source in sources(root):
                    library = source.with_suffix(SUFFIX)
                    inside = library.relative_to("src").as_posix()
                    build_data["force_include"][str(target / library)] = inside
        if why is None:
            build_data["pure_python"] = False
            build_data["tag"] = wheel_tag()
        else:
            self.app.display_warning(f"secant goes without its C kernels: {why}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Nothing is left behind."""
        if hasattr(self, "folder"):
            self.folder.cleanup()


if __name__ == "__main__":
    here = Path(__file__).parent
    sys.exit(build(here, here))
