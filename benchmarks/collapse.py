"""Collapsed chains against eager torch, inductor with freezing, ONNX Runtime and OpenVINO.

Run: python benchmarks/collapse.py [ROUNDS]; peers as far as they are installed:
`pip install onnx onnxscript onnxruntime openvino`, and a C++ compiler for inductor.

Twenty Linear(512, 512) in float32, at batch 1 and 256. Contestants take turns in one process,
medians; error is the largest difference of the output from float64, relative to its largest entry.
Then a Sequential of 100,000 Linear(64, 64), once.

The limit: the twenty take 20 x 2 x 512² operations a row, one of them a twentieth; at batch 1 the
time is that of reading 1 MB of weights in place of 20.
"""

import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from secant.uses.collapse import collapsed

Run = Callable[[Tensor], Tensor]


def contestants(model: nn.Module, x: Tensor, folder: Path) -> dict[str, Run]:
    """Everybody who can run the model, ready to run."""
    started = time.perf_counter()
    small = collapsed(model, x).module
    print(f"  collapsed in {time.perf_counter() - started:.3f} s")
    found: dict[str, Run] = {"secant": small, "eager": model}
    import torch._inductor.config as inductor

    inductor.freezing = True
    compiled = torch.compile(model)
    try:
        compiled(x)
        found["inductor, freezing"] = compiled
    except Exception as error:  # a peer that cannot run here is named, and the others go on
        print(f"  inductor does not run here: {str(error).splitlines()[0]}")
    file = folder / f"model-{len(x)}.onnx"
    if importlib.util.find_spec("onnxscript") is None:
        return found
    torch.onnx.export(model, (x,), str(file), dynamo=True, verbose=False, external_data=False)
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file))
        (name,) = [one.name for one in session.get_inputs()]
        found["ONNX Runtime"] = lambda rows: torch.from_numpy(
            session.run(None, {name: rows.numpy()})[0]
        )
    if importlib.util.find_spec("openvino") is not None:
        import openvino

        program = openvino.Core().compile_model(str(file), "CPU")
        found["OpenVINO"] = lambda rows: torch.from_numpy(np.array(program(rows.numpy())[0]))
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(20))).eval()
    exact = nn.Sequential(*(nn.Linear(512, 512) for _ in range(20))).double().eval()
    exact.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for batch in (1, 256):
            print(f"batch {batch}")
            x = torch.randn(batch, 512)
            true = exact(x.double())
            running = contestants(model, x, Path(folder))
            times: dict[str, list[float]] = {name: [] for name in running}
            calls = 200 if batch == 1 else 20
            for _ in range(rounds):
                for name, run in running.items():
                    started = time.perf_counter()
                    for _ in range(calls):
                        found = run(x)
                    times[name].append((time.perf_counter() - started) / calls)
            ours = statistics.median(times["secant"])
            for name, run in running.items():
                found = run(x)
                error = float((found.double() - true).abs().max() / true.abs().max())
                seconds = statistics.median(times[name])
                print(f"  {name}: {1e6 * seconds:.0f} us, {seconds / ours:.1f} times ours, "
                      f"error {error:.1e}")  # fmt: skip
        deep = nn.Sequential(*(nn.Linear(64, 64) for _ in range(100_000))).eval()
        for one in deep:
            one.weight.copy_(torch.linalg.qr(one.weight).Q)
        started = time.perf_counter()
        found = collapsed(deep, torch.randn(2, 64))
        seconds = time.perf_counter() - started
        x = torch.randn(4, 64)
        gap = (found.module(x).double() - deep.double()(x.double())).abs().max()
        print(f"100,000 Linear(64, 64), orthogonal: {seconds:.1f} s, {len(found.module)} left, "
              f"bound {found.joined[0].relative:.0e}, output off by {float(gap):.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
