"""How much memory is left, so that a long run can refuse to start what it cannot hold.

Holds: ``free_bytes``.
May import: the standard library.
"""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def free_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say (not Linux)."""
    if not MEMINFO.is_file():
        return None
    for line in MEMINFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
