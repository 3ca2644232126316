"""Free memory: RAM, and what the control groups of both versions leave of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmi.toolkit.compute import memory
from tmi.toolkit.compute.memory import available_memory

MIB = 2**20
GROUP_SOURCE = "limit of the control group"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 1,000 MiB of free RAM, whose /proc and /sys/fs/cgroup are folders of the test."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc" / "meminfo", f"MemTotal: {4000 * 1024} kB\nMemAvailable:   {1000 * 1024} kB\n")
    return tmp_path


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n", encoding="ascii")


def group(folder: Path, *, limit: object, used: int, cache: int = 0, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "") if version == 2 else (
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")  # fmt: skip
    write(folder / names[0], limit)
    write(folder / names[1], used * MIB)
    write(folder / "memory.stat", f"anon 1\n{names[2]}inactive_file {cache * MIB}")


def free() -> tuple[int, str]:
    found = available_memory()
    assert found is not None
    return found.size // MIB, found.source


def test_ram_counts_without_groups(system):
    """Without a control group the kernel's estimate of free RAM counts."""
    assert free() == (1000, "RAM")


def test_group_of_version_2_limits(system):
    """`memory.max` less the group's usage, whose dropped page cache counts as free."""
    write(system / "proc/self/cgroup", "0::/jobs/7")
    group(system / "cgroup/jobs/7", limit=600 * MIB, used=300, cache=100)
    assert free() == (400, GROUP_SOURCE)


def test_group_of_version_1_limits(system):
    """`memory.limit_in_bytes` of the group that controls memory."""
    write(system / "proc/self/cgroup", "4:cpu,memory:/jobs/7\n3:cpuset:/other\n0::/")
    group(system / "cgroup/memory/jobs/7", limit=500 * MIB, used=450, cache=50, version=1)
    assert free() == (100, GROUP_SOURCE)


@pytest.mark.parametrize("version", [1, 2])
def test_limit_of_a_parent_group_counts(system, version):
    """A group without a limit of its own is limited by its parent."""
    write(system / "proc/self/cgroup", "0::/jobs/7" if version == 2 else "4:memory:/jobs/7")
    root = system / ("cgroup" if version == 2 else "cgroup/memory")
    group(root / "jobs/7", limit="max" if version == 2 else 2**63 - 4096, used=10, version=version)
    group(root / "jobs", limit=300 * MIB, used=100, version=version)
    assert free() == (200, GROUP_SOURCE)


@pytest.mark.parametrize("version", [1, 2])
def test_group_of_a_container_is_mounted_as_root(system, version):
    """In a container the group's name is that of the host, and its files lie at the root."""
    write(system / "proc/self/cgroup", "0::/docker/abc" if version == 2 else "4:memory:/docker/abc")
    group(system / ("cgroup" if version == 2 else "cgroup/memory"), limit=200 * MIB, used=50, version=version)
    assert free() == (150, GROUP_SOURCE)


def test_hybrid_mount_is_read(system):
    """Version 2 beside version 1 is mounted at `unified`."""
    write(system / "proc/self/cgroup", "0::/a")
    group(system / "cgroup/unified/a", limit=100 * MIB, used=0)
    assert free() == (100, GROUP_SOURCE)


@pytest.mark.parametrize("limit", ["max", "", "-", 2**63 - 4096])
def test_group_without_a_limit_leaves_the_ram(system, limit):
    """No limit, and a file that cannot be read as one."""
    write(system / "proc/self/cgroup", "0::/a\nnonsense\n4:memory")
    group(system / "cgroup/a", limit=limit, used=10)
    assert free() == (1000, "RAM")


def test_exhausted_group_leaves_nothing(system):
    """A usage above the limit is no negative amount."""
    write(system / "proc/self/cgroup", "0::/a")
    group(system / "cgroup/a", limit=10 * MIB, used=20)
    assert free() == (0, GROUP_SOURCE)


def test_machine_without_proc_has_its_ram(system, monkeypatch):
    """Where there is no /proc, the machine's RAM counts; where nothing is known, None is returned."""
    (system / "proc/meminfo").unlink()
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 512, "SC_PAGE_SIZE": MIB}[name])
    assert free() == (512, "RAM")

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert available_memory() is None
