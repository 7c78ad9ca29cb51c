"""How to read the plots: the words of every kind that the page draws, said once.

Holds: ``guide``.
May import: the standard library, ``secant.report.charts``, ``secant.report.curves``,
``secant.report.fields``, ``secant.report.wording``.
"""

from __future__ import annotations

from secant.report.charts import escape
from secant.report.curves import families, radii_of
from secant.report.fields import Model, fits_of, readings_of, variables_of
from secant.report.wording import PLOT_WORDS


def guide(models: list[Model]) -> str:
    """A definition for each kind of plot and mark that some model has, in the words' order."""
    kinds = {kind for model in models for kind in _kinds(model)}
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(words)}</dd></div>"
        for kind, (name, words) in PLOT_WORDS.items()
        if kind in kinds
    )
    if not items:
        return ""
    return (
        '<section class="card"><h2>How to read the plots</h2>'
        f'<dl class="guide words">{items}</dl></section>'
    )


def _kinds(model: Model) -> set[str]:
    fits = {
        variant
        for variable in variables_of(model)
        for variant in ("raw", "beyond", "context raw", "context beyond")
        if fits_of(model, variable, variant)
    }
    kinds = {"context" if variant.startswith("context") else variant for variant in fits}
    for family in families(model):
        kinds |= {family.gauge, "curves"}
        kinds |= {f"{family.variant} curve", f"{family.direction} steps"}
        kinds |= {"radius"} if radii_of(model, family) else set()
        kinds |= {"weights steps"} if family.variable == "weights" else set()
    kinds |= {"pieces", "kernel", "memory"} & {str(one.get("gauge")) for one in readings_of(model)}
    variants = {str(one.get("variant")) for one in readings_of(model)}
    kinds |= {"horizon"} & variants
    kinds |= {"eigenvalues"} if "spectral radius" in variants else set()
    return kinds | {"marks"} if kinds else kinds
