"""What a study found, as data and as a page.

Holds: ``Finding``, ``Figure``, ``Curve``, ``Verdict``.
May import: ``secant.readings``, ``secant.report``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from secant.readings import plain, writable, write
from secant.report.findings import render_finding

SCHEMA = 1
Verdict = Literal["supported", "refuted", "depends", "undecided"]


@dataclass(frozen=True)
class Figure:
    """One number that a study measured, its 95 % interval, and the published one beside it.

    `published` is None where none is known; `verdict` is on this figure alone.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    published: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Curve:
    """Values against a positive place, with 95 % intervals, for a plot of both on log axes."""

    plot: str
    name: str
    places: list[float]
    values: list[float | None]
    intervals: list[tuple[float, float] | None]


@dataclass(frozen=True)
class Finding:
    """A claim, the command that tries it, what came out, and all that is needed to run it again.

    `numbers` are the single measurements, `foot` names the axis of the curves.
    """

    study: str
    claim: str
    command: str
    source: str
    verdict: Verdict
    words: str
    figures: list[Figure]
    curves: list[Curve]
    foot: str
    numbers: list[dict[str, Any]]
    settings: dict[str, Any]
    seed: int
    versions: dict[str, str]
    hardware: str
    cost: dict[str, float]
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain data; numbers that do not exist are None."""
        return plain(asdict(self))  # type: ignore[no-any-return]

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `study.json` and `study.html` whole or not at all; return their paths.

        Raises: `InputError` if the folder cannot be written.
        """
        data = self.as_dict()
        texts = {
            "study.json": json.dumps(data, indent=1, allow_nan=False),
            "study.html": render_finding(data),
        }
        with writable(folder):
            for name, text in texts.items():
                write(folder / name, text)
        return folder / "study.json", folder / "study.html"
