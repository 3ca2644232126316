"""`tmi train --force` replaces a run, also one that this version cannot read, and nothing that is no run."""

from __future__ import annotations

import pytest

from tmi.toolkit.errors import UsageError
from tmi.training.cli.train import _replace


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"schema": "tmi-run/0"}'])
def test_a_run_of_another_version_or_a_damaged_one_is_replaced(tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(content)
    _replace(run)
    assert not run.exists()


def test_a_folder_that_is_no_run_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no run; --force replaces runs only"):
        _replace(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()
