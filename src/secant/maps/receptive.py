"""How far a convolutional block sees, and its inputs as patches of that width.

Holds: ``receptive_width``, ``patch_rows``.
May import: torch, jaxtyping.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def _longest(value: int | tuple[int, ...]) -> int:
    return max(value) if isinstance(value, tuple) else value


def receptive_width(module: nn.Module) -> int:
    """Pixels a side that an output pixel of `module` can see; 1 if it holds no window.

    Windows are taken as one after another, which is an upper bound where they are parallel. A
    strided window sees what it would without its stride: sites whose output keeps its size have
    none that matters.
    """
    width = 1
    for part in module.modules():
        if isinstance(part, WINDOWS):
            kernel = _longest(part.kernel_size)
            dilation = _longest(getattr(part, "dilation", 1))
            width += (kernel - 1) * dilation
    return width


def patch_rows(images: Float[Tensor, "b c h w"], width: int) -> Float[Tensor, "b*h*w c*{width}**2"]:
    """Each pixel's surrounding square as a row, zeros outside."""
    padded = functional.pad(images, ((width - 1) // 2, width // 2) * 2)
    patches = functional.unfold(padded, width)
    return patches.movedim(1, -1).flatten(0, 1)
