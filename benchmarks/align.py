"""Alignment of 64-512-512-512-10 MLPs, against its own linear assignments and rebasin 0.0.47.

Run: python benchmarks/align.py, with the peer where Python finds it:
`pip install --no-deps rebasin==0.0.47 torchview graphviz tqdm`.

Two pairs: nets trained on the digits from different seeds, and a net with its own copy in a
random order. One process, one thread, five rounds in turn, medians. `matching` is the descent
over the weights alone, and `scipy` what scipy needs for the linear assignments in it; `whole` adds
the export, the copy and the check that the function stays; `rebasin` is the peer's run, with
`traced` its reading of the model before. At the end single assignments, begun at nothing, against
scipy's: of trained nets with one hidden layer, random gains, and gains with many ties.
"""

import copy
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from rebasin import PermutationCoordinateDescent
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from secant.load.demo import digits
from secant.maps.graph import export
from secant.maps.permutations import permute, random_orders
from secant.maps.symmetries import find_symmetries
from secant.uses import matching
from secant.uses.align import align, distance, weight_terms

WIDTHS = (64, 512, 512, 512, 10)
ROUNDS = 5
SIZES = (512, 1536, 4096)


def trained(
    seed: int, images: Tensor, labels: Tensor, widths: tuple[int, ...] = WIDTHS
) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(200):
        rows = torch.randint(0, len(images), (128,))
        optimiser.zero_grad()
        functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimiser.step()
    return model.eval()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def main() -> None:
    torch.set_num_threads(1)
    images, labels = digits()
    images = images.flatten(1)
    a, b = (trained(seed, images, labels) for seed in (0, 1))
    symmetries = find_symmetries(export(a, "a", (images[:2],), {}), a)
    copied = copy.deepcopy(a)
    permute(copied, symmetries, random_orders(symmetries, torch.Generator().manual_seed(0)))
    print(f"torch {torch.__version__}, one thread")
    compare("trained from two seeds", a, b, images)
    compare("a net and its permuted copy", a, copied, images)
    for size in SIZES:
        alone(size, images, labels)


def compare(title: str, a: nn.Module, b: nn.Module, images: Tensor) -> None:
    symmetries = find_symmetries(export(b, "b", (images[:2],), {}), b)
    solve = matching.assign
    spent: list[float] = []
    gains: list[Any] = []

    def watched(*args: Any) -> Any:
        seconds, found = timed(lambda: solve(*args))
        spent.append(seconds)
        return found

    def kept(gain: Tensor, *args: Any) -> Any:
        gains.append(gain.double().numpy(force=True).copy())
        return solve(gain, *args)

    def ours(seed: int, through: Callable[..., Any]) -> Any:
        matching.assign = through
        terms = weight_terms(a, b, symmetries)
        found = matching.match(symmetries, terms, torch.Generator().manual_seed(seed))
        matching.assign = solve
        return found

    rows: list[dict[str, float]] = []
    for turn in range(ROUNDS + 1):  # the first warms up
        spent.clear()
        gains.clear()
        row = {"matching": timed(lambda turn=turn: ours(turn, watched))[0]}
        row |= {"its assignments": sum(spent), "assignments": len(spent)}
        ours(turn, kept)
        row["scipy"] = sum(timed(lambda g=g: linear_sum_assignment(g, maximize=True))[0]
                           for g in gains)  # fmt: skip
        row["whole"], found = timed(lambda turn=turn: align(a, b, images, seed=turn))
        peer = copy.deepcopy(b)
        made, descent = timed(lambda peer=peer: PermutationCoordinateDescent(a, peer, images[:2]))
        row["rebasin"] = timed(descent.rebasin)[0]
        row["traced"] = made + row["rebasin"]
        row |= {"distance": found.after, "rebasin's distance": distance(a, peer)}
        rows.append(row)
    median = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
    print(f"\n{title}, distance {distance(a, b):.3f}")
    for name, value in median.items():
        print(f"{name:24s} {value:9.4f}")
    for above, below, wanted in (
        ("matching", "its assignments", ""),
        ("matching", "scipy", " (wanted: at most 1.3)"),
        ("scipy", "its assignments", ""),
        ("rebasin", "matching", " (wanted: 8)"),
        ("traced", "whole", ""),
    ):
        ratio = statistics.median(row[above] / row[below] for row in rows[1:])
        print(f"{above + ' / ' + below:26s} {ratio:7.2f}{wanted}")


def alone(size: int, images: Tensor, labels: Tensor) -> None:
    """Assignments of gains (size, size), begun at nothing."""
    read = []
    for seed in (0, 1):
        net = trained(seed, images, labels, (64, size, 10))
        first, last = (layer for layer in net if isinstance(layer, nn.Linear))
        parts = (first.weight, first.bias[:, None], last.weight.T)
        read.append(torch.cat(parts, 1).detach())
    draw = torch.Generator().manual_seed(0)
    units = torch.randn(2, size, 64, generator=draw)
    lives = torch.rand(2, size, 1, generator=draw) > 0.4
    some = torch.randint(0, size // 8, (2, size), generator=draw)
    dead, often = (units * lives), [u[s] for u, s in zip(units, some, strict=True)]
    gains = {
        "trained": read[0] @ read[1].T,
        "random": torch.randn(size, size, generator=draw),
        "40 % dead units": dead[0] @ dead[1].T,
        "each unit 8 times": often[0] @ often[1].T,
        "a permuted copy": units[0] @ units[0][torch.randperm(size, generator=draw)].T,
    }
    for name, gain in gains.items():
        rows = []
        for _ in range(5 if size < 4096 else 1):
            seconds, found = timed(lambda gain=gain: matching.assign(gain))
            wide = gain.double().numpy()
            peer, best = timed(lambda wide=wide: linear_sum_assignment(wide, maximize=True))
            rows.append((seconds, peer, peer / seconds))
        ours, theirs = (wide[range(size), each].sum() for each in (found.columns.numpy(), best[1]))
        assert abs(ours - theirs) <= 1e-12 * abs(theirs)
        seconds, peer, ratio = (statistics.median(each) for each in zip(*rows, strict=True))
        print(f"{size:5d} {name:20s} {seconds:9.4f} s, scipy {peer:9.4f} s, {ratio:6.2f} times")


if __name__ == "__main__":
    main()
