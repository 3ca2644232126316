"""`tmi train --force` replaces a run, even if this version cannot read it, and no other folder."""

from __future__ import annotations

import pytest

from tmi.toolkit.errors import UsageError
from tmi.training.cli.train import _remove_existing_run


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"schema": "tmi-run/0"}'])
def test_unreadable_run_is_replaced(tmp_path, content):
    """A damaged run and a run of another version are removed."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(content)
    _remove_existing_run(run)
    assert not run.exists()


def test_other_folder_is_not_removed(tmp_path):
    """A folder without run.json is rejected and kept."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not a run; --force replaces runs only"):
        _remove_existing_run(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()
