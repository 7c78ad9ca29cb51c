"""C files: built where there is a compiler, loaded where they fit, and said where they do not.

Holds: tests of ``secant.engine.native`` and of ``hatch_build.py``.
May import: pytest, ctypes, ``secant.engine``, ``hatch_build.py``.
"""

import ctypes
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from secant.engine.native import Native

ROOT = Path(__file__).parents[2]


@pytest.fixture
def builder():
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_source_becomes_a_library(builder, tmp_path):
    if builder.compiler() is None:
        pytest.skip("no C compiler here")
    assert builder.build(ROOT, tmp_path) is None
    found = builder.sources(ROOT)
    assert Path("src/secant/nn/_scan.c") in found
    for source in found:
        library = ctypes.CDLL(str((tmp_path / source).with_suffix(builder.SUFFIX)))
        assert getattr(library, f"secant{source.stem}_layout")() > 0
    assert builder.wheel_tag().startswith("py3-none-")


def test_no_compiler_is_no_error(builder, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "/nonexistent")
    assert builder.build(ROOT, tmp_path) == "no C compiler (CC is '/nonexistent')"
    monkeypatch.setenv("CC", "false")
    assert builder.build(ROOT, tmp_path) == "false failed: "
    assert not [one for one in tmp_path.rglob("*") if one.is_file()]


def test_a_library_is_loaded_only_if_it_has_its_callers_layout(builder, tmp_path):
    if builder.compiler() is None:
        pytest.skip("no C compiler here")
    folder = tmp_path / "src/secant/some"
    folder.mkdir(parents=True)
    source = folder / "_three.c"
    source.write_text("long long secant_three_layout(void) { return 3; }\n")
    builder.FLAGS.remove("-fvisibility=hidden")
    assert builder.build(tmp_path, tmp_path) is None
    assert Native(source, 3).library().secant_three_layout() == 3
    assert Native(source, 3).absence() is None
    assert Native(source, 4).library() is None
    assert "not for this machine or this version" in Native(source, 4).absence()


def test_what_is_missing_or_no_library_is_told(tmp_path):
    missing, wrong = (Native(tmp_path / f"_{name}.c", 1) for name in ("missing", "wrong"))
    assert "_missing.so is not in the package" in missing.absence().replace(".dll", ".so")
    wrong.file.write_bytes(b"not a library")
    assert "not for this machine" in wrong.absence()
    assert wrong.library() is None
