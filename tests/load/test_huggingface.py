"""Hugging Face models: the class with its head, quiet, complete, and safe to load.

Holds: tests of ``secant.load.huggingface``.
May import: pytest, torch, safetensors, transformers, ``secant``.
"""

import json
import pickle
import shutil
import struct
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from secant.errors import LoadError
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.huggingface import quiet
from secant.load.models import load_model
from secant.load.options import LoadOptions


@pytest.fixture
def copy_of(tiny, tmp_path):
    """A copy of a tiny model's folder, to be spoilt."""
    return lambda name: shutil.copytree(tiny / name, tmp_path / name)


KINDS = {
    "encoder": ("BertModel", "pooler"),
    "classifier": ("BertForSequenceClassification", "classifier"),
    "decoder": ("LlamaForCausalLM", "lm_head"),
    "vit": ("ViTForImageClassification", "classifier"),
    "resnet": ("ResNetForImageClassification", "classifier"),
}


def values(tensors):
    """All distinct values: names differ on disk for some models, and ties are saved once."""
    return torch.cat([tensor.flatten().double() for tensor in tensors]).unique()


@pytest.mark.parametrize("name", KINDS)
def test_the_class_is_the_one_with_the_head(tiny, name):
    kind, head = KINDS[name]
    loaded = load_model(str(tiny / name))
    assert type(loaded.model).__name__ == kind
    assert head in dict(loaded.model.named_modules())
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.name == name
    saved = load_file(tiny / name / "model.safetensors")
    assert values(saved.values()).equal(values(loaded.model.state_dict().values()))


@pytest.mark.parametrize("name", KINDS)
def test_fresh_weights_follow_the_seed_alone(tiny, name):
    loaded = load_model(str(tiny / name))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = loaded.fresh(3), loaded.fresh(3), loaded.fresh(4)
    assert torch.get_rng_state().equal(before)
    assert type(one) is type(loaded.model)
    assert not any(module.training for module in one.modules())
    pairs = list(zip(one.parameters(), again.parameters(), strict=True))
    assert all(a.equal(b) for a, b in pairs)
    flat = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, other, loaded.model)]
    assert not flat[0].equal(flat[1])
    assert not flat[0].equal(flat[2])


