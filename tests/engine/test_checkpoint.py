"""What is kept comes back to the last bit; what does not belong is refused."""

import math

import pytest
import torch

from secant.engine.checkpoint import open_checkpoint
from secant.errors import InputError, StateError

PLAN = {"seed": 0, "models": ["a"], "versions": {"torch": "x"}}


def test_sums_come_back_to_the_last_bit(tmp_path):
    folder = tmp_path / "states"
    kept = open_checkpoint(folder, PLAN, resume=False)
    assert kept.sums("pass") is None
    assert kept.found("pass") is None
    sums = {"a": torch.randn(3, 4, dtype=torch.float64).T, "b": torch.tensor(math.pi).double()}
    kept.save_sums("pass", sums, {"batch": 3})
    kept.save_found("part", {"value": 0.1 + 0.2, "none": None})
    again = open_checkpoint(folder, PLAN, resume=True)
    found, progress = again.sums("pass")
    assert progress == {"batch": 3}
    assert set(found) == set(sums)
    assert all(torch.equal(found[name], sums[name]) for name in sums)
    assert again.found("part") == {"value": 0.1 + 0.2, "none": None}
    again.drop()
    assert not folder.exists()


def test_a_new_run_starts_empty(tmp_path):
    kept = open_checkpoint(tmp_path / "states", PLAN, resume=False)
    kept.save_found("part", 1)
    assert open_checkpoint(tmp_path / "states", PLAN, resume=False).found("part") is None


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        open_checkpoint(tmp_path / "states", PLAN, resume=True)


def test_another_plan_is_refused_by_name(tmp_path):
    open_checkpoint(tmp_path / "states", PLAN, resume=False)
    with pytest.raises(InputError, match=r"differs from this one in seed\."):
        open_checkpoint(tmp_path / "states", PLAN | {"seed": 1}, resume=True)


@pytest.mark.parametrize("name", ["plan.json", "part.json", "pass.safetensors"])
def test_a_spoiled_file_is_refused(tmp_path, name):
    kept = open_checkpoint(tmp_path / "states", PLAN, resume=False)
    (tmp_path / "states" / name).write_bytes(b"{")

    def read():
        open_checkpoint(tmp_path / "states", PLAN, resume=True)
        kept.found("part")
        kept.sums("pass")

    with pytest.raises(StateError, match="Start anew"):
        read()


def test_other_weights_are_refused(tmp_path):
    kept = open_checkpoint(tmp_path / "states", PLAN, resume=False)
    kept.check("model", "a")
    kept.check("model", "a")
    with pytest.raises(InputError, match="another fingerprint"):
        kept.check("model", "b")


def test_a_half_written_file_is_not_taken(tmp_path, monkeypatch):
    kept = open_checkpoint(tmp_path / "states", PLAN, resume=False)
    kept.save_found("part", 1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save_found("part", 2)
    assert kept.found("part") == 1


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="left alone"):
        open_checkpoint(tmp_path, PLAN, resume=False)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(InputError, match="left alone"):
            open_checkpoint(tmp_path / name, PLAN, resume=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_put_among_the_states_outlives_them(tmp_path):
    kept = open_checkpoint(tmp_path / "states", PLAN, resume=False)
    kept.save_found("part", 1)
    (tmp_path / "states" / "thesis.txt").write_text("kept")
    kept.drop()
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["thesis.txt"]


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_no_fault_of_the_input(tmp_path, monkeypatch):
    kept = open_checkpoint(tmp_path / "states", PLAN, resume=False)
    monkeypatch.setattr("os.replace", full)
    for save in (
        lambda: kept.save_sums("pass", {"a": torch.zeros(1)}, {}),
        lambda: kept.save_found("part", 1),
    ):
        with pytest.raises(StateError, match=r"No space left.*Make room.*--resume") as caught:
            save()
        assert not isinstance(caught.value, InputError)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["plan.json"]


def test_a_run_that_cannot_keep_even_its_plan_is_not_one_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StateError, match=r"No space left.*another --out") as caught:
        open_checkpoint(tmp_path / "out" / "states", PLAN, resume=False)
    assert "--resume" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_sums_are_kept_until_their_outcome_is(tmp_path, monkeypatch):
    kept = open_checkpoint(tmp_path / "states", PLAN, resume=False)
    kept.save_sums("pass", {"a": torch.zeros(1)}, {"batches": 1})
    kept.save_sums("other", {"a": torch.zeros(1)}, {"batches": 1})
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        with pytest.raises(StateError):
            kept.save_found("pass", 1)
    assert kept.sums("pass") is not None
    kept.save_found("pass", 1)
    assert kept.sums("pass") is None
    assert kept.sums("other") is not None
