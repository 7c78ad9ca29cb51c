"""Train the five demo nets and save their weights into the package.

Run in the repository root: ``python scripts/train_demos.py [NAME ...]``
Takes: about half a minute on two CPU cores. Writes ``src/secant/load/weights/NAME.safetensors``.
Measured accuracy on the 539 held-out digits of split 0 (torch 2.13, CPU):
linear 0.9499, mlp 0.9629, cnn 0.9944, transformer 0.9740, gru 0.9629.
May import: torch, safetensors, ``secant.load.demo``.
"""

import sys
import time
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from secant.load.demo import DEMOS, digits, digits_split

WEIGHTS: Final = Path(__file__).parents[1] / "src" / "secant" / "load" / "weights"
SEED: Final = 0
BATCH: Final = 64
# name -> (epochs, peak learning rate, weight decay)
PLANS: Final = {
    "linear": (40, 2e-3, 1e-2),
    "mlp": (60, 2e-3, 1e-2),
    "cnn": (20, 1e-2, 1e-2),
    "transformer": (60, 2e-3, 5e-2),
    "gru": (40, 5e-3, 1e-2),
}


def train(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """One net, trained by AdamW under a one-cycle rate; the last epoch is kept, unselected."""
    torch.manual_seed(SEED)
    epochs, rate, decay = PLANS[name]
    net = DEMOS[name]().train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(BATCH):
            loss = functional.cross_entropy(net(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label."""
    return (net(images).argmax(dim=1) == labels).double().mean().item()


def main() -> None:
    images, labels = digits()
    seen, held_out = digits_split()
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or DEMOS:
        start = time.perf_counter()
        net = train(name, images[seen], labels[seen])
        score = accuracy(net, images[held_out], labels[held_out])
        (WEIGHTS / f"{name}.safetensors").write_bytes(save(net.state_dict()))
        print(f"{name:12s} held out {score:.4f}  {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
