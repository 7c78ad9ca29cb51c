"""The command line: bad input is one line and exit code 2; a good run writes two files.

Holds: tests of ``secant.cli``.
May import: pytest, numpy, torch, safetensors, ``secant``.
"""

import itertools
import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import save_file

from secant.cli.console import show
from secant.comparisons import diff
from secant.readings import ModelReport, Reading, Report
from secant.report.terminal import render_comparison


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
    "only nan": ("x.npy", array([[float("nan")] * 64] * 40), "must hold numbers"),
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
    assert not out.exists()


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
    assert not out.exists()


def test_a_glob_without_match_names_the_nearest_site(run, tmp_path):
    from secant.load.demo import load_demo

    site = [name for name, _ in load_demo("linear").named_modules() if name][-1]
    out = tmp_path / "out"
    err = assert_one_line(run("report", "demo:linear", "--site", f"{site}x*", "--out", out))
    assert site in err.split("Nearest:")[1]
    assert not out.exists()


def test_a_refused_run_leaves_nothing_that_it_made(run, tmp_path):
    (tmp_path / "mine").mkdir()
    refused = (
        ["report", "nonesuch"], ["anatomy", "nonesuch"], ["tune", "nonesuch"],
        ["gating", "nonesuch"], ["gating", "demo:transformer"],
        ["compare", "demo:cnn", "demo:mlp"],
    )  # fmt: skip
    for args in refused:
        for out in ("mine", "a/b/c"):
            where = tmp_path / out / ("" if args[0] == "report" else "x.json")
            assert_one_line(run(*args, "--out", where))
            assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_state_that_cannot_be_kept_is_one_line_and_stays(run, tmp_path, monkeypatch):
    """The plan is kept, the sums are not: as on a disk that is filling up."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    args = ["report", "demo:linear", "--gauge", "fit", "--rows", 60, "--out", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr("secant.engine.checkpoint.save_file", full)
        err = assert_one_line(run(*args))
    assert "No space left on device" in err
    assert "--resume then goes on" in err
    assert (tmp_path / "out" / ".states" / "plan.json").is_file()
    code, _, err = run(*args, "--resume")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html"}


COMMANDS = {
    "report": ["demo:linear", "--gauge", "fit", "--rows", "60", "--no-controls", "--out", "OUT"],
    "sites": ["demo:cnn"],
    "diff": ["REPORT", "REPORT"],
    "anatomy": ["demo:linear", "--rows", "200"],
    "compare": ["demo:linear", "demo:linear", "--rows", "60", "--no-controls", "--steps", "2"],
    "tune": ["demo:linear", "--rows", "200"],
    "gating": ["demo:mlp", "--rows", "60", "--no-controls"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_gone_ends_the_program_as_it_ends_others(tmp_path, name):
    """As in `secant diff a b | head -1`; what was to be written is written before."""
    path = tmp_path / "report.json"
    reading = Reading("features", "a", "fit", "raw", 0.5, (0.4, 0.6), {})
    one = ModelReport("m", "d", 60, 60, ["a"], [reading], {})
    path.write_text(Report("2025", 0, {}, "CPU", {}, [one]).to_json())
    places = {"OUT": str(tmp_path / "out"), "REPORT": str(path)}
    args = [places.get(arg, arg) for arg in COMMANDS[name]]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-c", "from secant.cli import main; main()", name, *args],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert ran.stderr == ""
    assert ran.returncode == 128 + signal.SIGPIPE
    assert (tmp_path / "out" / "report.json").is_file() == (name == "report")


def long_names():
    sites = [f"encoder.layer.{i}.attention.self.{part}" for i in (1, 11) for part in "qk"]
    readings = [
        Reading("features", site, "fit", "context beyond", 0.5, (0.4, 0.6), {}) for site in sites
    ]
    (one,) = made = [ModelReport("m", "d", 60, 60, sites, readings, {})]
    return Report("2025", 0, {}, "CPU", {}, made), [
        site.removeprefix("encoder.layer.") for site in one.sites
    ]


def test_names_of_users_are_no_pictures(capfd):
    """Words between colons are emoji to rich; in a title, a cell and a paragraph they stay."""
    table = Table("site", title=escape("speak:speaker: bends"))
    table.add_row(escape("on:smile:site, wider than the title"))
    show(table, escape("of :warning: all"))
    out = capfd.readouterr().out
    for said in ("speak:speaker: bends", "on:smile:site", "of :warning: all"):
        assert said in out


def test_a_comparison_in_a_pipe_is_as_wide_as_its_names(run, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    report, names = long_names()
    path, _ = report.save(tmp_path)
    code, out, _ = run("diff", path, path)
    assert code == 0
    for name in names:
        (line,) = [line for line in out.splitlines() if f" {name} " in line]
        assert "fit context beyond" in line
        assert "[-0.1" in line or "[0.000, 0.000]" in line


def test_a_comparison_in_a_terminal_can_be_told_apart():
    """At 80 columns the path that all sites share is said once, and names fold a little."""
    report, names = long_names()
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as captured:
        for part in render_comparison(diff(report, report), 0.02, 40):
            console.print(part)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "sites under encoder.layer" in lines[0]
    (head,) = [line for line in lines if " site " in line]
    column = slice(head.index("site"), head.index("reading"))
    starts = [number for number, line in enumerate(lines) if "0.500" in line]
    cells = [
        "".join(line[column].strip() for line in lines[start:end])
        for start, end in itertools.pairwise([*starts, starts[-1] + 2])
    ]
    assert cells == names


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
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", ".states"}
    (tmp_path / "report.json").rmdir()
    code, _, err = run(*args, "--resume")
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


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


def test_two_checkpoints_compared(run, tmp_path):
    """A factory's model with a file for each: what is written is what is shown."""
    from secant.load.demo import load_demo

    files = [tmp_path / f"{name}.safetensors" for name in ("a", "b")]
    state = load_demo("mlp").state_dict()
    save_file(state, files[0])
    save_file({key: 1.1 * value for key, value in state.items()}, files[1])
    args = ["secant.load.demo:ReluMLP"] * 2 + ["--weights", files[0], "--weights", files[1]]
    code, out, err = run("compare", *args, "--rows", 100, "--steps", 2, "--out", tmp_path / "out")
    assert code == 0, err
    report = Report.load(tmp_path / "out" / "report.json")
    (model,) = report.models
    apart = {r.variant: r.value for r in model.readings if r.site == "(model)"
             and r.gauge == "displacement"}  # fmt: skip
    assert apart["relative"] == pytest.approx(0.1, rel=1e-5)
    assert "0.100 of their own norm apart" in out
    assert "Barrier of the loss: 0.000" in out
    assert (tmp_path / "out" / "report.html").is_file()
    code, out, err = run("diff", *[tmp_path / "out" / "report.json"] * 2)
    assert code == 0, err
    err = assert_one_line(run("compare", *args[:2], "--weights", files[0]))
    assert "once for each" in err


def test_models_that_cannot_be_compared_are_one_line(run):
    err = assert_one_line(run("compare", "demo:mlp", "demo:linear"))
    assert "20 of their tensors differ" in err
    assert "and 10 more" in err
