"""What is written beside merged weights: configuration, tokenizer, and a card that says what it is.

Holds: ``write_companions``, ``card``.
May import: ``secant.errors``, ``secant.load``, ``secant.uses``.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Final

from secant.load.companions import companion_files, config_of
from secant.uses.merge_plans import Plan
from secant.uses.recipes import METHODS, Recipe

IN_CONFIG: Final = ("torch_dtype", "dtype")
OF_TOKENIZERS: Final = ("token", "vocab", "merges", "special", ".model", ".jinja", ".tiktoken")


def write_companions(folder: Path, name: str, recipe: Recipe, plan: Plan, seed: int) -> None:
    """Put configuration, tokenizer and card into the folder of merged weights."""
    if plan.keeper is not None:
        for one in companion_files(plan.keeper):
            shutil.copyfile(one, folder / one.name)
    if plan.tokenizer is not None and plan.tokenizer != plan.keeper:
        for one in companion_files(plan.tokenizer):
            if any(part in one.name for part in OF_TOKENIZERS):
                shutil.copyfile(one, folder / one.name)
    config = config_of(plan.keeper)
    kinds = {job.out_kind.torch_name for job in plan.jobs}
    if config is not None and len(kinds) == 1:
        (kind,) = kinds
        stale = [key for key in IN_CONFIG if config.get(key) not in (None, kind)]
        if stale:
            text = json.dumps(config | dict.fromkeys(stale, kind), indent=2) + "\n"
            (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(card(name, recipe, plan, seed), encoding="utf-8")


def card(name: str, recipe: Recipe, plan: Plan, seed: int) -> str:
    """The model card of a merge."""
    made = ", ".join(sorted({job.out_kind.torch_name for job in plan.jobs})) or "no floats"
    lines = [
        "---", "tags:", "- merge", "- secant", "---", f"# {name}", "",
        f"A merge of {len(recipe.models)} checkpoints by `{recipe.method}` "
        f"({METHODS[recipe.method].source}), made with secant {version('secant')}.", "",
    ]  # fmt: skip
    if recipe.base is not None:
        lines.append(f"- base: `{recipe.base}`")
    for part in recipe.parts:
        own = ", ".join(f"{key} {json.dumps(value)}" for key, value in part.settings.items())
        lines.append(f"- `{part.model}`{': ' + own if own else ''}")
    if recipe.method.startswith("dare"):
        lines.append(f"- seed of the masks: {seed}")
    lines += [
        "", f"{len(plan.jobs)} tensors were merged into {made}, {len(plan.copies)} copied, "
        f"{plan.bytes / 1e6:.1f} MB in all.", "",
    ]  # fmt: skip
    lines += [f"- {note}" for note in plan.notes] + ([""] if plan.notes else [])
    # JSON is YAML too: the recipe can be cut out and merged by again.
    lines += ["```yaml", json.dumps(recipe.table(), indent=2), "```", ""]
    return "\n".join(lines)