def test_tied_weights_stay_tied(tiny):
    loaded = load_model(str(tiny / "decoder"))
    for model in (loaded.model, loaded.fresh(0)):
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_dtype_is_as_asked_for_model_and_fresh_copy(tiny, dtype):
    loaded = load_model(str(tiny / "encoder"), LoadOptions(dtype=dtype))
    for model in (loaded.model, loaded.fresh(0)):
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_a_half_checkpoint_becomes_float32_unless_kept(copy_of):
    folder = copy_of("encoder")
    file = folder / "model.safetensors"
    weights = {key: value.bfloat16() for key, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(str(folder)).dtype == torch.float32
    kept = load_model(str(folder), LoadOptions(dtype="keep"))
    assert kept.dtype == kept.fresh(0).dtype == torch.bfloat16


class Evil:
    """Unpickling it with code allowed makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_bin_file_of_tensors_is_read(copy_of):
    folder = copy_of("encoder")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    own = load_model(str(folder)).model.state_dict()
    assert all(own[key].equal(value) for key, value in weights.items())


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain pickle", "torch.save"])
def test_a_bin_file_with_code_is_refused_and_not_run(copy_of, tmp_path, is_plain):
    folder, trace = copy_of("encoder"), tmp_path / "trace"
    (folder / "model.safetensors").unlink()
    bad = {"x": Evil(trace)}
    if is_plain:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(bad))
    else:
        torch.save(bad, folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match="would need code"):
        load_model(str(folder))
    assert not trace.exists()


def lying(path):
    entry = {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}
    header = json.dumps({"x": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0000")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def garbage(path):
    path.write_bytes(b"\x00" * 64)


@pytest.mark.parametrize("spoil", [lying, truncated, garbage])
def test_spoilt_safetensors_are_refused(copy_of, spoil):
    folder = copy_of("encoder")
    spoil(folder / "model.safetensors")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_model(str(folder))


def test_missing_weights_are_refused_not_drawn(copy_of):
    folder = copy_of("classifier")
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["classifier.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"'classifier\.weight'.*random"):
        load_model(str(folder))


def test_a_missing_pooler_and_unused_weights_are_notes(copy_of):
    folder = copy_of("encoder")
    file = folder / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if "pooler" not in k}
    save_file(weights | {"spare": torch.zeros(2)}, file, metadata={"format": "pt"})
    notes = load_model(str(folder)).notes
    assert len(notes) == 2
    assert "pooler" in notes[0]
    assert "1 weights" in notes[1]


def test_weights_of_another_shape_are_named(copy_of):
    folder = copy_of("encoder")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 41}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"word_embeddings.*\(41, 16\).*\(40, 16\)"):
        load_model(str(folder))


CONFIGS = {
    "not json": ("{", "valid JSON"),
    "no type": ("{}", "model_type"),
    "unknown type": ('{"model_type": "nonesuch"}', "nonesuch"),
    "wrong field": ('{"model_type": "bert", "hidden_size": "x"}', "hidden_size"),
    "unknown activation": ('{"model_type": "bert", "hidden_act": "zz"}', "zz"),
    "unknown class": ('{"model_type": "bert", "architectures": ["Nonesuch"]}', "Nonesuch"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_config_is_refused(copy_of, case):
    text, word = CONFIGS[case]
    folder = copy_of("encoder")
    (folder / "config.json").write_text(text)
    with pytest.raises(LoadError, match=word):
        load_model(str(folder))


def remote(folder, trace):
    """A model whose code lies beside its weights and leaves a trace when it is run."""
    (folder / "modelling.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertModel\n"
        "class MyConfig(BertConfig):\n    model_type = 'my-bert'\n"
        "class MyBert(BertModel):\n    config_class = MyConfig\n"
    )
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "my-bert", "architectures": ["MyBert"],
        "auto_map": {"AutoConfig": "modelling.MyConfig", "AutoModel": "modelling.MyBert"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def test_remote_code_runs_only_when_asked(copy_of, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    folder, trace = copy_of("encoder"), tmp_path / "trace"
    remote(folder, trace)
    with pytest.raises(LoadError, match="--trust-remote-code"):
        load_model(str(folder))
    assert not trace.exists()
    loaded = load_model(str(folder), LoadOptions(trust_remote_code=True))
    assert trace.exists()
    assert type(loaded.model).__name__ == type(loaded.fresh(0)).__name__ == "MyBert"


def test_code_beside_a_known_type_is_refused_too(copy_of, tmp_path):
    folder = copy_of("encoder")
    remote(folder, tmp_path / "trace")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="--trust-remote-code"):
        load_model(str(folder))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("text", ["{", "{}", '{"added_tokens": []}'])
def test_a_broken_tokenizer_is_said_when_texts_come(copy_of, text):
    folder = copy_of("encoder")
    (folder / "tokenizer.json").write_text(text)
    loaded = load_model(str(folder))
    assert loaded.reader_error
    with pytest.raises(ValueError, match="has no tokenizer"):
        Feed(loaded, load_data(["a film"] * 4), groups=2, batch_size=2, seed=0)


def test_a_hub_model_comes_from_the_cache(tiny, tmp_path, monkeypatch):
    """A cache as the hub's client lays it out, and no network: the same weights."""
    revision = "a" * 40
    root = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny / "encoder", root / "snapshots" / revision)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub import _snapshot_download as client

    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_model("someone/tiny")
    assert loaded.name == "someone/tiny"
    saved = load_file(tiny / "encoder" / "model.safetensors")
    assert all(loaded.model.state_dict()[key].equal(value) for key, value in saved.items())
    with pytest.raises(LoadError, match="not got from the hub"):
        load_model("someone/nonesuch")


def test_gguf_says_what_to_install(tmp_path, monkeypatch):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "secant.load.huggingface.importlib.util.find_spec",
        lambda name: None if name in {"gguf", "accelerate"} else real(name),
    )
    with pytest.raises(LoadError, match=r"gguf and accelerate.*secant\[gguf\]"):
        load_model(str(file))
    with pytest.raises(LoadError, match="no such file"):
        load_model(str(tmp_path / "y.gguf"))


def test_without_transformers_it_is_named(tiny, monkeypatch):
    monkeypatch.setattr("secant.load.huggingface.importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"transformers.*secant\[hf\]"):
        load_model(str(tiny / "encoder"))


def test_quiet_restores_what_it_silenced(capfd):
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as noise

    before = noise.get_verbosity(), noise.is_progress_bar_enabled(), are_progress_bars_disabled()
    filters = list(warnings.filters)

    def fail_noisily():
        with quiet():
            noise.get_logger("transformers").warning("not to be seen")
            warnings.warn("not to be seen", stacklevel=1)
            raise KeyError

    with pytest.raises(KeyError):
        fail_noisily()
    now = noise.get_verbosity(), noise.is_progress_bar_enabled(), are_progress_bars_disabled()
    assert now == before
    assert warnings.filters == filters
    assert capfd.readouterr().err == ""


def test_loading_says_nothing(tiny, capfd):
    load_model(str(tiny / "classifier"))
    assert capfd.readouterr() == ("", "")
