"""Factories and weights files: what fits is loaded, what does not is named, code never runs.

Holds: tests of ``secant.load.factory``.
May import: pytest, torch, safetensors, ``secant``.
"""

import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from secant.errors import LoadError
from secant.load.models import load_model
from secant.load.options import LoadOptions

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 2)

    def forward(self, x):
        return self.second(self.first(x))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(5, 4)
        self.write = nn.Linear(4, 5, bias=False)
        self.write.weight = self.read.weight

    def forward(self, x):
        return self.write(self.read(x))

def with_argument(width):
    return Net(width)

def no_module():
    return 3

def trained():
    net = Net()
    for one in net.parameters():
        one.data.fill_(1)
    return net

lazy = lambda: nn.Sequential(nn.LazyLinear(3))
CONSTANT = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The name of a module in the current directory, which is not on the path."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def weights(**changes):
    torch.manual_seed(1)
    parts = {"first.weight": (4, 3), "first.bias": (4,), "second.weight": (2, 4)}
    found = {key: torch.randn(shape) for key, shape in (parts | {"second.bias": (2,)}).items()}
    return {key: value for key, value in (found | changes).items() if value is not None}


def load(nets, file, kind="Net", **options):
    return load_model(f"{nets}:{kind}", LoadOptions(weights=file, **options))


