"""Merges of two checkpoints of 0.5 GB on disk, against mergekit 0.1.5 and against `cp`.

Run: python benchmarks/merge.py MERGEKIT_PYTHON FOLDER [ROUNDS]

MERGEKIT_PYTHON is the interpreter of an environment with mergekit 0.1.5, whose `mergekit-yaml` lies
beside it. FOLDER takes 4 GB: two checkpoints of random bfloat16 in the shape of a Llama, in two
shards, the second near the first as a fine-tune is. In each round the contestants take turns and
merge by one YAML file, everything warm; medians. Others who use the machine slow down what runs on
several processors more than what runs on one; processor times say how much. Then the tensors are
compared (see `checked`).

The limit: a linear merge reads 1.02 GB and writes 0.51 GB, all in the page cache; `cp` of one
checkpoint reads and writes 0.51 GB. Slerp and TIES need something of a whole tensor before they can
merge it and read twice. The copies out of the page cache take 0.12 ns a byte of a processor and
those into it 0.2, the arithmetic in C 0.3 ns a value of a linear merge and 1.2 of TIES: 0.31 s for
the linear one, half of that on two processors.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

WIDTH, WIDE, WORDS, LAYERS, KEYS = 1024, 2816, 32000, 16, 512
METHODS: dict[str, dict[str, float]] = {
    "linear": {"weight": 0.7},
    "slerp": {"t": 0.4},
    "task_arithmetic": {"weight": 0.7},
    "ties": {"weight": 0.7, "density": 0.5},
    "dare_linear": {"weight": 0.7, "density": 0.5},
    "dare_ties": {"weight": 0.7, "density": 0.5},
}
ASKED = {"slerp": 8, "task_arithmetic": 8, "ties": 12, "dare_linear": 12, "dare_ties": 12}
COMMAND = "from secant.cli import main; main()"
ITSELF = """
import sys, time
from secant.uses.merge import merge_file
started = time.perf_counter()
merge_file(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - started
status = dict(line.split(":") for line in open("/proc/self/status"))
print(seconds, int(status["VmHWM"].split()[0]) / 1024)
"""
# mergekit with what it leaves open settled: of equal magnitudes the first survive, and DARE's masks
# are those that secant draws for the same seed.
SETTLED = """
import sys
import torch
from mergekit import sparsify
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge as G
from mergekit.scripts.run_yaml import main
from secant.uses.merge_streams import STRIP, choices

plain_sort, plain_merge, now = torch.argsort, G.merge_group, {}
torch.argsort = lambda x, descending=False: plain_sort(x, descending=descending, stable=True)

def merge_group(self, group, /, **parameters):
    now.update(name=group.metadata.name, model=0)
    return plain_merge(self, group, **parameters)

def bernoulli(tensor, density, rescale_norm=None):
    now["model"] += 1
    strips = [
        torch.from_numpy(choices(now["name"], 0, now["model"], strip, len(part), density))
        for strip, part in enumerate(tensor.flatten().split(STRIP))
    ]
    mask = torch.cat(strips).to(tensor.dtype).reshape(tensor.shape)
    return sparsify.rescaled_masked_tensor(tensor, mask, rescale_norm)

G.merge_group, sparsify.bernoulli = merge_group, bernoulli
sys.argv[0] = "mergekit-yaml"
main()
"""


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (WORDS, WIDTH)
    for layer in range(LAYERS):
        for part, shape in {
            "input_layernorm": (WIDTH,), "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (KEYS, WIDTH), "self_attn.v_proj": (KEYS, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH), "post_attention_layernorm": (WIDTH,),
            "mlp.up_proj": (WIDE, WIDTH), "mlp.gate_proj": (WIDE, WIDTH),
            "mlp.down_proj": (WIDTH, WIDE),
        }.items():  # fmt: skip
            yield f"model.layers.{layer}.{part}.weight", shape
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (WORDS, WIDTH)


def make(folder: Path, seed: int) -> None:
    """A checkpoint in two shards; seed 0 is the base, others are near it."""
    folder.mkdir(parents=True)
    common, own = (torch.Generator().manual_seed(n) for n in (0, seed))
    whole = sum(2 * math.prod(shape) for _, shape in shapes())
    shards: list[dict[str, Tensor]] = [{}, {}]
    size = 0
    for name, shape in shapes():
        weight = torch.randn(shape, generator=common) * 0.02
        if seed:
            weight += torch.randn(shape, generator=own) * 0.002
        shards[size > whole / 2][name] = weight.bfloat16()
        size += 2 * weight.numel()
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": whole}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
        "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 8, "vocab_size": WORDS, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def recipe(folder: Path, method: str, **more: bool) -> Path:
    """The YAML file of a method: the first checkpoint is the base of all but the linear merge."""
    a, b = ({"model": str(folder / name)} for name in "ab")
    numbers = METHODS[method]
    table: dict[str, object] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "linear":
        table["models"] = [a | {"parameters": {"weight": 0.3}}, b | {"parameters": numbers}]
    else:
        whole = numbers if method == "slerp" else {}
        table |= {"base_model": a["model"], "parameters": whole | more}
        table["models"] = [a, b] if method == "slerp" else [b | {"parameters": numbers}]
    path = folder / f"{method}{''.join(more)}.yaml"
    path.write_text(json.dumps(table))
    return path


def timed(command: list[str], out: Path) -> tuple[float, float, str]:
    """Seconds by the clock and of processors, and what it said."""
    shutil.rmtree(out, ignore_errors=True)
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, os.times()
    worked = after.children_user + after.children_system
    return seconds, worked - before.children_user - before.children_system, done.stdout


def pairs(one: Path, other: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Tensors of two merges, by name."""
    places = {}
    for folder in (one, other):
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    places.setdefault(name, []).append(opened.get_tensor(name))
    for name, both in places.items():
        assert len(both) == 2, name
        yield name, *both


def unequal(one: Tensor, other: Tensor) -> int:
    return int((one.view(torch.int16) != other.view(torch.int16)).sum())


def astray(method: str, a: Tensor, b: Tensor, found: Tensor) -> int:
    """How many values are further from the merge in float64 than float32 arithmetic may bring them.

    That is half a step of bfloat16 and four roundings of float32, each of the sum of both parts.
    """
    x, y = a.double(), b.double()
    if method == "linear":
        first, second = (torch.tensor(w, dtype=torch.float32).double() for w in (0.3, 0.7))
    else:
        angle = torch.acos((x * y).sum() / x.norm() / y.norm())
        t = METHODS["slerp"]["t"]
        first, second = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - t, t))
    half_step = 2.0 ** (found.double().abs().clamp(min=1e-30).log2().floor() - 8)
    slack = 4 * 2.0**-24 * ((first * x).abs() + (second * y).abs())
    return int(((first * x + second * y - found.double()).abs() > half_step + slack).sum())


