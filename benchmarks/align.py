"""Alignment of 64-512-512-512-10 MLPs, against its own linear assignments and rebasin 0.0.47.

Run: python benchmarks/align.py, with the peer where Python finds it:
`pip install --no-deps rebasin==0.0.47 torchview graphviz tqdm`.

Two nets trained on the digits from different seeds, one process, one thread, five rounds in
turn, medians. `matching` is the descent over the weights alone; `whole` adds the export, the
copy and the check that the function stays; the peer's time is its `PermutationCoordinateDescent`
made (it traces the model) and run, and its `rebasin` is the run alone.
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
    symmetries = find_symmetries(export(b, "b", (images[:2],), {}), b)
    solve = matching.linear_sum_assignment
    spent: list[float] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seconds, found = timed(lambda: solve(*args, **kwargs))
        spent.append(seconds)
        return found

    matching.linear_sum_assignment = watched
    seconds: dict[str, list[float]] = {}
    ends: dict[str, float] = {"before": distance(a, b)}
    for turn in range(ROUNDS + 1):  # the first warms up
        spent.clear()
        taken = {}
        taken["matching"], _ = timed(
            lambda turn=turn: matching.match(
                symmetries, weight_terms(a, b, symmetries), torch.Generator().manual_seed(turn)
            )
        )
        taken["its assignments"], count = sum(spent), len(spent)
        taken["matching / assignments"] = taken["matching"] / taken["its assignments"]
        taken["whole"], found = timed(lambda turn=turn: align(a, b, images, seed=turn))
        peer = copy.deepcopy(b)
        made, descent = timed(lambda: PermutationCoordinateDescent(a, peer, images[:2]))  # noqa: B023
        taken["rebasin"], _ = timed(lambda: descent.rebasin())  # noqa: B023
        descent.apply_permutations()
        taken["rebasin, traced"] = made + taken["rebasin"]
        ends |= {"ours": found.after, "rebasin": distance(a, peer)}
        for name, value in taken.items() if turn else ():
            seconds.setdefault(name, []).append(value)
        print(f"round {turn}: {count} assignments, distance {ends}")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"torch {torch.__version__}, one thread")
    for name, value in median.items():
        print(f"{name:24s} {value:8.3f}")
    print(f"rebasin / matching       {median['rebasin'] / median['matching']:8.2f}")
    print(f"rebasin, traced / whole  {median['rebasin, traced'] / median['whole']:8.2f}")


if __name__ == "__main__":
    main()
