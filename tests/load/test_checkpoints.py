"""Checkpoints on disk: what is there is read to the bit, and no claim of a file is believed.

Holds: tests of ``secant.load.checkpoints`` and ``secant.load.state_dicts``.
May import: pytest, numpy, torch, safetensors, ``secant``.
"""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from secant.errors import LoadError
from secant.load.checkpoints import open_checkpoint


def tensors():
    torch.manual_seed(0)
    return {
        "w": torch.randn(5, 3), "half": torch.randn(7).half(),
        "brain": torch.randn(2, 4).bfloat16(), "double": torch.randn(3).double(),
        "one": torch.tensor(3), "none": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]), "bytes": torch.arange(5, dtype=torch.uint8),
    }  # fmt: skip


def sharded(folder, state, suffix="safetensors"):
    """Two shards and their index."""
    stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    names = list(state)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        save({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


WRITERS = {
    "file": lambda p: save_file(tensors(), p / "w.safetensors") or p / "w.safetensors",
    "folder": lambda p: save_file(tensors(), p / "model.safetensors") or p,
    "folder of one file": lambda p: save_file(tensors(), p / "other.safetensors") or p,
    "index": lambda p: sharded(p, tensors()),
    "folder of shards": lambda p: sharded(p, tensors()).parent,
    "pickled shards": lambda p: sharded(p, tensors(), "bin").parent,
    "state dict": lambda p: torch.save(tensors(), p / "w.pt") or p / "w.pt",
    "nested": lambda p: torch.save({"state_dict": tensors()}, p / "w.pth") or p / "w.pth",
    "old format": lambda p: torch.save(
        tensors(), p / "w.bin", _use_new_zipfile_serialization=False
    )
    or p / "w.bin",
}  # fmt: skip


@pytest.mark.parametrize("how", WRITERS)
def test_every_form_gives_names_types_shapes_and_values(tmp_path, how):
    with open_checkpoint(WRITERS[how](tmp_path)) as found:
        assert found.tensors.keys() == tensors().keys()
        for name, expected in tensors().items():
            stored = found.tensors[name]
            assert f"torch.{stored.kind.torch_name}" == str(expected.dtype)
            assert stored.shape == tuple(expected.shape)
            raw = expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert stored.read(0, stored.count).tobytes() == raw
            first = min(1, stored.count)
            assert stored.read(first, stored.count).tobytes() == raw[first * stored.kind.size :]


def test_a_strided_tensor_is_read_in_its_order(tmp_path):
    torch.save({"w": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as found:
        assert found.tensors["w"].read(0, 6).tolist() == [0, 3, 1, 4, 2, 5]


def test_one_tensor_under_two_names_is_known(tmp_path):
    w = torch.randn(4)
    torch.save({"a": w, "b": w, "c": w.clone(), "d": w[:2]}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as found:
        assert found.shared == {"b": "a"}


def test_files_are_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with open_checkpoint(sharded(tmp_path, tensors())):
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before


def raw_file(path, header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype="F32", shape=(2,), place=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


LIES = {
    "shape": ({"a": entry(shape=(3,))}, "'a' of shape"),
    "negative": ({"a": entry(shape=(-2,))}, "'a' has shape"),
    "truth": ({"a": entry(shape=(True, 2))}, "'a' has shape"),
    "backwards": ({"a": entry(place=(8, 0))}, "'a' of shape"),
    "past the end": ({"a": entry(shape=(4,), place=(0, 16))}, "take 16 bytes and it has 8"),
    "unused bytes": ({"a": entry(shape=(1,), place=(0, 4))}, "take 4 bytes"),
    "hole": ({"a": entry(shape=(1,), place=(4, 8))}, "starts at byte 4, not 0"),
    "overlap": ({"a": entry(), "b": entry()}, "starts at byte 0, not 8"),
    "huge": ({"a": entry(shape=(2**62, 2**62))}, "'a' of shape"),
    "type": ({"a": entry(dtype="F4")}, "type 'F4'"),
    "type of a type": ({"a": entry() | {"dtype": [1]}}, r"type \[1\]"),
    "no entry": ({"a": 3}, "no type, shape and place"),
    "no table": ([1], "not a table"),
    "no JSON": (b"{nonsense", "not JSON"),
    "twice": (b'{"a":1,"a":2}', "a name stands twice"),
    "deep": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path, lie):
    header, words = LIES[lie]
    raw_file(tmp_path / "w.safetensors", header)
    with pytest.raises(LoadError, match=words):
        open_checkpoint(tmp_path / "w.safetensors")


def test_the_honest_header_beside_the_lies(tmp_path):
    raw_file(tmp_path / "w.safetensors", {"a": entry()})
    with open_checkpoint(tmp_path / "w.safetensors") as found:
        assert found.tensors["a"].read(0, 2).tolist() == [0, 0]


@pytest.mark.parametrize("size", [0, 4, 9, 40, -1])
def test_a_cut_file_is_refused(tmp_path, size):
    path = tmp_path / "w.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(LoadError, match="cannot be read"):
        open_checkpoint(path)


def test_a_file_that_is_cut_while_open_is_an_error(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    with open_checkpoint(path) as found:
        os.truncate(path, 500)
        with pytest.raises(LoadError, match="ends before its last tensor"):
            found.tensors["a"].read(0, 1000)


def test_a_header_larger_than_the_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(LoadError, match="header claims"):
        open_checkpoint(tmp_path / "w.safetensors")


OUTSIDE = ["../w.safetensors", "/etc/w.safetensors", "a/../../w.safetensors", "..\\w.safetensors",
           "C:\\w.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_leaves_its_folder_is_refused(tmp_path, name):
    (tmp_path / "in").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadError, match=r"outside its folder.*refused"):
        open_checkpoint(tmp_path / "in")


def test_shards_that_are_links_are_read(tmp_path):
    """Caches of downloads keep their files so."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "in").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blobs" / "f00")
    (tmp_path / "in" / "model.safetensors").symlink_to(tmp_path / "blobs" / "f00")
    with open_checkpoint(tmp_path / "in") as found:
        assert found.tensors["a"].read(0, 2).tolist() == [1, 1]


def test_missing_shards_are_named(tmp_path):
    index = sharded(tmp_path, tensors())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(LoadError, match="1 of 2 shards are not there: 'model-00002-of"):
        open_checkpoint(index)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    index = sharded(tmp_path, tensors())
    places = json.loads(index.read_text())["weight_map"]
    places["phantom"] = places.pop("w")
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(LoadError, match="missing 'phantom', not named there 'w'"):
        open_checkpoint(index)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(LoadError, match="index"):
        open_checkpoint(tmp_path)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "trace"), "w")

    torch.save({"a": Evil()}, tmp_path / "w.pt")
    with pytest.raises(LoadError, match="need code"):
        open_checkpoint(tmp_path / "w.pt")
    assert not (tmp_path / "trace").exists()


def test_what_is_no_plain_tensor_is_refused(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "w.pt")
    with pytest.raises(LoadError, match=r"'a'.*complex64"):
        open_checkpoint(tmp_path / "w.pt")
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "w.pt")
    with pytest.raises(LoadError, match=r"'a'.*sparse"):
        open_checkpoint(tmp_path / "w.pt")


def test_places_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(LoadError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nonesuch")
    with pytest.raises(LoadError, match="must hold one of"):
        open_checkpoint(tmp_path)
    (tmp_path / "w.zip").write_bytes(b"")
    with pytest.raises(LoadError, match=r"unknown kind '\.zip'"):
        open_checkpoint(tmp_path / "w.zip")
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(LoadError, match="no tensors"):
        open_checkpoint(tmp_path / "w.safetensors")


def test_an_adapter_is_no_checkpoint(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LoadError, match="whole model"):
        open_checkpoint(tmp_path)