def checked(folder: Path, mergekit: list[str], settled: list[str]) -> bool:
    """Compare the tensors; whether all is as it should be.

    Task arithmetic: the same bits. TIES: the same bits where of equal magnitudes the first
    survive, as here; mergekit keeps any of them. DARE: the same bits with the same masks and no
    rescaling. Linear and slerp: both beside the merge in float64.
    """
    is_good = True
    for method in METHODS:
        for who, more in ((mergekit, {}), (settled, {"rescale": False})):
            if who is settled and method in ("linear", "slerp", "task_arithmetic"):
                continue
            file = recipe(folder, method, **(more if method.startswith("dare") else {}))
            ours, theirs = folder / "ours", folder / "theirs"
            timed([sys.executable, "-c", COMMAND, "merge", "--config", str(file), "--out",
                   str(ours)], ours)  # fmt: skip
            timed([*who, str(file), str(theirs)], theirs)
            if who is mergekit and method.startswith("dare"):
                continue  # other masks: nothing to compare
            total = differing = 0
            for _, one, other in pairs(ours, theirs):
                total += one.numel()
                differing += unequal(one, other)
            how = "settled" if who is settled else "as it is"
            print(f"{method}, mergekit {how}: {differing} of {total} values differ", flush=True)
            if who is settled or method == "task_arithmetic":
                is_good &= differing == 0
            if method in ("linear", "slerp"):
                merges = {name: (x, y) for name, x, y in pairs(ours, theirs)}
                wrong = [0, 0]
                for name, a, b in pairs(folder / "a", folder / "b"):
                    for who_else in (0, 1):
                        wrong[who_else] += astray(method, a, b, merges[name][who_else])
                print(f"  beyond float32 from the merge in float64: {wrong[0]}, theirs {wrong[1]}")
                is_good &= wrong[0] == 0
    return is_good


def measured(folder: Path, mergekit: list[str], rounds: int) -> None:
    ours, theirs, copy = folder / "ours", folder / "theirs", folder / "copy"
    for method in METHODS:
        file = str(recipe(folder, method))
        contestants: dict[str, Callable[[], tuple[float, float, str]]] = {
            "cp": lambda: timed(["cp", "-r", str(folder / "a"), str(copy)], copy),
            "itself": lambda file=file: timed(
                [sys.executable, "-c", ITSELF, file, str(ours)], ours
            ),
            "whole": lambda file=file: timed(
                [sys.executable, "-c", COMMAND, "merge", "--config", file, "--out", str(ours)], ours
            ),
            "mergekit": lambda file=file: timed([*mergekit, file, str(theirs)], theirs),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        work: dict[str, list[float]] = {name: [] for name in contestants}
        peak = 0.0
        for _ in range(rounds):
            for name, run in contestants.items():
                wall, own, said = run()
                if name == "itself":
                    inner, memory = map(float, said.split())
                    wall, peak = inner, max(peak, memory)
                seconds[name].append(wall)
                work[name].append(own)
        median = {name: statistics.median(each) for name, each in seconds.items()}
        ratios = [b / a for a, b in zip(seconds["whole"], seconds["mergekit"], strict=True)]
        copies = [a / b for a, b in zip(seconds["itself"], seconds["cp"], strict=True)]
        works = [b / a for a, b in zip(work["whole"], work["mergekit"], strict=True)]
        wanted = f" (wanted {ASKED[method]})" if method in ASKED else ""
        print(
            f"{method}: itself {median['itself']:.2f} s, {statistics.median(copies):.1f} cp "
            f"({median['cp']:.2f} s); whole {median['whole']:.2f} s, mergekit "
            f"{median['mergekit']:.1f} s, {statistics.median(ratios):.1f} times{wanted}, "
            f"by processor time {statistics.median(works):.1f}; peak {peak:.0f} MB",
            flush=True,
        )


def main() -> None:
    python, folder = sys.argv[1], Path(sys.argv[2])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    for seed, name in enumerate("ab"):
        if not (folder / name).is_dir():
            make(folder / name, seed)
    mergekit = [str(Path(python).with_name("mergekit-yaml")), "--quiet", "--no-copy-tokenizer"]
    os.environ["PYTHONPATH"] = str(
        Path(__file__).parents[1] / "src"
    )  # mergekit's side needs it too
    settled = [python, "-c", SETTLED, "--quiet", "--no-copy-tokenizer"]
    if rounds:
        measured(folder, mergekit, rounds)
    if not checked(folder, mergekit, settled):
        raise SystemExit("tensors differ where they must not")


if __name__ == "__main__":
    main()
