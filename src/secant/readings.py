"""Readings and reports as data.

Holds: ``Reading``, ``ModelReport``, ``Report``.
May import: the standard library, ``secant.errors``.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secant.errors import InputError

SCHEMA = 1


@dataclass(frozen=True)
class Reading:
    """One number of one gauge at one site, beside its controls.

    `value` is None where the number does not exist; `warnings` then says why. `controls` maps
    the control's name (residual, fresh, shuffled) to `{"value", "interval"}`.
    """

    variable: str
    site: str
    gauge: str
    variant: str
    value: float | None
    interval: tuple[float, float] | None
    samples: dict[str, int]
    controls: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelReport:
    """All readings of one model on one set of data; `notes` say what loading changed."""

    name: str
    data: str
    units: int
    rows: int
    sites: list[str]
    readings: list[Reading]
    cost: dict[str, float]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What a survey found, with all that is needed to run it again."""

    created: str
    seed: int
    versions: dict[str, str]
    hardware: str
    cost: dict[str, float]
    models: list[ModelReport]
    schema: int = SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain data; numbers that do not exist are None."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.as_dict(), indent=1, allow_nan=False)

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `report.json` and `report.html` whole or not at all; return their paths.

        Raises: `InputError` if the folder cannot be written.
        """
        from secant.report.html import render_html

        texts = {"report.json": self.to_json(), "report.html": render_html(self.as_dict())}
        check_writable(folder)
        for name, text in texts.items():
            _write_atomically(folder / name, text)
        return folder / "report.json", folder / "report.html"


def check_writable(folder: Path) -> None:
    """Make `folder`, or say why nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to folder {str(folder)!r} ({error.strerror}). "
            "Name a folder that you may write to with --out."
        ) from error


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        raise InputError(
            f"cannot write {str(path)!r} ({error.strerror}). Name another folder with --out."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
