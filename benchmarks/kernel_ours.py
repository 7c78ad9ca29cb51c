"""Our side of the kernel benchmark: a process that answers as those of kernel_peers.py do."""

import resource
import sys
import time

import numpy as np
import torch
from kernel_nets import CASES

import secant


def main() -> None:
    arrays = dict(np.load(sys.argv[2]))
    rows = torch.from_numpy(arrays.pop("rows"))
    name, outputs = str(arrays.pop("name")), str(arrays.pop("outputs"))
    model = CASES[name][0]().eval()
    model.load_state_dict({key: torch.from_numpy(one) for key, one in arrays.items()})
    for _ in sys.stdin:
        start = time.perf_counter()
        found = secant.kernel(model, rows, outputs=outputs)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(seconds, float(found.abs().mean()), float(found.flatten()[1]), peak, flush=True)


if __name__ == "__main__":
    main()
