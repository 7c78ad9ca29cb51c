"""How models and data are to be read.

Holds: ``LoadOptions``, ``DEFAULTS``, ``DTYPES``.
May import: the standard library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

DTypeName = Literal["float32", "float64", "bfloat16", "float16", "keep"]
DTYPES: Final[tuple[str, ...]] = get_args(DTypeName)


@dataclass(frozen=True)
class LoadOptions:
    """What loading needs to know besides the names of the model and of the data.

    `weights`: file for a model named `package.module:factory` (.safetensors, .pt, .pth, .bin).
    `call`: `function(model, batch) -> output`, or its name `package.module:function`, for a
    model whose forward is unusual; `batch` is the tensor or the padded dict.
    `label_column`: the column or array that holds each unit's label.
    `trust_remote_code`: run Python code that comes with a Hugging Face model.
    `device`: where to run, such as `cuda`. `dtype`: `float32`, `float64`, `bfloat16`,
    `float16`, or `keep` for the checkpoint's own. None is float32 on the CPU, except that an
    `nn.Module` passed from Python stays where and as it is.
    """

    weights: Path | str | None = None
    call: str | Callable[[Any, Any], Any] | None = None
    label_column: str | None = None
    trust_remote_code: bool = False
    device: str | None = None
    dtype: str | None = None


DEFAULTS: Final = LoadOptions()
