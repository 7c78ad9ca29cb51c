"""The house rules: who imports whom, what is public, what loads torch, which shapes hold.

Holds: tests of ``secant``'s layout, and of the shapes in its annotations.
May import: pytest, torch, jaxtyping, ``secant``.
"""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import secant
from secant.gauges.moments import crossed, gram, moments
from secant.maps.receptive import patch_rows

ROOT = Path(secant.__file__).parent
LEVELS = {
    "errors": 0,
    "engine": 1,
    "load": 2,
    "maps": 2,
    "gauges": 2,
    "nn": 2,
    "observe": 3,
    "site_sums": 3,
    "fit_readings": 3,
    "passes": 3,
    "segments": 3,
    "slices": 3,
    "surveys": 3,
    "curves": 3,
    "experiments": 3,
    "trials": 3,
    "readings": 3,
    "records": 3,
    "comparisons": 3,
    "uses": 4,
    "report": 4,
    "studies": 5,
    "cli": 6,
}
EXCEPTIONS = {("readings.py", "secant.report.html")}
FILES = sorted(
    p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"
)


def imported(source: str, package: list[str]) -> set[str]:
    """Absolute names of everything that the source imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module in {"secant", *(f"secant.{folder}" for folder in LEVELS)}:
                # `from secant import maps` and `from secant.maps import sites` name modules.
                found |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


def violations(file: str, source: str) -> list[str]:
    """Imports of the file that point upwards; its own level is fine."""
    own = file.removesuffix(".py").split("/")[0]
    bad = []
    for name in sorted(imported(source, ["secant", *file.split("/")[:-1]])):
        parts = name.split(".")
        if parts[0] != "secant" or (file, name) in EXCEPTIONS:
            continue
        target = parts[1] if len(parts) > 1 else ""
        is_level_fine = target in LEVELS and LEVELS[target] <= LEVELS[own]
        if target != own and not is_level_fine:
            bad.append(f"{file} imports {name}")
    return bad


def test_every_file_has_a_level():
    assert {file.removesuffix(".py").split("/")[0] for file in FILES} <= set(LEVELS)
    assert len(FILES) > 10


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    assert violations(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "import secant.engine.plan"),
        ("engine/plan.py", "from secant.maps.sites import find_sites"),
        ("maps/sites.py", "def f():\n    from secant.surveys import survey_model"),
        ("gauges/fit.py", "from secant import readings"),
        ("gauges/fit.py", "from ..surveys import survey_model"),
        ("surveys.py", "from secant.report.html import render_html"),
        ("report/html.py", "import secant.cli"),
        ("maps/sites.py", "import secant"),
    ],
)
def test_the_walk_sees_a_wrong_direction(file, source):
    assert len(violations(file, source)) == 1


def test_the_walk_passes_own_folder_and_lower():
    source = "from .moments import m\nfrom secant.errors import InputError\nimport torch"
    assert violations("gauges/fit.py", source) == []


def test_the_exception_stays_inside_a_function():
    tree = ast.parse((ROOT / "readings.py").read_text())
    assert "secant.report.html" in imported((ROOT / "readings.py").read_text(), ["secant"])
    assert not any(
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secant.report")
        for node in tree.body
    )


def test_public_names():
    names = [
        "Alignment", "Anatomy", "Comparison", "Fit", "InputError", "KernelOperator", "LoadError",
        "LoadOptions", "Merge", "Reading", "Replacement", "Report", "SecantError", "Separability",
        "StateError", "Tracker", "affine_at", "align", "anatomy", "collapse", "compare", "diff",
        "fit_tangent", "gating", "judge", "kernel", "linearize", "linearize_state", "merge",
        "merge_file", "pieces", "replace", "restore_state", "separable", "sketch_kernel",
        "slice_pieces", "survey", "tune",
    ]  # fmt: skip
    assert secant.__all__ == names
    for name in names:
        assert getattr(secant, name).__name__ == name
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = secant.nonesuch


def test_shapes_in_annotations_are_executed():
    """A function's arguments, its result and the fields of a named tuple."""
    rows, centre = torch.ones(5, 3), torch.zeros(3)
    side = gram(rows, centre)
    sums, mean = moments(side, side), torch.zeros(3, dtype=torch.float64)
    assert crossed(mean.outer(mean), sums, mean, mean) == 0
    with pytest.raises(TypeCheckError, match="centre"):
        gram(rows, torch.zeros(1))
    with pytest.raises(TypeCheckError, match="t_mean"):
        crossed(mean.outer(mean), sums, mean, mean[:2])
    with pytest.raises(TypeCheckError, match="x_mean"):
        crossed(mean.outer(mean), sums, mean.float(), mean)
    with pytest.raises(TypeCheckError, match="product"):
        replace(side, product=side.product[:2])
    with pytest.raises(TypeCheckError, match="images"):
        patch_rows(torch.ones(2, 3, 4), 1)


HELP = """
from secant.cli import main
sys.argv = ["secant", *args]
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import secant",
        "args = ['--help']" + HELP,
        "args = ['report', '--help']" + HELP,
        "args = ['diff', '--help']" + HELP,
        "args = ['compare', '--help']" + HELP,
        "args = ['tune', '--help']" + HELP,
        "args = ['separable', '--help']" + HELP,
        "args = ['gating', '--help']" + HELP,
        "args = ['collapse', '--help']" + HELP,
        "args = ['linearize-state', '--help']" + HELP,
        "args = ['replace', '--help']" + HELP,
    ],
    ids=[
        "import",
        "help",
        "report help",
        "diff help",
        "compare help",
        "tune help",
        "separable help",
        "gating help",
        "collapse help",
        "linearize-state help",
        "replace help",
    ],
)
def test_no_torch_is_loaded(code):
    heavy = "\nprint('HEAVY', sorted({'torch', 'numpy', 'sklearn', 'scipy'} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code + heavy], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "HEAVY []"
