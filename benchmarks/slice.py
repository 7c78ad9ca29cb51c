"""Exact pieces in a 2-D slice of a 3 x 256 ReLU net, against sampling it.

Run: python benchmarks/slice.py [THREADS [HALF_SIDE]]

One process, in float64, after one run each to warm up: three rounds of each, medians. The net: 16
inputs, He initialisation, biases of size 0.1, 10 outputs; the slice: a square about a normal
input of size 3, along two random orthonormal directions. The sampling counts distinct activation
patterns on a square grid, 4,096 samples a batch, and keeps a hash of each; it cannot find more
than there are, and misses what is smaller than its step.

The limit. A layer must be computed at the vertices of the layers before it: the last lines print
the time that the two wide matrix products alone would take at the speed measured.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from pieces import BATCH, INPUTS, WIDTH, net
from torch import Tensor, nn

from secant.slices import SlicePieces, slice_pieces

ROUNDS = 3


def plane(half_side: float) -> tuple[Tensor, Tensor, Tensor, float]:
    draw = torch.Generator().manual_seed(3)
    origin = 3 * torch.randn(INPUTS, generator=draw, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(INPUTS, 2, generator=draw, dtype=torch.float64))[0].T
    return origin, axes[0], axes[1], half_side


def sampled(model: nn.Sequential, place: tuple[Tensor, Tensor, Tensor, float], side: int) -> int:
    """Activation patterns seen on a grid of side x side samples."""
    origin, u, v, reach = place
    codes = torch.randint(-(2**62), 2**62, (3 * WIDTH,), generator=torch.Generator().manual_seed(0))
    axis = torch.linspace(-reach, reach, side, dtype=torch.float64)
    seen = []
    with torch.inference_mode():
        for at in torch.cartesian_prod(axis, axis).split(BATCH):
            x, on = origin + at[:, :1] * u + at[:, 1:] * v, []
            for layer in model[:-1]:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    on.append(x > 0)
            seen.append(torch.where(torch.cat(on, 1), codes, 0).sum(1).unique())
    return len(torch.cat(seen).unique())


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    place = plane(float(sys.argv[2]) if len(sys.argv) > 2 else 6.0)
    model = net()
    exact: list[SlicePieces] = []
    rivals: dict[str, Callable[[], int]] = {
        "exact": lambda: exact.append(slice_pieces(model, *place)) or exact[-1].count,  # type: ignore[func-returns-value]
        "100 x 100 samples": lambda: sampled(model, place, 100),
        "1,000 x 1,000": lambda: sampled(model, place, 1000),
    }
    counts = {name: run() for name, run in rivals.items()}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, run in rivals.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(each) for name, each in times.items()}
    found = exact[-1]
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    for name, count in counts.items():
        share = median[name] / median["exact"]
        print(f"{name:19s}{count:8,} pieces {median[name]:8.2f} s {share:6.1f} x exact")
    print(
        f"{found.cells:,} cells, {found.regions:,} regions, {len(found.at):,} vertices; areas sum "
        f"to {float(found.areas.sum()):.12g} of {(2 * place[3]) ** 2:.12g}"
    )
    print(f"V - E + F = {len(found.at) - len(found.edges[0]) + found.cells}")
    assert max(counts.values()) == counts["exact"]
    a = torch.randn(4096, WIDTH, dtype=torch.float64)
    b = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    speed = 2 * a.numel() * WIDTH / statistics.median(seconds(lambda: a @ b) for _ in range(20))
    inner = [slice_pieces(model[: 2 * depth], *place) for depth in (1, 2)]
    work = sum(2 * WIDTH * WIDTH * len(one.at) for one in inner)
    print(
        f"vertices after layers 1, 2: {[len(one.at) for one in inner]}; product "
        f"{speed / 1e9:.0f} Gflop/s; bound {work / speed:.2f} s"
    )


if __name__ == "__main__":
    main()
