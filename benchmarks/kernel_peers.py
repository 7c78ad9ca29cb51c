"""The peers of the kernel benchmark, each in a process of its own that answers line by line.

Run by kernel.py: `python kernel_peers.py torch|neural-tangents FILE`. FILE is an .npz of a net's
weights, its rows, its name and which outputs; each line on stdin asks for one evaluation, and the
answer is its seconds. The first answer is also the shape of the work: the kernel's mean diagonal.
"""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def torch_way(name: str, arrays: dict[str, Any], rows: Any, outputs: str) -> Callable[[], Any]:
    """The tutorial's: Jacobians by vmap(jacrev), contracted layer by layer."""
    import torch
    from kernel_nets import CASES
    from torch.func import functional_call, jacrev, vmap

    model = CASES[name][0]().eval()
    weights = {key: torch.from_numpy(arrays[key]) for key, _ in model.named_parameters()}
    x = torch.from_numpy(rows)

    def single(parameters: Any, row: Any) -> Any:
        return functional_call(model, parameters, (row[None],))[0]

    def evaluate() -> Any:
        jacobian = vmap(jacrev(single), (None, 0))(weights, x)
        parts = [one.flatten(2) for one in jacobian.values()]
        rule = "naf,maf->nm" if outputs == "trace" else "naf,mbf->nmab"
        return sum(torch.einsum(rule, one, one) for one in parts).numpy()

    return evaluate


def jax_net(name: str, arrays: dict[str, Any]) -> tuple[Callable[[Any, Any], Any], Any]:
    """The same net as a function of its weights, stored (in, out), and its rows."""
    import jax
    import jax.numpy as jnp

    def linear(p: Any, x: Any) -> Any:
        return x @ p["w"] + p["b"]

    def pair(path: str) -> dict[str, Any]:
        return {"w": jnp.array(arrays[f"{path}.weight"].T), "b": jnp.array(arrays[f"{path}.bias"])}

    if name.startswith("mlp") or name == "full":
        count = sum(key.endswith("weight") for key in arrays)
        weights = [pair(str(2 * place)) for place in range(count)]

        def mlp(weights: Any, x: Any) -> Any:
            for layer in weights[:-1]:
                x = jax.nn.relu(linear(layer, x))
            return linear(weights[-1], x)

        return mlp, weights
    if name == "cnn":
        convolutions = [
            {"w": jnp.array(arrays[f"{p}.weight"].transpose(2, 3, 1, 0)),
             "b": jnp.array(arrays[f"{p}.bias"])} for p in ("0", "2")
        ]  # fmt: skip
        # Channels come last here, so the last layer's inputs are in another order.
        head = arrays["6.weight"].reshape(10, 64, 14, 14).transpose(2, 3, 1, 0).reshape(-1, 10)
        last = {"w": jnp.array(head), "b": jnp.array(arrays["6.bias"])}

        def cnn(weights: Any, x: Any) -> Any:
            for layer in weights[0]:
                x = jax.lax.conv_general_dilated(
                    x, layer["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x + layer["b"])
            x = x.reshape(len(x), 14, 2, 14, 2, 64).mean((2, 4))
            return linear(weights[1], x.reshape(len(x), -1))

        return cnn, (convolutions, last)

    def norm(path: str) -> dict[str, Any]:
        return {"w": jnp.array(arrays[f"{path}.weight"]), "b": jnp.array(arrays[f"{path}.bias"])}

    parts = ("query", "key", "value", "out", "up", "down")
    blocks = [
        {part: pair(f"blocks.{place}.{part}") for part in parts}
        | {part: norm(f"blocks.{place}.{part}") for part in ("norm1", "norm2")}
        for place in range(4)
    ]

    def normed(p: Any, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["w"] + p["b"]

    def transformer(weights: Any, x: Any) -> Any:
        for p in weights[0]:
            n, t, d = x.shape
            h = normed(p["norm1"], x)
            q, k, v = (linear(p[part], h).reshape(n, t, 4, d // 4) for part in parts[:3])
            scores = jax.nn.softmax(jnp.einsum("nthe,nshe->nhts", q, k) * (d // 4) ** -0.5, -1)
            mixed = jnp.einsum("nhts,nshe->nthe", scores, v).reshape(n, t, d)
            x = x + linear(p["out"], mixed)
            x = x + linear(p["down"], jax.nn.relu(linear(p["up"], normed(p["norm2"], x))))
        return linear(weights[1], x.mean(1))

    return transformer, (blocks, pair("head"))


def jax_way(
    name: str, arrays: dict[str, Any], rows: Any, outputs: str, way: str
) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import neural_tangents as nt

    function, weights = jax_net(name, arrays)
    x = jnp.array(rows.transpose(0, 2, 3, 1) if rows.ndim == 4 else rows)
    ways = {
        "structured": nt.NtkImplementation.STRUCTURED_DERIVATIVES,
        "contraction": nt.NtkImplementation.JACOBIAN_CONTRACTION,
    }
    axes = (-1,) if outputs == "trace" else ()
    kernel = jax.jit(
        nt.empirical_ntk_fn(function, trace_axes=axes, vmap_axes=0, implementation=ways[way]),
        static_argnums=(),
    )
    scale = 10 if outputs == "trace" else 1  # its trace is a mean
    return lambda: np.asarray(kernel(x, None, weights)) * scale


def main() -> None:
    peer, file = sys.argv[1:]
    arrays = dict(np.load(file))
    rows, name, outputs = arrays.pop("rows"), str(arrays.pop("name")), str(arrays.pop("outputs"))
    if peer == "torch":
        evaluate = torch_way(name, arrays, rows, outputs)
    else:
        evaluate = jax_way(name, arrays, rows, outputs, peer)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = evaluate()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(seconds, float(np.abs(found).mean()), float(found.flat[1]), peak, flush=True)


if __name__ == "__main__":
    main()
