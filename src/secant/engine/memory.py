"""How much memory is left, so that a long run can refuse to start what it cannot hold.

Holds: ``free_bytes``.
May import: the standard library.

A container may have less than the machine: Linux counts and limits the memory of a control group
and of every group around it, under one tree (version 2) or under one for memory alone (version 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
TREE = Path("/sys/fs/cgroup")
TREE_1 = TREE / "memory"


def free_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say (not Linux).

    The least of what the machine has left and of what each group that this process is in has.
    """
    known = [free for free in (_of_machine(), *_of_groups()) if free is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    if not MEMINFO.is_file():
        return None
    for line in MEMINFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_groups() -> Iterator[int | None]:
    """What is left in this process's groups and in those around them."""
    if not OWN_GROUPS.is_file():
        return
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            for folder in _around(TREE, path):
                yield _left(folder, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            for folder in _around(TREE_1, path):
                yield _left(
                    folder,
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )


def _around(tree: Path, path: str) -> Iterator[Path]:
    """The group's folder and those above it; a container sees its own group as the tree's root."""
    inner = PurePosixPath(path).relative_to("/")
    for part in (inner, *inner.parents):
        if ".." not in part.parts:
            yield tree / part


def _left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    """The limit less what is used, but for pages of files, which make room when it is needed."""
    most, used, table = (_read(folder / name) for name in (limit, usage, "memory.stat"))
    if most is None or used is None or most.strip() == "max":
        return None
    counts = dict(line.split() for line in (table or "").splitlines())
    return max(int(most) - int(used) + int(counts.get(cache, 0)), 0)


def _read(path: Path) -> str | None:
    """The file's text; None where the group has no such file, as the root has none."""
    return path.read_text(encoding="ascii") if path.is_file() else None
