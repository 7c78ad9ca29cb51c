"""Free memory is read from the system and its control groups, or not known."""

import pytest

from secant.engine import memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 100 kB left, in no group; writes files below its root."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "TREE", tmp_path / "tree")
    monkeypatch.setattr(memory, "TREE_1", tmp_path / "tree" / "memory")
    write(meminfo="MemTotal:  160 kB\nMemAvailable:    100 kB\n")
    return write


def group(folder, limit, used, cache=0):
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {cache}\n",
    }


def old_group(folder, limit, used, cache=0):
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 3\ntotal_inactive_file {cache}\n",
    }


def test_free_memory_is_what_the_machine_says(system, tmp_path):
    assert memory.free_bytes() == 100 * 1024
    system(meminfo="MemTotal:  16 kB\n")
    assert memory.free_bytes() is None
    (tmp_path / "meminfo").unlink()
    assert memory.free_bytes() is None


def test_the_least_of_machine_and_groups_counts(system):
    """Of a group and those around it, each with what its files' pages would give back."""
    system(own="0::/a/b\n", **group("tree/a/b", 9000, 2000, 500), **group("tree/a", 5000, 100))
    assert memory.free_bytes() == 5000 - 100
    system(**group("tree/a", 50_000, 100))
    assert memory.free_bytes() == 9000 - 2000 + 500
    system(**group("tree/a/b", 10**9, 2000))
    assert memory.free_bytes() == 50_000 - 100
    system(**group("tree/a", 10**9, 100))
    assert memory.free_bytes() == 100 * 1024
    system(**group("tree/a/b", "max", 2000), **group("tree/a", 10, 20))
    assert memory.free_bytes() == 0


@pytest.mark.parametrize("own", ["/", "/../..", "/docker/1234"])
def test_a_container_is_the_root_of_the_tree_that_it_sees(system, own):
    system(own=f"0::{own}\n", **group("tree", 7000, 1000))
    assert memory.free_bytes() == 6000


def test_groups_of_version_1(system):
    own = "12:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n"
    no_limit = 9223372036854771712
    system(
        own=own,
        **old_group("tree/memory/a/b", 8000, 1000, 200),
        **old_group("tree/memory", no_limit, 5000),
    )
    assert memory.free_bytes() == 8000 - 1000 + 200
    system(**old_group("tree/memory/a/b", no_limit, 1000))
    assert memory.free_bytes() == 100 * 1024


def test_a_system_without_meminfo_may_still_have_groups(system, tmp_path):
    system(own="0::/\n", **group("tree", 7000, 1000))
    (tmp_path / "meminfo").unlink()
    assert memory.free_bytes() == 6000
