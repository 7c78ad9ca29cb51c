"""Files are whole or not there, and on the disk before they are in place."""

import os

import pytest

from secant.engine.files import folder_for, written_whole


def test_a_file_is_on_the_disk_before_it_takes_its_place_and_the_place_after(tmp_path, monkeypatch):
    path, calls = tmp_path / "x.json", []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor):
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        fsync(descriptor)

    def move(source, target):
        calls.append(("move", str(source), path.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    with written_whole(path) as part:
        part.write_text("whole")
    assert calls == [
        ("sync", f"{path}.part", False),
        ("move", f"{path}.part", False),
        ("sync", str(tmp_path), True),
    ]
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]
    assert path.read_text() == "whole"


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")

    def half(part):
        part.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), written_whole(path) as part:
        half(part)
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]
    assert path.read_text() == "old"


def fail(folder):
    with folder_for(folder):
        assert folder.is_dir()
        raise KeyboardInterrupt


def test_folders_that_were_made_go_with_an_error_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "there" / "a" / "b")
    assert [one.name for one in tmp_path.rglob("*")] == ["there"]
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "there")
    assert [one.name for one in tmp_path.rglob("*")] == ["there"]
    with folder_for(tmp_path / "there" / "a"):
        pass
    assert (tmp_path / "there" / "a").is_dir()


def test_a_folder_that_holds_something_stays(tmp_path):
    def kept():
        with folder_for(tmp_path / "a" / "b"):
            (tmp_path / "a" / "b" / "state").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept()
    assert (tmp_path / "a" / "b" / "state").is_file()
