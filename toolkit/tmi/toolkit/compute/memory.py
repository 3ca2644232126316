"""Memory that this process can still take: the machine's, or what its control groups leave of it.

A container and a batch queue limit the memory of a process by a Linux control group. The kernel kills a process that
exceeds the limit, whatever the machine has left. Version 2 (`memory.max`) and version 1 (`memory.limit_in_bytes`) of
control groups are read, and the limits of all parent groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tmi.toolkit.errors import UnavailableError

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class AvailableMemory:
    """Memory that can still be taken."""

    size: int
    """Bytes."""
    source: str
    """What limits it: `RAM`, `limit of the control group`, or a GPU."""


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Names in the files of one version of control groups."""

    limit: str
    usage: str
    cache: str
    """Line of `memory.stat` with the page cache that the kernel drops before it kills a process."""


_VERSION_1 = _Version(limit="memory.limit_in_bytes", usage="memory.usage_in_bytes", cache="total_inactive_file")
_VERSION_2 = _Version(limit="memory.max", usage="memory.current", cache="inactive_file")


def available_memory() -> AvailableMemory | None:
    """Return the smallest of the free RAM and what each control group of this process leaves; None if unknown.

    Memory that this process already holds counts as taken. Swap is not counted.
    """
    found = [] if (ram := _free_ram()) is None else [AvailableMemory(size=ram, source="RAM")]
    found += [AvailableMemory(size=size, source="limit of the control group") for size in _control_groups()]
    return min(found, key=lambda one: one.size, default=None)


def require_memory(what: str, needed: int, *, fix: str) -> None:
    """Raise if a task needs more memory than this process holds and can still take. Unknown memory is no reason.

    Args:
        what: the task, as the subject of a sentence: "the export".
        needed: bytes of the whole process.
        fix: what needs less memory.

    Raises:
        UnavailableError: it needs more.
    """
    there = available_memory()
    if there is None:
        return
    available = there.size + _own_memory()
    if needed > available:
        raise UnavailableError(
            f"{what} needs about {format_memory(needed)} of memory, and {format_memory(available)} is available "
            f"({there.source})",
            fix=fix,
        )


def fits(needed: int) -> bool:
    """Whether `require_memory` accepts a need of the whole process in bytes."""
    there = available_memory()
    return there is None or needed <= there.size + _own_memory()


def format_memory(size: int) -> str:
    """Format a number of bytes, for example `4.9 GiB` or `80 MiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"


def _own_memory() -> int:
    """Bytes that this process holds and no other can take; 0 without /proc."""
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "self" / "status").read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _free_ram() -> int | None:
    """Bytes that the kernel expects to give without swapping; without /proc, the machine's RAM."""
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _control_groups() -> Iterator[int]:
    """Bytes left in each limited group of this process, parents included."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            yield from _remaining(CGROUPS, path, _VERSION_2)
            yield from _remaining(CGROUPS / "unified", path, _VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _remaining(CGROUPS / "memory", path, _VERSION_1)


def _remaining(root: Path, path: str, version: _Version) -> Iterator[int]:
    """Bytes left in a group and in its parents up to `root`.

    In a container the group's own folder is often mounted as `root`, while `path` is its name on the host: folders that
    do not exist are skipped.
    """
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(root):
            with suppress(OSError, ValueError):  # `max`, no such folder, or no limit
                limit = int((folder / version.limit).read_text(encoding="ascii"))
                used = int((folder / version.usage).read_text(encoding="ascii"))
                yield max(0, limit - max(0, used - _cache(folder, version)))


def _cache(folder: Path, version: _Version) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{version.cache} "):
                return int(line.split()[1])
    return 0
