"""The commit-msg hook: the subject has at most 72 characters, and an empty line follows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from factories.paths import ROOT

SCRIPT = ROOT / ".ci" / "check_subject.py"


def check(tmp_path: Path, message: str) -> tuple[int, str]:
    file = tmp_path / "COMMIT_EDITMSG"
    file.write_text(message, encoding="utf-8")
    process = subprocess.run([sys.executable, SCRIPT, file], capture_output=True, text=True, check=False)
    return process.returncode, process.stderr


@pytest.mark.parametrize(
    "message",
    [
        "x" * 72,
        "Reject a mask on another grid\n\nIt was resampled silently.\n",
        "# a comment of git\nReject a mask\n# another\n",
        "\n\nReject a mask\n",
        f"Reject a mask\n\n# ------------------------ >8 ------------------------\n{'+' * 200}\n",
        f'Revert "{"x" * 72}"\n\nThis reverts commit 0123456.\n',
        f"fixup! {'x' * 72}",
    ],
)
def test_valid_messages_pass(tmp_path, message):
    """Comments of git, leading empty lines, reverts and fixups are accepted."""
    assert check(tmp_path, message) == (0, "")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("x" * 73, "the subject has 73 characters, at most 72 are allowed"),
        ("Reject a mask.", "the subject ends with a full stop"),
        ("Reject a mask\nIt was resampled.", "an empty line must follow the subject"),
        ("# only a comment\n", "the message is empty"),
    ],
)
def test_invalid_messages_fail_with_reason_and_fix(tmp_path, message, problem):
    """The hook ends with 1 and prints what is wrong and how to fix it."""
    code, printed = check(tmp_path, message)
    assert code == 1
    assert f"error: {problem}" in printed
    assert "fix: write what changed in at most 72 characters" in printed


def test_hooks_use_local_tools_only():
    """Every hook is local and runs a program of .venv, the same one as `make lint`."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)
    assert {hook["entry"].split()[0].rpartition("/")[2] for hook in hooks} >= {"ruff", "mypy", "lint-imports"}
