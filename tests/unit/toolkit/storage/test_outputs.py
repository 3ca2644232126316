"""Outputs are locked while they are written, and only what a killed owner left is removed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tmi.toolkit.errors import ExitCode, UnavailableError, UsageError
from tmi.toolkit.storage import file_lock, outputs
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder
from tmi.toolkit.storage.outputs import LOCK_FILE, output_lock, require_place, short_name

HOLD = """
import sys, time
from pathlib import Path
from tmi.toolkit.storage.atomic_files import staged_folder
with staged_folder(Path(sys.argv[1])) as stage:
    (stage / "case-of-seed-1").write_text("half")
    print("open", flush=True)
    time.sleep(60)
"""
needs_locks = pytest.mark.skipif(file_lock.fcntl is None, reason="file locks need POSIX")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@contextmanager
def writing(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@needs_locks
def test_second_process_ends_at_once(tmp_path):
    """The message names the output and its owner; the first process is not disturbed."""
    target = tmp_path / "bundle"
    with writing(target) as process:
        start = time.monotonic()
        with (
            pytest.raises(
                UsageError, match=rf"bundle {target} is being written by .*process {process.pid} on "
            ) as error,
            output_lock(target, kind="bundle"),
        ):
            pass
        assert time.monotonic() - start < 2
        assert error.value.exit_code == ExitCode.USAGE
        (stage,) = [p for p in tmp_path.iterdir() if p.name.endswith(".part")]
        assert names(stage) == ["case-of-seed-1"]


@needs_locks
def test_leftovers_of_a_killed_process_are_removed_and_never_adopted(tmp_path):
    """After a kill the next process starts with an empty folder of its own."""
    target = tmp_path / "cohort"
    with writing(target) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(tmp_path)) == 2  # the lock file and the staged folder
    (stranger := tmp_path / f".{target.name}.other-1-2.part").mkdir()
    with staged_folder(target) as stage:
        assert names(stage) == []
        assert str(os.getpid()) in stage.name
    assert names(tmp_path) == sorted([stranger.name, "cohort"])


def test_lock_is_shared_by_nested_blocks_of_a_thread_alone(tmp_path):
    """A staged folder takes the lock that its caller holds; another thread is rejected."""
    target, errors = tmp_path / "out", []

    def other() -> None:
        try:
            with output_lock(target):
                pass
        except UsageError as error:
            errors.append(error)

    with output_lock(target):
        with staged_folder(target) as stage:
            (stage / "x").write_text("")
        assert names(tmp_path) == [".out.lock", "out"]
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert names(tmp_path) == ["out"]
    other()
    assert len(errors) == 1


def test_lock_file_does_not_count_as_an_output(tmp_path):
    """`require_absent` ignores a lock file inside the folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK_FILE).write_text("")
    require_absent(tmp_path / "out", force=False, kind="run")


def failing_open(monkeypatch: pytest.MonkeyPatch, number: int, *, only: Path | None = None) -> None:
    """Let `os.open` raise for files to be created."""
    original = os.open

    def fail(path, flags, *more, **options):
        if flags & os.O_CREAT and (only is None or Path(path).parent == only):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.EROFS, UsageError, ExitCode.USAGE),
        (errno.EACCES, UsageError, ExitCode.USAGE),
        (errno.ENOSPC, UnavailableError, ExitCode.UNAVAILABLE),
        (errno.EDQUOT, UnavailableError, ExitCode.UNAVAILABLE),
    ],
)
def test_unwritable_place_is_reported_before_the_work(tmp_path, monkeypatch, number, kind, code):
    """Read-only places are wrong usage, full ones are missing hardware; the message names the output."""
    failing_open(monkeypatch, number)
    with pytest.raises(kind, match=rf"report {tmp_path / 'out'} cannot be written: ") as error:
        enter(tmp_path / "out", kind="report")
    assert error.value.exit_code == code
    assert error.value.fix


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/null", "/proc/self/fd/1", "pipe", "link"])
@pytest.mark.parametrize("check", [require_absent, require_place])
def test_pipe_and_device_are_no_outputs(tmp_path, monkeypatch, name, check):
    """An output is renamed to its place, so a device would be replaced; `--force` does not allow it either."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("link").symlink_to("/dev/null")
    forced = {"force": True} if check is require_absent else {}
    with pytest.raises(UsageError, match=rf"^report {name} is ") as error:
        check(Path(name), kind="report", **forced)
    assert "--json" in error.value.fix
    with pytest.raises(UsageError, match=rf"^report {name} is "):
        enter(Path(name), kind="report")


def test_ordinary_places_are_accepted(tmp_path, monkeypatch):
    """A new file, an existing one, a folder and shared memory are places for an output; nothing is created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for place in (Path("new"), Path("a/b/c"), Path("file"), tmp_path, Path("./-x"), Path("/dev/shm/out")):
        require_place(place, kind="report")
    assert sorted(tmp_path.rglob("*")) == before


