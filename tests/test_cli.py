"""The command line: bad input is one line and exit code 2; a good run writes two files.

Holds: tests of ``secant.cli``.
May import: pytest, numpy, torch, safetensors, ``secant``.
"""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file


def assert_one_line(result):
    code, out, err = result
    assert code == 2
    assert err.startswith("secant: ")
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in out + err
    return err


def lying_safetensors(path):
    entry = {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}
    header = json.dumps({"x": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0000")


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def two_tensors(path):
    one = torch.zeros(3, 64)
    save_file({"a": one, "b": one.clone()}, path)


def array(values, **kinds):
    return lambda path: np.save(path, np.array(values, **kinds))


def text(content):
    return lambda path: path.write_text(content)


BAD_FILES = {
    "text to a tensor model": ("x.txt", text("hello\nworld\n"), "texts"),
    "wrong column": ("x.csv", text("a,b\n1,2\n"), "--column"),
    "wrong column, extra cells": ("x.csv", text("a,b\n1,2,3\n"), "--column"),
    "record not an object": ("x.jsonl", text("[1]\n"), "--column"),
    "broken jsonl": ("x.jsonl", text("{\n"), "cannot be read"),
    "not utf-8": ("x.txt", lambda path: path.write_bytes(b"\xff\xfe"), "UTF-8"),
    "no units": ("x.txt", text("\n\n"), "no units"),
    "unknown kind": ("x.xyz", text("x"), "unknown kind"),
    "wrong shape": ("x.npy", array([[0.0] * 7] * 40), "shape"),
    "pickled objects": ("x.npy", array([{}, 1], dtype=object), "objects"),
    "strings": ("x.npy", array(["a", "b"]), "numbers"),
    "scalar": ("x.npy", array(3.0), "first dimension"),
    "complex": ("x.npy", array([[1j] * 64] * 40), "real"),
    "empty array": ("x.npy", array([]), "no units"),
    "empty npy file": ("x.npy", text(""), "cannot be read"),
    "lying header": ("x.safetensors", lying_safetensors, "safetensors"),
    "huge header": ("x.safetensors", huge_header, "safetensors"),
    "two tensors": ("x.safetensors", two_tensors, "--column"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_one_line(run, tmp_path, case):
    name, write, word = BAD_FILES[case]
    write(tmp_path / name)
    out = tmp_path / "out"
    err = assert_one_line(
        run("report", "demo:linear", "--no-controls", "--data", tmp_path / name, "--out", out)
    )
    assert word in err
    assert not list(out.glob("*"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonesuch"], ["nonesuch", "config.json"]),
        (["demo:nonesuch"], ["nonesuch", "linear"]),
        (["demo:linear", "--data", "nonesuch.npy"], ["nonesuch.npy", "no such file"]),
        (["demo:linear", "--rows", "1", "--no-controls"], ["got 1"]),
    ],
    ids=["model", "demo", "data", "too few"],
)
def test_bad_arguments_are_one_line(run, tmp_path, args, words):
    out = tmp_path / "out"
    err = assert_one_line(run("report", *args, "--out", out))
    assert all(word in err for word in words)
    assert not list(out.glob("*"))


def test_a_glob_without_match_names_the_nearest_site(run, tmp_path):
    from secant.load.demo import load_demo

    site = [name for name, _ in load_demo("linear").named_modules() if name][-1]
    out = tmp_path / "out"
    err = assert_one_line(run("report", "demo:linear", "--site", f"{site}x*", "--out", out))
    assert site in err.split("Nearest:")[1]
    assert not list(out.glob("*"))


def test_out_under_a_file_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        err = assert_one_line(run("report", "demo:linear", "--out", out))
        assert str(out) in err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_in_the_place_of_the_report_is_one_line(run, tmp_path):
    (tmp_path / "report.json").mkdir()
    args = ["report", "demo:linear", "--rows", "300", "--no-controls", "--out", tmp_path]
    code, _, err = run(*args)
    assert code == 2
    assert err.startswith("secant: ")
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_seed_out_of_range_is_refused(run, tmp_path):
    code, _, err = run("report", "demo:linear", "--seed", 10**30, "--out", tmp_path)
    assert code == 2
    assert "Traceback" not in err


def test_a_survey_writes_both_files(run, tmp_path):
    code, _, err = run(
        "report", "demo:linear", "--rows", 300, "--no-controls", "--out", tmp_path
    )  # fmt: skip
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}

    def refuse(constant):
        raise AssertionError(f"{constant} in the JSON")

    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    (model,) = found["models"]
    assert model["name"] == "demo:linear"
    assert model["units"] == 300
    assert {r["site"] for r in model["readings"]} == {*model["sites"], "(model)"}
    fits = [r for r in model["readings"] if r["gauge"] == "fit"]
    raw = [r["value"] for r in fits if r["variant"] == "raw"]
    assert raw
    assert min(raw) > 0.99, "the positive control is affine"
    assert not any({"fresh", "shuffled"} & set(r["controls"]) for r in model["readings"])
    page = (tmp_path / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "demo:linear" in page


def test_controls_are_beside_the_readings_by_default(run, tmp_path):
    code, _, err = run("report", "demo:linear", "--gauge", "fit", "--rows", 300, "--out", tmp_path)
    assert code == 0, err
    (model,) = json.loads((tmp_path / "report.json").read_text())["models"]
    assert all({"fresh", "shuffled"} <= set(r["controls"]) for r in model["readings"])


def test_sites_stars_those_surveyed(run):
    from secant.load.demo import load_demo
    from secant.maps.sites import default_sites

    code, out, _ = run("sites", "demo:cnn")
    assert code == 0
    starred = [line.split()[1] for line in out.splitlines() if line.startswith("*")]
    assert starred == default_sites(load_demo("cnn"))
