"""Alignment of 64-512-512-512-10 MLPs, against its own linear assignments and rebasin 0.0.47.

Run: python benchmarks/align.py, with the peer where Python finds it:
`pip install --no-deps rebasin==0.0.47 torchview graphviz tqdm`.

Two pairs: nets trained on the digits from different seeds, and a net with its own copy in a
random order. One process, one thread, five rounds in turn, medians. `matching` is the descent
over the weights alone; `whole` adds the export, the copy and the check that the function stays;
`rebasin` is the peer's run, with `traced` its reading of the model before.
"""

import copy
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from rebasin import PermutationCoordinateDescent
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


def trained(seed: int, images: Tensor, labels: Tensor) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(WIDTHS):
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


def compare(title: str, a: nn.Module, b: nn.Module, images: Tensor) -> None:
    symmetries = find_symmetries(export(b, "b", (images[:2],), {}), b)
    solve = matching.linear_sum_assignment
    spent: list[float] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seconds, found = timed(lambda: solve(*args, **kwargs))
        spent.append(seconds)
        return found

    def ours(seed: int) -> Any:
        terms = weight_terms(a, b, symmetries)
        return matching.match(symmetries, terms, torch.Generator().manual_seed(seed))

    rows: list[dict[str, float]] = []
    for turn in range(ROUNDS + 1):  # the first warms up
        spent.clear()
        matching.linear_sum_assignment = watched
        row = {"matching": timed(lambda turn=turn: ours(turn))[0]}
        matching.linear_sum_assignment = solve
        row |= {"its assignments": sum(spent), "assignments": len(spent)}
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
    if median["assignments"]:
        ratio = statistics.median(row["matching"] / row["its assignments"] for row in rows[1:])
        print(f"matching / assignments   {ratio:9.2f} (wanted: at most 1.3)")
    print(f"rebasin / matching       {median['rebasin'] / median['matching']:9.1f} (wanted: 8)")
    print(f"traced / whole           {median['traced'] / median['whole']:9.1f}")


if __name__ == "__main__":
    main()