def test_unwritable_folder_is_found_without_writing(tmp_path, monkeypatch):
    """The nearest existing folder must be writable, or an existing output itself."""
    (tmp_path / "mounted").mkdir()
    denied = {tmp_path}
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in denied)
    for target in (tmp_path / "out", tmp_path / "a" / "b"):
        with pytest.raises(UsageError, match=rf"^report {target} cannot be written: Permission denied$"):
            require_place(target, kind="report")
    require_place(tmp_path / "mounted", kind="report")
    denied.add(tmp_path / "mounted")
    with pytest.raises(UsageError, match="cannot be written"):
        require_absent(tmp_path / "mounted", force=False, kind="report")


def enter(target: Path, **options: str) -> None:
    with output_lock(target, **options):
        raise AssertionError("the work began")


def test_full_disk_is_found_by_the_probe(tmp_path, monkeypatch):
    """A disk on which a file can be made but not filled is full; no lock file stays."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", full)
    with pytest.raises(UnavailableError, match="No space left"):
        enter(tmp_path / "out")


def test_mounted_volume_is_locked_inside(tmp_path, monkeypatch):
    """If only the folder itself can be written, the lock file lies in it."""
    (tmp_path / "out").mkdir()
    failing_open(monkeypatch, errno.EROFS, only=tmp_path)
    with output_lock(tmp_path / "out"):
        assert names(tmp_path / "out") == [LOCK_FILE]
    assert names(tmp_path / "out") == []


def test_live_owner_counts_without_lock_support(tmp_path, monkeypatch):
    """On a file system without locks the owner that the lock file records is asked for; a dead one is not."""
    monkeypatch.setattr(file_lock, "fcntl", None)
    target = tmp_path / "out"
    owner = {"pid": os.getppid(), "host": outputs.this_owner().host, "since": "now"}
    start = outputs._start_of(os.getppid())
    (tmp_path / ".out.lock").write_text(json.dumps({**owner, "start": start}))
    if start:
        with pytest.raises(UsageError, match=f"process {os.getppid()} on"):
            enter(target)
    (tmp_path / ".out.lock").write_text(json.dumps({**owner, "start": "1"}))
    with output_lock(target):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"pid": 1}', b'{"pid":1,"host":1,"start":1,"since":1}'])
def test_lock_file_of_another_program_is_taken(tmp_path, content):
    """What a lock file holds besides an owner is ignored, and nothing outside the output is removed for it."""
    (tmp_path / ".out.lock").write_bytes(content)
    with output_lock(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_owner_cannot_name_another_folder(tmp_path):
    """An edited lock file removes no folder but a staged one of its output."""
    (tmp_path / "precious.part").mkdir()
    owner = {"pid": 1, "host": "x/../../precious", "start": "", "since": ""}
    (tmp_path / ".out.lock").write_text(json.dumps(owner))
    with output_lock(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["precious.part"]


def test_long_names_are_shortened(tmp_path):
    """A name of the greatest length leaves room for the suffixes, and different names stay different."""
    long = "x" * 254
    with staged_folder(tmp_path / long) as stage:
        (stage / "y").write_text("")
    assert names(tmp_path) == [long]
    assert short_name(long) != short_name(long + "y")
    assert len(os.fsencode(short_name("ä" * 127))) < 120
