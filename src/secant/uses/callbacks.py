"""A tracker's step in other people's training loops.

Holds: ``trainer_callback``, ``lightning_callback``.
May import: torch, ``secant.errors``, ``secant.uses.track`` (types); transformers, lightning where
asked for.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from secant.errors import InputError

if TYPE_CHECKING:
    from secant.uses.track import Tracker

STATE = "secant_tracker.pt"
"""The tracker's file in a checkpoint folder of Hugging Face's Trainer."""


def trainer_callback(tracker: Tracker) -> Any:
    """Steps with Trainer's optimiser, and is saved and read again with its checkpoints."""
    base = _wanted("TrainerCallback", "transformers")

    class TrackerCallback(base):  # type: ignore[misc, valid-type]
        """What Trainer calls."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == tracker.steps:
                return
            path = _folder(args, state) / STATE
            if not path.is_file():
                warnings.warn(
                    f"the run goes on from step {state.global_step} and {str(path)!r} has no "
                    "tracker's state: movement is measured from there.",
                    stacklevel=2,
                )
                return
            tracker.load_state_dict(torch.load(path, weights_only=True))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tracker.step()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                torch.save(tracker.state_dict(), _folder(args, state) / STATE)

    return TrackerCallback()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def lightning_callback(tracker: Tracker) -> Any:
    """Steps with Lightning's optimisers, batches that only accumulate left out."""
    base = _wanted("Callback", "lightning.pytorch", "pytorch_lightning")

    class TrackerCallback(base):  # type: ignore[misc, valid-type]
        """What Lightning calls."""

        seen = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen = trainer.global_step

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step > self.seen:
                self.seen = trainer.global_step
                tracker.step()

        def state_dict(self) -> dict[str, Any]:
            return tracker.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            tracker.load_state_dict(state_dict)

    return TrackerCallback()


def _wanted(name: str, *modules: str) -> Any:
    """The class from the first of the modules that is installed."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != module.split(".")[0]:
                raise  # it is there, and something that it needs is not
    raise InputError(
        f"this callback needs the package {modules[0].split('.')[0]!r}, which is not installed. "
        f"Install it, or call `tracker.step()` after each step of the optimiser."
    )
