"""Folders of the user: own variable, XDG variable, home folder, in this order."""

from __future__ import annotations

import os
import sys

import pytest

from tmi.toolkit.storage.user_folders import cache_root, state_root

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the folders of other systems are the choice of platformdirs, which tests them"
)

CASES = {
    "cache": (cache_root, "TMI_CACHE", "XDG_CACHE_HOME", ".cache/tmi"),
    "state": (state_root, "TMI_STATE", "XDG_STATE_HOME", ".local/state/tmi"),
}


@pytest.mark.parametrize("kind", CASES)
def test_folder_follows_the_environment(kind, tmp_path, monkeypatch):
    """The project's variable precedes XDG's, which precedes the home folder; relative XDG paths are ignored."""
    root, own, xdg, at_home = CASES[kind]
    monkeypatch.setenv(own, str(tmp_path / "own"))
    monkeypatch.setenv(xdg, str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert root() == tmp_path / "own"
    monkeypatch.setenv(own, "~/mine")
    assert root() == tmp_path / "home" / "mine"
    monkeypatch.delenv(own)
    assert root() == tmp_path / "xdg" / "tmi"
    for ignored in ("relative", ""):
        monkeypatch.setenv(xdg, ignored)
        assert root() == tmp_path / "home" / at_home
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", CASES)
def test_user_without_home_has_no_folder(kind, monkeypatch):
    """A user without a home folder has none, rather than a folder named `~` in the current one."""
    root, own, xdg, _ = CASES[kind]
    for name in (own, xdg, "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert root() is None


def test_caches_can_be_disabled(monkeypatch):
    """`TMI_CACHE=off`, in any case, disables the caches."""
    monkeypatch.setenv("TMI_CACHE", " OFF ")
    assert cache_root() is None
