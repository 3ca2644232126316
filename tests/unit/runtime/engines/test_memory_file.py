"""The anonymous file that a library opens in place of a bundle's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tmi.runtime.engines.memory_file import memory_file


def test_memory_file_holds_the_bytes_and_cannot_be_changed():
    """The file holds what was read, and no descriptor can write to it, shorten it or grow it."""
    with memory_file(lambda: b"graph") as source:
        assert isinstance(source, str)
        assert Path(source).read_bytes() == b"graph"
        with pytest.raises(PermissionError):
            os.truncate(source, 2)
        with open(source, "r+b", buffering=0) as stream, pytest.raises(PermissionError):
            stream.write(b"x")
    assert not Path(source).exists()


def test_system_without_memory_files_passes_the_bytes(monkeypatch):
    """Without anonymous files the library gets the bytes themselves."""
    monkeypatch.delattr(os, "memfd_create")
    with memory_file(lambda: b"graph") as source:
        assert source == b"graph"


def test_failed_reading_leaves_no_descriptor():
    """An error while reading closes the anonymous file."""

    def read() -> bytes:
        raise ValueError("changed")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="changed"), memory_file(read):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
