"""A training run watched as it goes: how far it moves, and whether it stays linear.

Holds: ``Tracker``, ``Track`` (what it saves), ``Cadence``.
May import: torch, ``secant.errors``, ``secant.maps``, ``secant.readings``, ``secant.records``,
``secant.surveys`` (versions), ``secant.uses`` (motion, callbacks).
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secant.errors import InputError, LoadError
from secant.maps.weights import Batch, chosen_parameters, first_output
from secant.readings import hardware, plain, write
from secant.records import NotARecordError, record
from secant.surveys import versions
from secant.uses.motion import MOST_OUTPUTS, Motion, kernel_drift

SCHEMA = 1
SHARE = 0.1
"""Most that tracking may take of the time of the steps."""
SCALARS = ("displacement", "first_order", "drift", "velocity", "alignment", "richness")
Logger = Callable[[str, float, int], object]


@dataclass
class Cadence:
    """When to measure: every so many steps, or by itself within `SHARE` of the run's time.

    By itself: at 1, 2, 4, … steps until their distance is that at which measuring costs half of
    the share, from then on at that distance. What the clock says is too early is put off until
    the share allows it, so the start and the first records are paid off before the next.
    """

    every: int | None
    run_seconds: float = 0.0
    own_seconds: float = 0.0
    cost_seconds: float = 0.0
    next_step: int = 1

    def is_due(self, step: int) -> bool:
        """Whether a step is one to measure at, if there is time for it."""
        return step >= self.next_step if self.every is None else step % self.every == 0

    def is_affordable(self) -> bool:
        """Whether one more record, as dear as the last, stays within the share."""
        wanted = self.own_seconds + self.cost_seconds
        return self.every is not None or wanted <= SHARE * self.run_seconds

    def measured(self, step: int, seconds: float) -> None:
        """Note what the record at this step took, and set the next one."""
        self.cost_seconds = seconds
        pause = math.inf
        if self.run_seconds > 0:
            pause = max(1.0, 2 * seconds / SHARE / (self.run_seconds / max(1, step)))
        self.next_step = max(step + 1, math.ceil(min(2 * step, step + pause)))


@dataclass(frozen=True)
class Track:
    """A run as plain data: its records in order of their steps, and what they depend on.

    Every record has `step`; `displacement` and `layers`, |w - w0| / |w0| of all weights and of
    each module's; `first_order` and its `rounding`; `drift` of the kernel since the start and
    `velocity`, its drift since the record before over the steps between; `alignment` with the
    labels; `richness`. None is a number that does not exist. `rows` were measured on, with
    `outputs` each, sketched into `sketched` if that is not None.
    """

    model: str
    seed: int
    every: int | None
    rows: int
    outputs: int
    sketched: int | None
    parameters: list[str]
    cost: dict[str, float]
    versions: dict[str, str]
    hardware: str
    records: list[dict[str, Any]]
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Write the JSON whole or not at all. Raises: `InputError` if it cannot be written."""
        write(Path(path), json.dumps(plain(asdict(self)), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> Track:
        """What `save` wrote. Raises: `LoadError` for anything else."""
        told = "Give a file that `Tracker.save` wrote."
        try:
            found = json.loads(Path(path).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise LoadError(
                f"expected a tracked run as JSON; {str(path)!r} cannot be read ({error}). {told}"
            ) from error
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA or isinstance(schema, bool):
            raise LoadError(
                f"expected a tracked run of schema {SCHEMA}; {str(path)!r} has {schema!r}. {told}"
            )
        try:
            made = record(cls, found, "track")
            if not made.records:
                raise NotARecordError("track.records should hold a record")
            for place, one in enumerate(made.records):
                record(Record, one, f"track.records[{place}]")
        except NotARecordError as error:
            raise LoadError(f"{str(path)!r} is not a whole run: {error}. {told}") from error
        return made


@dataclass(frozen=True)
class Record:
    """The fields of one record, to check a file against."""

    step: int
    displacement: float | None
    layers: dict[str, float | None]
    first_order: float | None
    rounding: float | None
    drift: float | None
    velocity: float | None
    alignment: float | None
    richness: float | None


class Tracker:
    r"""Watches a model while it trains: call `step()` after each step of the optimiser.

    .. code-block:: python

        tracker = secant.Tracker(model, images, labels)
        for batch in batches:
            ...
            optimiser.step()
            tracker.step()
        tracker.save("run.json")  # secant track run.json shows it

    `records` is a list of plain dictionaries, the first of step 0. Each has:

    - `displacement`, :math:`|w_t - w_0| / |w_0|`, and the same of each module under `layers`.
    - `first_order`: :math:`\|f_t - f_0 - J_0 (w_t - w_0)\| / \|f_t - f_0\|` over the rows, the
      gauge `tangent` on the weights over the displacement itself. 0: the run is where its
      linearisation at the start would be with these weights; 1: off by as much as it moved.
    - `drift`, :math:`S = 1 - \langle K_0, K_t \rangle / (|K_0| |K_t|)` of the neural tangent
      kernel, and `velocity`, S between successive records over the steps between them.
    - `alignment` of the centred kernel with the labels.
    - `richness`, the larger of `first_order` and `drift`: 0 is lazy, towards 1 rich. The index
      is ours: a run is lazy if it follows its linearisation (Chizat et al. 2019) and its kernel
      stays (Fort et al. 2020), so the larger of the two speaks against it.

    All in eval mode on a copy (dropout off, batch norm with its running statistics, which follow
    the model's): the model, its modes, gradients, buffers and torch's random states are not
    touched. The numbers depend on weights, batch and seed alone; the steps at which they are
    taken depend on the clock unless `every` is given.

    Args:
        model: the module that trains, without wrappers that rename its parameters.
        batch: rows to measure on, as for `secant.kernel`; of more than 64, 64 are drawn.
        labels: classes (n,) or float targets (n,) or (n, k), for `alignment`.
        every: steps between records. If None, at 1, 2, 4, … steps and then at a fixed distance,
            such that tracking takes at most 10 % of the time of the steps by its own clock: it
            times both, and puts a record off while it would go beyond. The start (one kernel)
            counts too, but cannot be put off: a run shorter than ten times the start has no
            record after it, and pays more than a tenth.
        parameters: names or globs; those that require gradients if None.
        outputs: a function of what the model returns to a tensor of one row an input; its first
            tensor by default. More than 16 outputs a row are sketched into 16.
        seed: of the rows drawn and the sketch.

    Cost of a record: about one forward and as many backwards as there are outputs, and four
    forwards, on 64 rows. Memory: the model again, and its weights.

    Raises: `InputError` as `secant.kernel` does, and for labels that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        labels: Tensor | None = None,
        *,
        every: int | None = None,
        parameters: Sequence[str] | None = None,
        outputs: Callable[[Any], Tensor] = first_output,
        seed: int = 0,
    ) -> None:
        if every is not None and every < 1:
            raise InputError(
                f"Tracker: `every` must be at least 1 step; got {every}. "
                "Leave it out for a cadence that keeps to a tenth of the time."
            )
        started = time.perf_counter()
        self.seed, self.names = seed, chosen_parameters(model, parameters)
        self.motion = Motion(model, batch, labels, self.names, outputs, seed)
        self.cadence = Cadence(every)
        self.steps = 0
        self.records: list[dict[str, Any]] = []
        self._loggers: list[Logger] = []
        self._handed = 0
        self._last = self.motion.gram
        self._record()
        self.cadence.own_seconds = time.perf_counter() - started
        self._left_at = time.perf_counter()

    def step(self) -> None:
        """Count a step of the optimiser, and measure if it is time to."""
        if self.motion.device.type == "cuda" and self.cadence.is_due(self.steps + 1):
            torch.cuda.synchronize(self.motion.device)  # the steps' work is not ours
        entered = time.perf_counter()
        self.steps += 1
        self.cadence.run_seconds += entered - self._left_at
        if self.cadence.is_due(self.steps) and self.cadence.is_affordable():
            self._record()
            self.cadence.measured(self.steps, time.perf_counter() - entered)
        self._left_at = time.perf_counter()
        self.cadence.own_seconds += self._left_at - entered

    def log(self, logger: Logger) -> None:
        """Hand every number from now on to `logger(name, value, step)`, say a SummaryWriter's
        `add_scalar`; records that no logger has had yet are handed at once.
        """
        self._loggers.append(logger)
        self._hand()

    def track(self) -> Track:
        """All so far, as data."""
        cost = {
            "run_seconds": self.cadence.run_seconds,
            "own_seconds": self.cadence.own_seconds,
        }
        motion, used = self.motion, hardware(torch.get_num_threads())
        return Track(
            type(motion.model).__name__, self.seed, self.cadence.every, motion.rows,
            motion.outputs_each, MOST_OUTPUTS if motion.is_sketched else None, self.names, cost,
            versions(), used if motion.device.type == "cpu" else f"{used}, {motion.device}",
            self.records,
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the records as JSON. Raises: `InputError` if the file cannot be written."""
        self.track().save(path)

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs to go on; `torch.save` keeps it, `weights_only` loads it."""
        return {
            "names": list(self.names),
            "seed": self.seed,
            "batch": self.motion.fingerprint(),
            "steps": self.steps,
            "handed": self._handed,
            "cadence": asdict(self.cadence),
            "records": copy.deepcopy(self.records),
            "start": self.motion.start.clone(),
            "kernels": [self.motion.gram.clone(), self._last.clone()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict` of a tracker of the same model, batch and seed.

        The start is then that of the first run. Raises: `InputError` if it does not fit.
        """
        mine = {"names": self.names, "seed": self.seed, "batch": self.motion.fingerprint()}
        differing = [key for key, value in mine.items() if state[key] != value]
        if differing or state["start"].shape != self.motion.start.shape:
            raise InputError(
                "Tracker.load_state_dict: the state is of another run, which differs in "
                f"{', '.join(differing) or 'the shapes of weights'}. Give the tracker the same "
                "model, batch, parameters and seed as before."
            )
        self.steps, self._handed = state["steps"], state["handed"]
        self.records = copy.deepcopy(state["records"])
        self.cadence = Cadence(**{**state["cadence"], "every": self.cadence.every})
        self.motion.start = state["start"].to(self.motion.start, copy=True)
        self.motion.gram, self._last = (one.clone() for one in state["kernels"])
        self._left_at = time.perf_counter()

    def callback_for_trainer(self) -> Any:
        """A `TrainerCallback` for Hugging Face's Trainer; its state goes into each checkpoint.

        Raises: `InputError` if transformers is not installed.
        """
        from secant.uses.callbacks import trainer_callback

        return trainer_callback(self)

    def callback_for_lightning(self) -> Any:
        """A Lightning `Callback`; its state goes into each checkpoint.

        Raises: `InputError` if lightning is not installed.
        """
        from secant.uses.callbacks import lightning_callback

        return lightning_callback(self)

    def _record(self) -> None:
        found, gram = self.motion.numbers(None if self.records else self.motion.gram)
        velocity = None
        if self.records:
            drift = kernel_drift(self._last, gram)
            passed = self.steps - self.records[-1]["step"]
            velocity = None if drift is None else drift / passed
        self.records.append({"step": self.steps, **found, "velocity": velocity})
        self._last = gram
        self._hand()

    def _hand(self) -> None:
        """Each record goes once, to all loggers there are."""
        if not self._loggers:
            return
        for one in self.records[self._handed :]:
            named = {f"secant/{name}": one[name] for name in SCALARS}
            named |= {f"secant/displacement/{name}": one["layers"][name] for name in one["layers"]}
            for name, value in named.items():
                if value is not None:
                    for logger in self._loggers:
                        logger(name, value, one["step"])
        self._handed = len(self.records)
