"""Free memory is read from the system, or not known."""

from secant.engine import memory


def test_free_memory_is_what_the_system_says(tmp_path, monkeypatch):
    listing = tmp_path / "meminfo"
    listing.write_text("MemTotal:  16 kB\nMemAvailable:    7 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", listing)
    assert memory.free_bytes() == 7 * 1024
    listing.write_text("MemTotal:  16 kB\n")
    assert memory.free_bytes() is None
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "nonesuch")
    assert memory.free_bytes() is None
