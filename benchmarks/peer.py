"""The peer: llm-microscope 0.0.7's linearity score, from its own source file.

Install it for the benchmarks with `pip install --no-deps llm-microscope==0.0.7` and
`pip install matplotlib`. Its package cannot be imported as it is (it imports a module that it
does not install), so its `functions.py` is loaded alone.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from torch import Tensor


def peer_score() -> Callable[[Tensor, Tensor], float]:
    """`procrustes_similarity(x, y)` of the peer, for rows of two layers."""
    package = importlib.util.find_spec("llm_microscope")
    if package is None or package.origin is None:
        raise SystemExit("Install the peer: pip install --no-deps llm-microscope==0.0.7")
    source = Path(package.origin).parent / "functions.py"
    spec = importlib.util.spec_from_file_location("llm_microscope_functions", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.procrustes_similarity  # type: ignore[no-any-return]
