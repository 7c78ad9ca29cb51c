"""Merges on disk: values, companions, many shards; what does not fit leaves nothing behind.

Holds: tests of ``secant.uses.merge`` and the files that it is made of.
May import: pytest, numpy, torch, safetensors, transformers, ``secant``.
"""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from typer.testing import CliRunner

from secant.cli import app
from secant.errors import InputError, LoadError
from secant.uses import merge as merging
from secant.uses import merge_c, merge_streams
from secant.uses.merge import merge, merge_file
from secant.uses.merge_blocks import Plain
from secant.uses.merge_c import Compiled


@pytest.fixture(autouse=True, params=["in C", "by numpy"])
def way(request, monkeypatch):
    """Every merge is made both ways."""
    if request.param == "by numpy":
        monkeypatch.setattr(merge_streams, "blocks", Plain)
    elif merge_c.NATIVE.library() is None:
        pytest.skip(merge_c.NATIVE.absence())
    return request.param


def state(seed, dtype=torch.float32, **more):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (40, 8), "layers.0.w": (8, 8), "layers.1.w": (8, 8), "layers.1.b": (8,)}
    found = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    return {key: value for key, value in (found | more).items() if value is not None}


def files(tmp_path, *states):
    found = []
    for name, one in zip("abcd", states, strict=False):
        save_file(one, tmp_path / f"{name}.safetensors")
        found.append(tmp_path / f"{name}.safetensors")
    return found


def merged(out):
    found = {}
    for path in sorted(out.glob("*.safetensors")):
        found |= load_file(path)
    return found


def small_pieces(monkeypatch, block=16, strip=48):
    monkeypatch.setattr(merge_streams, "BLOCK", block)
    monkeypatch.setattr(merge_streams, "STRIP", strip)
    for each in (Plain, Compiled):
        monkeypatch.setattr(each, "span", lambda self, kind: block)


EVERY = {
    "linear": {"weight": [0.25, 0.75]},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": [0.5, 0.8]},
    "ties": {"weight": [0.5, 0.8], "density": 0.4},
    "dare_linear": {"weight": [0.5, 0.8], "density": [0.4, 0.9]},
    "dare_ties": {"weight": [0.5, 0.8], "density": 0.4},
}


def based(method, path):
    return None if method in ("linear", "slerp") else path


# values


