"""What `replace` found, as data, and its files.

Holds: ``Replacement``, with ``Chosen``, ``Met`` and ``Healing``.
May import: torch, ``secant.errors``, ``secant.readings``, ``secant.uses``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secant.readings import SCHEMA, plain, writable, write
from secant.uses.replace_curves import Curve
from secant.uses.replace_files import loaded_onto
from secant.uses.replace_parts import label_of


@dataclass(frozen=True)
class Chosen:
    """One site and what stands in for it; `added` says that x is added to what it gives.

    `beyond` is what its affine map explains, held out, of what scaling the input leaves.
    """

    site: str
    kind: str
    rank: int | None
    added: bool
    widths: tuple[int, int]
    saved: float
    beyond: float | None

    @property
    def label(self) -> str:
        """In words."""
        return label_of(self.kind, self.rank, self.added)


@dataclass(frozen=True)
class Met:
    """What was reached within one budget, all of it on the scoring units.

    `saved` and `flops` count matrix products of a unit; `seconds` are medians of a batch, the two
    models in turn. `against` has, for this budget, the share of operations saved by the curve, and
    for each control that share and ours less it, with intervals over units.
    """

    budget: float
    chosen: list[Chosen]
    saved: float
    increase: float
    interval: tuple[float, float] | None
    before: dict[str, float]
    after: dict[str, float]
    against: dict[str, dict[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class Healing:
    """What a short training of the stand-ins did to the loss of the largest budget's set.

    Rises of the loss on the scoring units; it is kept if it lowered the loss on the choosing ones.
    """

    steps: int
    is_kept: bool
    before: float
    increase: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Replacement:
    """What `replace` chose, what that costs and saves, and how dropping blocks otherwise does.

    `module` is the model with the set of the largest budget, not saved in the JSON; `units` how
    many were fitted, chosen and scored on; `loss` the model's own on the scoring units.
    """

    model: str
    data: str
    units: dict[str, int]
    what: str
    unit: str
    loss: float
    budgets: list[Met]
    curves: list[Curve]
    beyond: dict[str, float | None]
    left: dict[str, str]
    notes: list[str]
    seed: int
    versions: dict[str, str]
    seconds: float
    healing: Healing | None = None
    stands: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    schema: int = SCHEMA
    module: nn.Module | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; numbers that do not exist are None."""
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__}
        shown.pop("module")
        for name in ("budgets", "curves"):
            shown[name] = [asdict(one) for one in shown[name]]
        shown["healing"] = None if self.healing is None else asdict(self.healing)
        return plain(shown)  # type: ignore[no-any-return]

    def save(self, out: Path, page: str) -> None:
        """Write `replace.json` and the page `replace.html`, each whole or not at all.

        Raises: `InputError` if the folder cannot be written.
        """
        with writable(out):
            write(out / "replace.json", json.dumps(self.as_dict(), indent=1, allow_nan=False))
            write(out / "replace.html", page)

    @staticmethod
    def load(folder: Path | str, model: nn.Module) -> nn.Module:
        """A copy of the model that was replaced in, with what `folder` holds in place.

        Raises: `LoadError` if the folder holds no replacement, or one of another model.
        """
        return loaded_onto(Path(folder), model)