WRITERS = {
    "w.safetensors": lambda path: save_file(weights(), path),
    "w.pt": lambda path: torch.save(weights(), path),
    "w.pth": lambda path: torch.save({"state_dict": weights(), "epoch": 3}, path),
    "w.bin": lambda path: torch.save({"model_state_dict": weights()}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_weights_fill_the_model(nets, tmp_path, name):
    path_before = list(sys.path)
    WRITERS[name](tmp_path / name)
    loaded = load(nets, tmp_path / name)
    state = loaded.model.state_dict()
    assert all(state[key].equal(value) for key, value in weights().items())
    assert loaded.name == f"{nets}:Net ({name})"
    assert not loaded.model.training
    assert sys.path == path_before
    one, again, other = (m.first.weight for m in map(loaded.fresh, (0, 0, 1)))
    assert one.equal(again)
    assert not one.equal(other)
    assert not one.equal(weights()["first.weight"])


def test_without_weights_the_factory_decides(nets):
    loaded = load_model(f"{nets}:Net")
    assert loaded.name == f"{nets}:Net"
    draws = [one.first.weight for one in (loaded.model, *map(loaded.fresh, (0, 0, 1)))]
    assert draws[1].equal(draws[2])
    assert not any(draws[1].equal(other) for other in (draws[0], draws[3]))


def test_a_factory_that_loads_its_weights_has_fresh_ones_all_the_same(nets):
    loaded = load_model(f"{nets}:trained")
    own, one, again, other = (m.first.weight for m in (loaded.model, *map(loaded.fresh, (0, 0, 1))))
    assert bool((own == 1).all())
    assert one.equal(again)
    assert not one.equal(other)
    assert bool((one.abs() < 1).all())


def test_loading_leaves_the_random_state(nets):
    before = torch.get_rng_state()
    load_model(f"{nets}:Net").fresh(9)
    assert torch.get_rng_state().equal(before)


def test_shared_tensors_may_be_saved_once(nets, tmp_path):
    module = load_model(f"{nets}:Tied").model
    with torch.no_grad():
        module.read.weight.normal_()
    save_model(module, tmp_path / "t.safetensors")
    found = load(nets, tmp_path / "t.safetensors", "Tied").model
    assert found.read.weight.equal(module.read.weight)
    assert found.write.weight is found.read.weight


def test_half_weights_are_cast_or_kept(nets, tmp_path):
    halves = {key: value.bfloat16() for key, value in weights().items()}
    save_file(halves, tmp_path / "w.safetensors")
    assert load(nets, tmp_path / "w.safetensors").dtype == torch.float32
    kept = load(nets, tmp_path / "w.safetensors", dtype="keep")
    assert kept.dtype == kept.fresh(0).first.weight.dtype == torch.bfloat16


MISFITS = {
    "missing": ({"first.bias": None}, r"missing 'first\.bias', unexpected none"),
    "unexpected": ({"extra": torch.ones(1)}, r"missing none, unexpected 'extra'"),
    "shape": ({"first.bias": torch.ones(5)}, r"'first\.bias' must have shape \(4,\).*\(5,\)"),
    "nan": ({"first.bias": torch.full((4,), float("nan"))}, r"'first\.bias'.*not finite"),
    "infinite": ({"first.bias": torch.full((4,), float("inf"))}, r"'first\.bias'.*not finite"),
    "many": (
        {f"x{n}": torch.ones(1) for n in range(5)},
        r"unexpected 'x0', 'x1', 'x2' and 2 more",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_are_named(nets, tmp_path, case):
    changes, words = MISFITS[case]
    save_file(weights(**changes), tmp_path / "w.safetensors")
    with pytest.raises(LoadError, match=words):
        load(nets, tmp_path / "w.safetensors")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("is_plain", [True, False], ids=["plain pickle", "torch.save"])
def test_a_pickle_with_code_is_refused_and_not_run(nets, tmp_path, suffix, is_plain):
    trace, file = tmp_path / "trace", tmp_path / f"w{suffix}"
    bad = weights() | {"first.bias": Evil(trace)}
    if is_plain:
        file.write_bytes(pickle.dumps(bad))
    else:
        torch.save(bad, file)
    with pytest.raises(LoadError, match=r"need code.*refused.*safetensors"):
        load(nets, file)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists(), "the trap works where code is allowed"


def test_a_whole_pickled_module_is_refused(nets, tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "w.pt")
    with pytest.raises(LoadError, match=r"Linear.*state_dict"):
        load(nets, tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.99])
def test_a_cut_file_is_an_error_of_ours(nets, tmp_path, name, share):
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(LoadError, match="w"):
        load(nets, tmp_path / name)


def test_corrupt_files_are_errors_of_ours(nets, tmp_path):
    """One byte changed at many places: loaded all the same, or refused, never another error."""
    file = tmp_path / "w.pt"
    torch.save(weights(), file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            load(nets, file)
        except LoadError:
            refused += 1
    assert refused > 10


def test_weights_that_are_no_names(nets, tmp_path):
    for value, word in (([torch.ones(2)], "list"), ({"a": 3}, "'a' is a int"), ({}, "dict")):
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(LoadError, match=word):
            load(nets, tmp_path / "w.pt")


NAMES = {
    "{}:Nett": "Did you mean 'Net'",
    "nonesuch_module:f": "nonesuch_module",
    "{}:CONSTANT": "must be a function; got int",
    "{}:no_module": "must return an nn.Module; got int",
    "{}:lazy": "lazy module",
}


@pytest.mark.parametrize("source", NAMES)
def test_bad_names_are_refused(nets, source):
    with pytest.raises(LoadError, match=NAMES[source]):
        load_model(source.format(nets))


def test_weights_files_that_are_not(nets, tmp_path):
    (tmp_path / "w.zip").write_bytes(b"")
    for file, word in (("none.pt", "no such file"), ("w.zip", "unknown kind '.zip'")):
        with pytest.raises(LoadError, match=word):
            load(nets, tmp_path / file)


def test_weights_need_a_factory(tmp_path):
    for source in ("demo:linear", nn.Linear(2, 2)):
        with pytest.raises(LoadError, match=r"package\.module:factory"):
            load_model(source, LoadOptions(weights=tmp_path / "w.pt"))


def test_errors_of_the_users_code_are_left_alone(nets):
    with pytest.raises(TypeError, match="width"):
        load_model(f"{nets}:with_argument")