def test_linear_is_the_mean_of_each_tensor(tmp_path):
    a, b = files(tmp_path, state(0), state(1))
    made = merge([a, b], tmp_path / "out", weight=[1, 3])
    found = merged(tmp_path / "out")
    assert found.keys() == state(0).keys()
    assert made.tensors == 4
    for name in found:
        torch.testing.assert_close(found[name], (state(0)[name] + 3 * state(1)[name]) / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", EVERY)
def test_pieces_and_threads_do_not_change_the_result(tmp_path, monkeypatch, method, dtype):
    """But for slerp, whose inner products are summed in other pieces."""
    paths = files(tmp_path, *(state(i, dtype) for i in range(3)))
    base = based(method, paths[2])
    small_pieces(monkeypatch, 64, 64)
    merge(paths[:2], tmp_path / "one", method=method, base=base, **EVERY[method])
    small_pieces(monkeypatch, 16, 64)
    monkeypatch.setattr(merging, "FEW_STRIPS", 0)
    monkeypatch.setattr(merging, "_processors", lambda: 5)
    merge(paths[:2], tmp_path / "two", method=method, base=base, **EVERY[method])
    one, two = merged(tmp_path / "one"), merged(tmp_path / "two")
    for name in one:
        assert one[name].dtype == dtype
        if method == "slerp":
            torch.testing.assert_close(one[name], two[name])
        else:
            assert one[name].equal(two[name])


def test_ties_trims_the_whole_tensor_over_its_strips(tmp_path, monkeypatch):
    """With one model of weight 1 exactly the largest changes are left, the first of equal ones."""
    base = {"w": torch.zeros(1000)}
    change = torch.randint(-20, 21, (1000,), generator=torch.Generator().manual_seed(0)).float()
    a, b = files(tmp_path, base, {"w": change})
    small_pieces(monkeypatch)
    merge([b], tmp_path / "out", method="ties", base=a, density=0.3)
    kept = change.abs().argsort(descending=True, stable=True)[:300]
    expected = torch.zeros(1000)
    expected[kept] = change[kept]
    assert merged(tmp_path / "out")["w"].equal(expected)


def test_slerp_takes_the_whole_tensor_over_its_strips(tmp_path, monkeypatch):
    a, b = files(tmp_path, state(0, torch.float64), state(1, torch.float64))
    small_pieces(monkeypatch)
    merge([a, b], tmp_path / "out", method="slerp", t=0.3)
    for name, found in merged(tmp_path / "out").items():
        x, y = state(0, torch.float64)[name], state(1, torch.float64)[name]
        angle = torch.acos((x * y).sum() / x.norm() / y.norm())
        expected = (torch.sin(0.7 * angle) * x + torch.sin(0.3 * angle) * y) / torch.sin(angle)
        torch.testing.assert_close(found, expected)


def test_dare_drops_by_its_seed(tmp_path, monkeypatch):
    base = {"w": torch.zeros(1000), "v": torch.zeros(1000)}
    a, b = files(tmp_path, base, {"w": torch.ones(1000), "v": torch.ones(1000)})
    small_pieces(monkeypatch, 50, 100)
    found = []
    for number, seed in enumerate((0, 0, 1, -1)):
        out = tmp_path / str(number)
        merge([b, b], out, method="dare_linear", base=a, density=0.3, weight=[1, 100], seed=seed)
        found.append(merged(out))
    assert found[0]["w"].equal(found[1]["w"])
    for other in (found[2]["w"], found[3]["w"], found[0]["v"]):
        assert not found[0]["w"].equal(other)
    kept, others = (found[0]["w"] * 0.3) % 100 > 0.5, found[0]["w"] * 0.3 > 99
    assert not kept.equal(others)  # each model has draws of its own
    strips = kept.reshape(10, 100)
    assert len({tuple(strip.tolist()) for strip in strips}) == 10


def test_a_model_merged_with_itself_is_itself(tmp_path):
    (a,) = files(tmp_path, state(0))
    copy = shutil.copy(a, tmp_path / "copy.safetensors")
    for number, method in enumerate(EVERY):
        settings = dict.fromkeys(EVERY[method], 0.5)
        merge([a, copy], tmp_path / str(number), method=method, base=based(method, a), **settings)
        for name, found in merged(tmp_path / str(number)).items():
            torch.testing.assert_close(found, state(0)[name])


# types


def test_types_are_joined_in_the_one_that_holds_all(tmp_path):
    a, b = files(
        tmp_path,
        {"x": torch.ones(3).half(), "y": torch.ones(3).bfloat16(), "z": torch.ones(3).bfloat16()},
        {"x": torch.zeros(3).bfloat16(), "y": torch.zeros(3), "z": torch.zeros(3).bfloat16()},
    )
    made = merge([a, b], tmp_path / "out")
    types = {name: one.dtype for name, one in merged(tmp_path / "out").items()}
    assert types == {"x": torch.float32, "y": torch.float32, "z": torch.bfloat16}
    assert "2 tensors have different types in the models, first" in made.notes[0]


def test_asked_types_hold_before_and_after(tmp_path):
    x, y = torch.tensor([1.0 + 2**-9]), torch.tensor([1.0])
    a, b = files(tmp_path, {"w": x}, {"w": y})
    merge([a, b], tmp_path / "one", dtype="bfloat16")
    assert merged(tmp_path / "one")["w"].equal(torch.ones(1).bfloat16())
    recipe = {
        "merge_method": "linear", "models": [{"model": str(a)}, {"model": str(b)}],
        "parameters": {"weight": 1}, "dtype": "float32", "out_dtype": "float64",
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    merge_file(tmp_path / "r.yaml", tmp_path / "two")
    assert merged(tmp_path / "two")["w"].equal(((x + y) / 2).double())


def test_integers_that_agree_are_copied_and_counters_are_the_first_models(tmp_path):
    more = {"ids": torch.arange(5), "mask": torch.tensor([True, False])}
    a, b = files(
        tmp_path,
        state(0, seen=torch.tensor(7), **more),
        state(1, seen=torch.tensor(9), **more),
    )
    made = merge([a, b], tmp_path / "out")
    found = merged(tmp_path / "out")
    assert found["ids"].equal(more["ids"])
    assert found["mask"].equal(more["mask"])
    assert found["seen"] == 7
    assert any("'seen', a counter, differs" in note for note in made.notes)


def test_other_integers_that_differ_are_refused(tmp_path):
    a, b = files(tmp_path, state(0, q=torch.arange(5)), state(1, q=torch.arange(1, 6)))
    with pytest.raises(LoadError, match="'q' has type int64 and differs"):
        merge([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_empty_and_single_values_are_merged(tmp_path):
    more = {"none": torch.zeros(0, 3), "one": torch.tensor(2.0)}
    paths = files(tmp_path, *(state(i, **more) for i in range(3)))
    for number, method in enumerate(EVERY):
        out = tmp_path / str(number)
        merge(paths[:2], out, method=method, base=based(method, paths[2]), **EVERY[method])
        assert merged(out)["none"].shape == (0, 3)
        torch.testing.assert_close(merged(out)["one"], torch.tensor(2.0))


# forms


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(50, 8)
        self.write = nn.Linear(8, 50, bias=False)
        self.write.weight = self.read.weight


def test_a_tensor_under_two_names_is_merged_once_and_loads(tmp_path):
    torch.manual_seed(0)
    models = [Tied() for _ in range(3)]
    paths = []
    for number, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{number}.pt")
        paths.append(tmp_path / f"{number}.pt")
    merge(paths[:2], tmp_path / "out", method="dare_linear", base=paths[2], density=0.5)
    found = merged(tmp_path / "out")
    assert found.keys() == {"read.weight"}
    load_model(models[0], tmp_path / "out" / "model.safetensors")
    assert models[0].write.weight.equal(found["read.weight"])


def test_a_tied_copy_that_one_model_has_is_left_out(tmp_path):
    embed = [state(seed)["embed"] for seed in (0, 1)]
    a, b = files(tmp_path, state(0, head=embed[0].clone()), state(1))
    made = merge([a, b], tmp_path / "out")
    assert "head" not in merged(tmp_path / "out")
    assert "'head' is not in" in made.notes[0]
    a, b = files(tmp_path, state(0, head=embed[1]), state(1))
    with pytest.raises(LoadError, match="'head' is not in"):
        merge([a, b], tmp_path / "other")


def test_many_shards_and_their_index(tmp_path):
    a, b = files(tmp_path, state(0), state(1))
    merge([a, b], tmp_path / "whole")
    merge([a, b], tmp_path / "parts", shard_bytes=400)
    names = sorted(one.name for one in (tmp_path / "parts").glob("*.safetensors"))
    assert names == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    whole, parts = merged(tmp_path / "whole"), merged(tmp_path / "parts")
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in whole.values())
    assert all(parts[name].equal(whole[name]) for name in whole)
    merge([tmp_path / "parts", tmp_path / "whole"], tmp_path / "again", shard_bytes=1)
    again = merged(tmp_path / "again")
    assert all(again[name].equal(whole[name]) for name in whole)


@pytest.fixture
def decoders(tmp_path):
    """Three tiny decoders of one configuration, in shards, with tokenizers."""
    from load.conftest import save_llama
    from secant.load.huggingface import quiet

    folders = []
    with quiet():
        for number in range(3):
            torch.manual_seed(number)
            folder = tmp_path / f"decoder{number}"
            folder.mkdir()
            save_llama(folder)
            folders.append(folder)
    return folders


@pytest.mark.parametrize("method", EVERY)
def test_a_merged_directory_loads_with_transformers(tmp_path, decoders, method):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    merge(decoders[:2], out, method=method, base=based(method, decoders[2]), shard_bytes=2000,
          **EVERY[method])  # fmt: skip
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    found = merged(out)
    for name, value in model.state_dict().items():
        if name in found:
            assert value.equal(found[name])
    assert AutoTokenizer.from_pretrained(out)("the film").input_ids == [3, 5]
    card = (out / "README.md").read_text()
    assert f"by `{method}`" in card
    assert all(f"`{path}`" in card for path in decoders[:2])


def test_the_recipe_on_the_card_makes_the_same_merge(tmp_path, decoders):
    merge(decoders[1:], tmp_path / "one", method="dare_ties", base=decoders[0], density=0.5, seed=3)
    card = (tmp_path / "one" / "README.md").read_text()
    assert "seed of the masks: 3" in card
    (tmp_path / "r.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])
    merge_file(tmp_path / "r.yaml", tmp_path / "two", seed=3)
    one, two = merged(tmp_path / "one"), merged(tmp_path / "two")
    assert all(one[name].equal(two[name]) for name in one)


def test_the_configuration_says_the_new_type(tmp_path, decoders):
    merge(decoders[:2], tmp_path / "out", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config.get("dtype"), config.get("torch_dtype")} <= {"bfloat16", None}
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def test_slices_must_have_all_layers(tmp_path, decoders):
    sources = [{"model": str(one), "layer_range": [0, 2]} for one in decoders[:2]]
    recipe = {"merge_method": "slerp", "base_model": str(decoders[0]), "parameters": {"t": [0, 1]},
              "slices": [{"sources": sources}]}  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    merge_file(tmp_path / "r.yaml", tmp_path / "out")
    found = merged(tmp_path / "out")
    first, last = (f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    assert found[first].equal(merged(decoders[0])[first])
    assert found[last].equal(merged(decoders[1])[last])
    for one in sources:
        one["layer_range"] = [0, 1]
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=r"layers \[0, 1\], the models have 2"):
        merge_file(tmp_path / "r.yaml", tmp_path / "other")


# what does not fit


def refused(tmp_path, models, words, error=LoadError, **how):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words) as caught:
        merge(models, tmp_path / "out", **how)
    assert sorted(tmp_path.iterdir()) == before
    return str(caught.value)


def test_the_first_ten_differing_tensors_are_named(tmp_path):
    a, b = files(
        tmp_path,
        state(0, **{f"x{n:02d}": torch.ones(2) for n in range(13)}),
        state(1, **{f"x{n:02d}": torch.ones(3) for n in range(13)}),
    )
    said = refused(tmp_path, [a, b], "same shapes in 13 places.*and 3 more")
    assert all(f"'x{n:02d}' is [2] in" in said for n in range(10))
    assert "'x10'" not in said
    a, b = files(tmp_path, state(0, extra=torch.ones(1)), state(1, other=torch.ones(2)))
    said = refused(tmp_path, [a, b], "same tensors in 2 places")
    assert "'extra' is not in" in said
    assert "'other' is not in" in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", EVERY)
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, monkeypatch, method, dtype, bad):
    small_pieces(monkeypatch, 3, 6)
    spoiled = state(1, dtype)
    spoiled["layers.1.b"][7] = bad
    paths = files(tmp_path, state(0, dtype), spoiled, state(2, dtype))
    how = {"method": method, "base": based(method, paths[2])} | EVERY[method]
    refused(tmp_path, paths[:2], r"b\.safetensors'.*'layers\.1\.b'.*not finite", **how)


def test_a_result_beyond_its_type_is_refused(tmp_path):
    a, b = files(tmp_path, *[{"w": torch.tensor([60000.0]).half()}] * 2)
    how = {"weight": [1, 1], "normalize": False}
    refused(tmp_path, [a, b], "'w' is not finite in float16", InputError, **how)


def test_different_vocabularies_are_refused(tmp_path, decoders):
    path = decoders[1] / "tokenizer.json"
    table = json.loads(path.read_text())
    words = table["model"]["vocab"]
    words["film"], words["cat"] = words["cat"], words["film"]
    path.write_text(json.dumps(table))
    refused(tmp_path, decoders[:2], "differ in 2 tokens, first 'cat'")


def test_different_architectures_are_refused_and_other_differences_said(tmp_path, decoders):
    path = decoders[1] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    made = merge(decoders[:2], tmp_path / "out")
    assert any("differs in 'rms_norm_eps'" in note for note in made.notes)
    assert "'rms_norm_eps'" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(tmp_path / "out")
    path.write_text(json.dumps(config | {"model_type": "mistral"}))
    refused(tmp_path, decoders[:2], "model_type is 'llama' in .* and 'mistral'")


def test_a_tokenizer_that_only_one_model_has_is_kept_and_said(tmp_path, decoders):
    (decoders[0] / "tokenizer.json").unlink()
    (decoders[0] / "tokenizer_config.json").unlink()
    made = merge(decoders[:2], tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    assert any("has no tokenizer" in note for note in made.notes)


def test_code_beside_a_model_is_not_copied(tmp_path, decoders):
    (decoders[0] / "modeling.py").write_text("raise SystemExit")
    config = json.loads((decoders[0] / "config.json").read_text())
    for one in decoders[:2]:
        (one / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "m.M"}}))
    made = merge(decoders[:2], tmp_path / "out")
    assert not (tmp_path / "out" / "modeling.py").exists()
    assert any("code is not copied" in note for note in made.notes)


