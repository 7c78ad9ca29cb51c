"""Readings and reports as data.

Holds: ``Reading``, ``ModelReport``, ``Report``; ``number``, ``interval_of`` and ``plain``, what a
reading may hold; ``writable``, ``write``, ``hardware``.
May import: the standard library, ``secant.errors``, ``secant.engine.files``.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secant.engine.files import folder_for, written_whole
from secant.errors import InputError, LoadError
from secant.records import NotARecordError, record

SCHEMA = 1
NO_INTERVAL = "One group of units holds the whole sum: no interval exists."


@dataclass(frozen=True)
class Reading:
    """One number of one gauge at one site, beside its controls.

    `value` is None where the number does not exist, never nan or infinite, and `interval` where
    an end does not; `warnings` then says why. The same holds of controls. `controls` maps
    the control's name (residual, fresh, shuffled) to `{"value", "interval"}`; where both carry
    sums by group also `"difference"`, the reading less the control with its paired interval
    (`secant.comparisons.paired`); a control that could not be taken says why under `"missing"`.
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

    def __post_init__(self) -> None:
        numbers = [self.value, *(self.interval or ())]
        assert all(one is None or math.isfinite(one) for one in numbers), "no number is None"


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
        return plain(asdict(self))  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.as_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "the text") -> Report:
        """The report that `to_json` wrote.

        `source` names the text in errors. Raises: `LoadError` if the text is not JSON, has
        another schema version, or lacks or adds a field.
        """
        told = "Give a report.json that `secant report` wrote."
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LoadError(
                f"expected a report as JSON; {source} cannot be read ({error}). {told}"
            ) from error
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA or isinstance(schema, bool):
            raise LoadError(
                f"expected a report with schema {SCHEMA}; {source} has schema {schema!r}. {told}"
            )
        try:
            return record(cls, found, "report")
        except NotARecordError as error:
            raise LoadError(f"{source} is not a whole report: {error}. {told}") from error

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """The report saved at `path`. Raises: `LoadError` as `from_json`, or if unreadable."""
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise LoadError(
                f"expected a report at {str(path)!r}; it cannot be read ({error.strerror}). "
                "Give the path of a report.json."
            ) from error
        return cls.from_json(text, repr(str(path)))

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that a notebook's style and it do not meet."""
        from secant.report.html import render_frame

        return render_frame(self.as_dict())

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `report.json` and `report.html` whole or not at all; return their paths.

        Raises: `InputError` if the folder cannot be written.
        """
        from secant.report.html import render_html

        texts = {"report.json": self.to_json(), "report.html": render_html(self.as_dict())}
        with writable(folder):
            for name, text in texts.items():
                write(folder / name, text)
        return folder / "report.json", folder / "report.html"


def number(value: float) -> float | None:
    """The value as a reading has it: None for nan and infinities, which are no numbers."""
    return value if math.isfinite(value) else None


def interval_of(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    """Both ends as a reading has them: None unless both are numbers."""
    return ends if ends is not None and all(map(math.isfinite, ends)) else None


def hardware(threads: int) -> str:
    """The processor's model, its kind, how many of its cores this process may use, and threads."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # Only Linux has it; elsewhere the platform's own name stands.
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = next((one for one in names if one), name)
    kind = platform.machine()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    known = f"{model} ({kind})" if model and model != kind else f"{kind} CPU"
    return f"{known}, {_counted(cores, 'core')}, {_counted(threads, 'thread')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Makes `folder` for what is written within; what fails leaves no empty folder behind.

    Raises: `InputError` if nothing can be written there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_for(folder))
        except OSError as error:
            raise InputError(
                f"cannot write to folder {str(folder)!r} ({error.strerror}). "
                "Name a folder that you may write to with --out."
            ) from error
        yield


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises: `InputError` if it cannot be written.
    """
    try:
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r} ({error.strerror}). Name another folder with --out."
        ) from error


def plain(value: Any) -> Any:
    """Data that JSON can hold: lists for tuples, None for numbers that do not exist."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
