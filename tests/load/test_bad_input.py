"""Bad input on the command line: one clear line, exit code 2, nothing written.

Holds: the list of bad inputs for models and for how they are read; tests/test_cli.py has
those of data files.
May import: pytest, numpy, torch, safetensors, ``secant``.
"""

import itertools
import json
import pickle
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

NETS = """
import torch
from torch import nn

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10))

class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x.flatten(1))

def number():
    return 3

def twice(model, batch):
    return model(batch)

def nothing(model, batch):
    model(batch)
"""


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def weights():
    return {
        "1.weight": torch.eye(64), "1.bias": torch.zeros(64),
        "2.weight": torch.eye(10, 64), "2.bias": torch.zeros(10),
    }  # fmt: skip


def lying(path):
    entry = {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}
    header = json.dumps({"1.weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0000")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture
def here(tmp_path, monkeypatch, tiny):
    """A directory with a module of nets, weights good and bad, and spoilt model folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "badnets.py").write_text(NETS)
    save_file(weights(), "good.safetensors")
    save_file(weights(), "cut.safetensors")
    cut(tmp_path / "cut.safetensors")
    lying(tmp_path / "lying.safetensors")
    save_file(weights() | {"3.bias": torch.ones(1)}, "more.safetensors")
    save_file({k: v for k, v in weights().items() if k != "1.bias"}, "less.safetensors")
    save_file(weights() | {"1.bias": torch.full((64,), torch.nan)}, "nan.safetensors")
    torch.save(weights(), "cut.pt")
    cut(tmp_path / "cut.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"1.bias": Evil(tmp_path / "trace")}))
    (tmp_path / "texts.txt").write_text("the film\na good plot\nbad\n" * 20)
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n' * 20)
    np.save("narrow.npy", np.zeros((40, 7)))
    np.savez("two.npz", a=np.zeros((40, 64)), b=np.zeros((40, 64)))
    for name in ("cut", "lying", "evil", "nan", "bare", "mute"):
        shutil.copytree(tiny / "encoder", name)
    cut(tmp_path / "cut" / "model.safetensors")
    lying(tmp_path / "lying" / "model.safetensors")
    (tmp_path / "evil" / "model.safetensors").unlink()
    torch.save({"x": Evil(tmp_path / "trace")}, "evil/pytorch_model.bin")
    spoilt = load_file("nan/model.safetensors")
    spoilt["encoder.layer.0.output.dense.bias"][0] = torch.nan
    save_file(spoilt, "nan/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "bare" / "model.safetensors").unlink()
    (tmp_path / "mute" / "tokenizer.json").unlink()
    yield tmp_path
    sys.modules.pop("badnets", None)


TEXTS = ["--data", "texts.txt"]
WITH = ["badnets:linear", "--weights"]
CASES = {
    "no such model": (["nonesuch"], "none of demo:NAME"),
    "no such module": (["nonesuch_module:f"], "cannot be imported"),
    "no such factory": (["badnets:liner"], "Did you mean 'linear'"),
    "factory of a number": (["badnets:number"], "must return an nn.Module; got int"),
    "no such weights": ([*WITH, "none.pt"], "no such file"),
    "weights of a demo": (["demo:linear", "--weights", "good.safetensors"], "goes with"),
    "cut safetensors": ([*WITH, "cut.safetensors"], "cannot be read"),
    "lying safetensors": ([*WITH, "lying.safetensors"], "cannot be read"),
    "cut pickle": ([*WITH, "cut.pt"], "cannot be read"),
    "pickle with code": ([*WITH, "evil.pt"], "would need code"),
    "unexpected weights": ([*WITH, "more.safetensors"], "unexpected '3.bias'"),
    "missing weights": ([*WITH, "less.safetensors"], "missing '1.bias'"),
    "weights with nan": ([*WITH, "nan.safetensors"], "not finite"),
    "directory, cut": (["cut", *TEXTS], "cannot be loaded"),
    "directory, lying": (["lying", *TEXTS], "cannot be loaded"),
    "directory, pickle with code": (["evil", *TEXTS], "would need code"),
    "directory, nan": (["nan", *TEXTS], "'encoder.layer.0.output.dense.bias'"),
    "directory without weights": (["bare", *TEXTS], "cannot be loaded"),
    "directory without tokenizer": (["mute", *TEXTS], "has no tokenizer"),
    "no such gguf": (["none.gguf"], "no such file"),
    "no tensor": (["badnets:Silent"], "must return a tensor"),
    "no tensor by call": (["demo:linear", "--call", "badnets:nothing"], "must return a tensor"),
    "no such call": (["demo:linear", "--call", "badnets:thrice"], "no 'thrice'"),
    "call of another form": (["demo:linear", "--call", "badnets"], "package.module:function"),
    "device": (["demo:linear", "--device", "nonesuch"], "--device cpu"),
    "dtype": (["demo:linear", "--dtype", "int8"], "float32, float64"),
    "wrong shape": (["demo:linear", "--data", "narrow.npy"], "refuses the data"),
    "several arrays": (["demo:linear", "--data", "two.npz"], "--column"),
    "labels of digits": (["demo:linear", "--label-column", "y"], "--label-column"),
    "texts without labels": (["demo:linear", *TEXTS, "--label-column", "y"], "no columns"),
    "only blank texts": (["ENCODER", "--data", "blank.jsonl"], "every text is empty"),
    "rows to a reader of text": (["ENCODER", "--data", "narrow.npy"], "reads text"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(run, here, tiny, case):
    args, word = CASES[case]
    args = [str(tiny / "encoder") if arg == "ENCODER" else arg for arg in args]
    code, out, err = run("report", *args, "--no-controls", "--out", "out")
    assert code == 2, err
    assert err.startswith("secant: ")
    assert len(err.splitlines()) == 1, err
    assert word in err
    assert out == ""
    assert not (here / "out").exists()
    assert not (here / "trace").exists()


def test_an_offline_hub_id_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = run("report", "someone/nonesuch", "--out", tmp_path / "out")
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert "hub" in err


def test_good_options_are_read(run, here):
    args = ["--weights", "good.safetensors", "--call", "badnets:twice", "--dtype", "float64"]
    more = ["--rows", "200", "--no-controls", "--device", "cpu", "--site", "1", "--out", "out"]
    code, _, err = run("report", "badnets:linear", *args, *more)
    assert code == 0, err
    assert err == ""
    (model,) = json.loads((here / "out" / "report.json").read_text())["models"]
    assert model["name"] == "badnets:linear (good.safetensors)"


def test_a_decoder_is_surveyed_and_notes_are_kept(run, here, tiny):
    words = ("the", "film", "was", "bad", "good", "dog")
    texts = ["cat " * 50, *(" ".join(some) for some in itertools.permutations(words, 3))]
    (here / "long.txt").write_text("\n".join(texts[:41]))
    args = ["--data", "long.txt", "--site", "model.layers.1", "--out", "out"]
    code, out, err = run("report", str(tiny / "decoder"), *args)
    assert code == 0, err
    assert err == ""
    (model,) = json.loads((here / "out" / "report.json").read_text())["models"]
    assert model["notes"] == [
        "Few units: 41. At least 50 are wanted: with fewer, the intervals cover the truth less "
        "often than 95 %. Give more documents, images or rows.",
        "1 of 41 texts were longer than the model's 32 tokens and were cut off there.",
    ]
    assert "longer than the model's" in " ".join(out.split())
    assert "Few units: 41" in out
    assert "longer than the model" in (here / "out" / "report.html").read_text()
    assert all({"fresh", "shuffled"} <= set(r["controls"]) for r in model["readings"])


def test_sites_of_a_factory_and_of_a_head(run, here, tiny):
    assert "2  Linear" in run("sites", "badnets:linear")[1]
    assert "classifier  Linear" in run("sites", str(tiny / "classifier"))[1]
