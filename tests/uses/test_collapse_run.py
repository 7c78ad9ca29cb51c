"""Collapsing from the command line: files that plain torch runs, what is told, refusals.

Holds: tests of ``secant.uses.collapse_run``, its report and its command.
May import: pytest, torch, safetensors, typer, transformers where installed, ``secant``.
"""

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from secant.errors import InputError
from secant.load.data import Units
from secant.load.demo import digits
from secant.load.loaded import Loaded
from secant.load.models import load_model
from secant.report.collapse import plain_words, render_collapse
from secant.uses.collapse_run import collapse_to


def told(found):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*render_collapse(found))
    return console.export_text() + " ".join(plain_words(found))


def test_the_program_runs_with_plain_torch_and_is_smaller(tmp_path):
    found = collapse_to(tmp_path / "out", "demo:linear")
    assert found.after["parameters"] == 650 < found.before["parameters"]
    assert found.after["flops"] == 2 * 32 * 64 * 10
    assert found.differences["collapsed"] < 1e-4
    images = digits()[0][:5].float()
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    expected = load_model("demo:linear").model(images)
    torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(one.numel() for one in weights.values()) == 650
    kept = json.loads((tmp_path / "out" / "collapse.json").read_text())
    assert kept["joined"][0]["parts"][-1] == "head"
    text = told(found)
    assert "blocks.0 + blocks.1" in text
    assert "0.03" in text  # 650 of 21,450 parameters


def test_a_model_with_nothing_to_join_says_so(tmp_path):
    found = collapse_to(tmp_path, "demo:mlp", rows=8)
    assert not found.joined
    assert "Nothing was joined" in told(found)
    assert found.before["flops"] == found.after["flops"]


def test_half_precision_says_how_far_its_own_arithmetic_goes(tmp_path):
    """Twelve 8-bit roundings against one: both from the model in float64."""
    loaded = load_model("demo:linear")
    half = Loaded("half", loaded.model.bfloat16(), None, loaded.fresh)
    found = collapse_to(tmp_path, half)
    assert found.joined
    own, ours = found.differences["model"], found.differences["collapsed"]
    assert 2.0**-9 * found.differences["scale"] < own
    assert ours < 2 * own


def test_bad_input_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="2 units are needed"):
        collapse_to(tmp_path / "none", "demo:mlp", Units("one", tensor=digits()[0][:1]))
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to folder"):
        collapse_to(tmp_path / "file", "demo:mlp")
