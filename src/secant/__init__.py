"""Secant: in which sense, where and how far a neural network is linear."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secant.comparisons import Comparison as Comparison
    from secant.comparisons import diff as diff
    from secant.errors import InputError as InputError
    from secant.errors import LoadError as LoadError
    from secant.errors import SecantError as SecantError
    from secant.errors import StateError as StateError
    from secant.gauges.fit import Fit as Fit
    from secant.load.options import LoadOptions as LoadOptions
    from secant.readings import Reading as Reading
    from secant.readings import Report as Report
    from secant.segments import pieces as pieces
    from secant.slices import slice_pieces as slice_pieces
    from secant.uses.active_maps import affine_at as affine_at
    from secant.uses.align import Alignment as Alignment
    from secant.uses.align import align as align
    from secant.uses.anatomy import Anatomy as Anatomy
    from secant.uses.anatomy import anatomy as anatomy
    from secant.uses.collapse import collapse as collapse
    from secant.uses.gating import gating as gating
    from secant.uses.judge import judge as judge
    from secant.uses.kernel import kernel as kernel
    from secant.uses.kernel_operator import KernelOperator as KernelOperator
    from secant.uses.kernel_sketch import sketch_kernel as sketch_kernel
    from secant.uses.linearize import linearize as linearize
    from secant.uses.linearize_state import linearize_state as linearize_state
    from secant.uses.linearize_state import restore_state as restore_state
    from secant.uses.merge import Merge as Merge
    from secant.uses.merge import merge as merge
    from secant.uses.merge import merge_file as merge_file
    from secant.uses.paths import compare as compare
    from secant.uses.replace import replace as replace
    from secant.uses.replace_result import Replacement as Replacement
    from secant.uses.separable import Separability as Separability
    from secant.uses.separable import separable as separable
    from secant.uses.survey import survey as survey
    from secant.uses.tangent_fit import fit_tangent as fit_tangent
    from secant.uses.track import Tracker as Tracker
    from secant.uses.tune import tune as tune

_HOME = {
    "Alignment": "secant.uses.align",
    "Anatomy": "secant.uses.anatomy",
    "Comparison": "secant.comparisons",
    "Fit": "secant.gauges.fit",
    "InputError": "secant.errors",
    "KernelOperator": "secant.uses.kernel_operator",
    "LoadError": "secant.errors",
    "LoadOptions": "secant.load.options",
    "Merge": "secant.uses.merge",
    "Reading": "secant.readings",
    "Replacement": "secant.uses.replace_result",
    "Report": "secant.readings",
    "SecantError": "secant.errors",
    "Separability": "secant.uses.separable",
    "StateError": "secant.errors",
    "Tracker": "secant.uses.track",
    "affine_at": "secant.uses.active_maps",
    "align": "secant.uses.align",
    "anatomy": "secant.uses.anatomy",
    "collapse": "secant.uses.collapse",
    "compare": "secant.uses.paths",
    "diff": "secant.comparisons",
    "fit_tangent": "secant.uses.tangent_fit",
    "gating": "secant.uses.gating",
    "judge": "secant.uses.judge",
    "kernel": "secant.uses.kernel",
    "linearize": "secant.uses.linearize",
    "linearize_state": "secant.uses.linearize_state",
    "merge": "secant.uses.merge",
    "merge_file": "secant.uses.merge",
    "pieces": "secant.segments",
    "replace": "secant.uses.replace",
    "restore_state": "secant.uses.linearize_state",
    "separable": "secant.uses.separable",
    "sketch_kernel": "secant.uses.kernel_sketch",
    "slice_pieces": "secant.slices",
    "survey": "secant.uses.survey",
    "tune": "secant.uses.tune",
}

__all__ = [
    "Alignment",
    "Anatomy",
    "Comparison",
    "Fit",
    "InputError",
    "KernelOperator",
    "LoadError",
    "LoadOptions",
    "Merge",
    "Reading",
    "Replacement",
    "Report",
    "SecantError",
    "Separability",
    "StateError",
    "Tracker",
    "affine_at",
    "align",
    "anatomy",
    "collapse",
    "compare",
    "diff",
    "fit_tangent",
    "gating",
    "judge",
    "kernel",
    "linearize",
    "linearize_state",
    "merge",
    "merge_file",
    "pieces",
    "replace",
    "restore_state",
    "separable",
    "sketch_kernel",
    "slice_pieces",
    "survey",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Resolve public names when they are first used, so that importing secant loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'secant' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
