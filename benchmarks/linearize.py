"""The tangent model's forward against the plain forward and against torch.func.jvp.

Run: python benchmarks/linearize.py [THREADS]

One process, float32, all four ways taken in turn, after one round to warm up: medians of so many
rounds, without gradients, and for the step (forward and backward) with them. Models: an MLP
784-1024-1024-10 with 256 rows, a CNN (32 and 64 channels, 28 x 28) with 64 rows, and BERT without
its pooler's dropout: 4 layers of width 128, 64 rows of 32 tokens, and 6 layers of width 384, 16
rows of 64 tokens.

The limit. The dual number of W x is W x and dW x + W dx: three products for one, two where x does
not depend on the weights. `products` is that ratio in floating-point operations, counted by torch
over the two runs; exact multiplication of dual numbers has no way with fewer than three.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from secant import linearize
from secant.maps.weights import Batch, first_output, run

ROUNDS = 15


def mlp() -> tuple[nn.Module, Batch]:
    model = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    return model, torch.randn(256, 784)


def cnn() -> tuple[nn.Module, Batch]:
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 10),
    )  # fmt: skip
    return model, torch.randn(64, 1, 28, 28)


def bert(width: int, layers: int, rows: int, length: int) -> tuple[nn.Module, Batch]:
    config = BertConfig(
        vocab_size=1000, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=width // 32, intermediate_size=4 * width,
    )  # fmt: skip
    ids = torch.randint(1, 1000, (rows, length))
    return BertForSequenceClassification(config), {"input_ids": ids}


CASES: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    "MLP": mlp,
    "CNN": cnn,
    "BERT 4 x 128": lambda: bert(128, 4, 64, 32),
    "BERT 6 x 384": lambda: bert(384, 6, 16, 64),
}


def products(model: nn.Module, linearised: nn.Module, batch: Batch) -> float:
    """Floating-point operations of products: the tangent model's over the plain model's."""
    counts = []
    for one in (linearised, model):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run(one, batch)
        counts.append(counter.get_total_flops())
    return float(counts[0] / counts[1])


def ways(model: nn.Module, batch: Batch) -> dict[str, Callable[[], Tensor]]:
    linearised = linearize(model)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for step in linearised.delta.parameters():
            step.normal_(std=0.01)
    steps = dict(linearised.delta.named_parameters())
    frozen = {name: one.detach() for name, one in weights.items()}

    def tutorial() -> Tensor:
        def at(w: dict[str, Tensor]) -> Tensor:
            args, kwargs = ((batch,), {}) if isinstance(batch, Tensor) else ((), dict(batch))
            return first_output(functional_call(model, w, args, kwargs))

        with sdpa_kernel(SDPBackend.MATH):
            value, tangent = jvp(at, (frozen,), (steps,))
        return value + tangent

    found = first_output(run(linearised, batch))
    torch.testing.assert_close(found, tutorial(), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        print(f"  products {products(model, linearised, batch):.2f} x")
    return {
        "plain": lambda: first_output(run(model, batch)),
        "tangent model": lambda: first_output(run(linearised, batch)),
        "torch.func.jvp": tutorial,
    }


def medians(each: dict[str, Callable[[], object]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in each}
    for turn in range(ROUNDS + 1):
        for name, way in each.items():
            started = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(one) for name, one in seconds.items()}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    for name, make in CASES.items():
        torch.manual_seed(0)
        model, batch = make()
        print(name)
        each = ways(model.eval(), batch)
        with torch.no_grad():
            forward = medians(each)
        step = medians({key: (lambda way=way: way().sum().backward()) for key, way in each.items()})
        for key in each:
            print(
                f"  {key:15s} forward {forward[key] * 1e3:8.2f} ms"
                f" {forward[key] / forward['plain']:5.2f} x"
                f"   step {step[key] * 1e3:8.2f} ms {step[key] / step['plain']:5.2f} x"
            )


if __name__ == "__main__":
    main()