ASKED = {
    "method": ({"method": "magic"}, "'magic' is not one of linear"),
    "weights": ({"weight": [1, 2, 3]}, "one for each of 2"),
    "mean": ({"weight": [1, -1]}, "sum to 0"),
    "density": ({"density": 0.5}, "linear has no parameter 'density'"),
    "t": ({"t": 0.5}, "linear has no parameter 't'"),
    "no t": ({"method": "slerp"}, "has no t"),
    "base": ({"method": "ties"}, "merges changes from a base"),
    "type": ({"dtype": "int8"}, "'int8' is not one of"),
    "size": ({"shard_bytes": 0}, "shard_bytes"),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_cannot_be_asked_is_refused(tmp_path, case):
    how, words = ASKED[case]
    refused(tmp_path, files(tmp_path, state(0), state(1)), words, InputError, **how)


def test_one_model_is_no_merge(tmp_path):
    paths = files(tmp_path, state(0), state(1), state(2))
    refused(tmp_path, paths[:1], "2 models or more; got 1", InputError)
    refused(tmp_path, paths, "exactly one model beside its base; got 2", InputError,
            method="slerp", t=0.5)  # fmt: skip


def test_an_output_that_is_there_is_left_alone(tmp_path):
    paths = files(tmp_path, state(0), state(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    refused(tmp_path, paths, "not empty", InputError)
    assert (tmp_path / "out" / "mine").read_text() == "kept"
    (tmp_path / "out" / "mine").unlink()
    merge(paths, tmp_path / "out")
    assert merged(tmp_path / "out")


def test_a_disk_without_room_is_seen_before_the_merge(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(tmp_path, files(tmp_path, state(0), state(1)), "GB left", InputError)


@pytest.mark.parametrize("writes", [0, 1, 3, 5])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, writes):
    real, count = os.pwrite, 0

    def full(descriptor, raw, offset):
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, raw[:17], offset)

    paths = files(tmp_path, state(0), state(1))
    monkeypatch.setattr(os, "pwrite", full)
    refused(tmp_path, paths, "No space left on device.*nothing of it is left", InputError)


def test_an_interrupted_merge_leaves_nothing(tmp_path, monkeypatch):
    def stop(label, done, total):
        raise KeyboardInterrupt

    refused(tmp_path, files(tmp_path, state(0), state(1)), None, KeyboardInterrupt, progress=stop)


def test_folders_above_are_made_and_taken_away_again(tmp_path):
    paths = files(tmp_path, state(0), state(1, **{"layers.1.b": torch.full((8,), torch.nan)}))
    with pytest.raises(LoadError):
        merge(paths, tmp_path / "x" / "y" / "out")
    assert not (tmp_path / "x").exists()
    merge([paths[0], paths[0]], tmp_path / "x" / "y" / "out")
    assert merged(tmp_path / "x" / "y" / "out")


def test_progress_ends_at_all_bytes(tmp_path):
    seen = []
    paths = files(tmp_path, state(0, ids=torch.arange(3)), state(1, ids=torch.arange(3)))
    made = merge(paths, tmp_path / "out", progress=lambda *what: seen.append(what))
    assert seen[-1] == ("merging", made.bytes, made.bytes)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_memory_does_not_grow_with_the_tensors(tmp_path, way):
    """A process of its own: 40 MB against 160 MB in one tensor, by the method that needs most."""
    import subprocess
    import sys

    code = (
        "import sys; from secant.uses import merge_blocks, merge_streams\n"
        "from secant.uses.merge import merge\n"
        "if sys.argv[4] == 'by numpy': merge_streams.blocks = merge_blocks.Plain\n"
        "merge([sys.argv[2]], sys.argv[3], method='ties', base=sys.argv[1], density=0.5)\n"
        "assert 'torch' not in sys.modules\n"
        # Not getrusage, whose peak is also that of the process that this one was forked from.
        "status = dict(line.split(':') for line in open('/proc/self/status'))\n"
        "print(int(status['VmHWM'].split()[0]) / 1024)"
    )
    peaks = []
    for count in (20_000_000, 80_000_000):
        paths = files(tmp_path, *({"w": torch.randn(count).bfloat16()} for _ in range(2)))
        command = [sys.executable, "-c", code, *map(str, paths), str(tmp_path / str(count)), way]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(ran.stdout))
    # The counts of TIES: 256 KB for each strip of 2 MB, and no more.
    assert peaks[1] - peaks[0] < 0.2 * 120


# the command line


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in ("merge", *arguments)])


def test_the_command_merges(tmp_path):
    a, b, base = files(tmp_path, state(0), state(1), state(2))
    numbers = ["--weight", 1, "--weight", 3, "--density", 0.5]
    done = run(a, b, "--base", base, "--method", "ties", *numbers, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == ["4", "tensors,", "0.0", "MB", "->", str(tmp_path / "out")]
    merge([a, b], tmp_path / "same", base=base, method="ties", weight=[1, 3], density=0.5)
    one, two = merged(tmp_path / "out"), merged(tmp_path / "same")
    assert all(one[name].equal(two[name]) for name in one)


def test_the_command_merges_by_a_file_alone(tmp_path):
    a, b = files(tmp_path, state(0), state(1))
    recipe = {"merge_method": "slerp", "base_model": str(a), "models": [{"model": str(b)}],
              "parameters": {"t": 1}}  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert run("--config", tmp_path / "r.yaml", "--out", tmp_path / "out").exit_code == 0
    assert merged(tmp_path / "out")["embed"].equal(state(1)["embed"])
    done = run(a, "--t", 0, "--config", tmp_path / "r.yaml", "--out", tmp_path / "other")
    assert isinstance(done.exception, InputError)
    assert "got MODELS, --t as well" in str(done.exception)
