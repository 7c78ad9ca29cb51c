"""The measurements of a study, each made once: a run that was cut off goes on behind the last.

Holds: ``Kept``.
May import: ``secant.engine``, ``secant.readings``, ``secant.surveys`` (versions),
``secant.studies.finding``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secant.engine.checkpoint import Checkpoint, open_checkpoint
from secant.readings import writable
from secant.studies.finding import Finding
from secant.surveys import versions

Progress = Callable[[str, int, int], None]
STATES = ".states"


class Kept:
    """Measurements of `study` with these settings, `total` of them, kept in `out` if there is one.

    Raises: `InputError` if there is nothing to resume in `out`, or another run's state.
    """

    def __init__(
        self, study: str, settings: Mapping[str, Any], total: int, *,
        seed: int, out: Path | None, resume: bool, progress: Progress,
    ) -> None:  # fmt: skip
        self.study, self.total, self.out, self.progress = study, total, out, progress
        self.started = time.perf_counter()
        self.numbers: list[dict[str, Any]] = []
        self.checkpoint: Checkpoint | None = None
        if out is not None:
            plan = {"study": study, "seed": seed, "versions": versions(), **settings}
            with writable(out):
                self.checkpoint = open_checkpoint(out / STATES, plan, resume=resume)

    def __call__(self, step: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a run that was cut off has left under `step`, or a new measurement."""
        found: dict[str, Any] | None = None
        if self.checkpoint is not None:
            found = self.checkpoint.found(step)
        if found is None:
            found = measure()
            if self.checkpoint is not None:
                self.checkpoint.save_found(step, found)
        self.numbers.append(found)
        self.progress(self.study, len(self.numbers), self.total)
        return found

    @property
    def seconds(self) -> float:
        """Since the first."""
        return time.perf_counter() - self.started

    def written(self, finding: Finding) -> Finding:
        """The finding, saved in the study's folder, whose measurements may then go."""
        if self.out is not None and self.checkpoint is not None:
            finding.save(self.out)
            self.checkpoint.drop()
        return finding
