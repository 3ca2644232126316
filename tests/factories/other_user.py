"""Acting as another user of the machine, for tests of files that users share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER_UID = 65534
"""A user without rights (`nobody`)."""


@contextmanager
def as_other_user() -> Iterator[None]:
    """Run the block as another user; skips the test if this process may not change its user."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    os.setegid(OTHER_UID)
    os.seteuid(OTHER_UID)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder in which every user can write, below one that every user can enter."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o777)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Run the block with another umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
