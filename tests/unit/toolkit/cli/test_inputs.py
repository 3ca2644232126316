"""Checks of arguments before the work: missing paths, names of outputs, numbers of threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmi.toolkit.cli import inputs
from tmi.toolkit.cli.inputs import limit_to_cores, require_case_paths, require_folder_name, require_paths
from tmi.toolkit.errors import UsageError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "held-out" / "P1").mkdir(parents=True)
    (tmp_path / "held-out" / "P1" / "ct.nii.gz").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_missing_path_is_named_with_what_it_is(folder):
    """The first missing path is wrong usage; the fix names the closest existing one, if there is one."""
    require_paths(("run", Path("held-out")), ("--schema", None), ("--key", []), ("--key", [Path("held-out/P1")]))
    with pytest.raises(UsageError, match=r"^run heldout does not exist$") as error:
        require_paths(("run", Path("heldout")))
    assert error.value.fix == "did you mean held-out?"
    with pytest.raises(UsageError, match=r"^--schema x\.json does not exist$") as error:
        require_paths(("--key", [Path("held-out")]), ("--schema", Path("x.json")))
    assert error.value.fix == "correct the path"


def test_link_to_nowhere_is_named(folder):
    """A symbolic link whose target is missing is named with the target; the link itself is no suggestion."""
    Path("case").symlink_to("moved/P1")
    for check in (lambda: require_paths(("run", Path("case"))), lambda: require_case_paths([Path("case")])):
        with pytest.raises(UsageError, match=r"case is a symbolic link to moved/P1, which does not exist$") as error:
            check()
        assert error.value.fix == "correct the link"


def test_path_that_cannot_be_looked_up_is_left_to_its_reader(folder):
    """A name that is too long is no missing path: opening it reports the reason."""
    require_paths(("run", Path("x" * 300)))
    require_case_paths([Path("x" * 300)])


def test_cases_are_missing_only_if_all_are(folder):
    """One missing case among others is rejected later; a command with nothing to work on is wrong usage."""
    require_case_paths([Path("heldout"), Path("held-out")])
    with pytest.raises(UsageError, match=r"^case or cohort heldout does not exist$"):
        require_case_paths([Path("heldout"), Path("nowhere")])


def test_file_of_a_case_is_not_a_case(folder):
    """The fix names the folder."""
    with pytest.raises(UsageError, match=r"held-out/P1/ct\.nii\.gz is a file") as error:
        require_case_paths([Path("held-out/P1/ct.nii.gz")])
    assert error.value.fix == "give the folder of the case: held-out/P1"


@pytest.mark.parametrize("name", ["page.html", "bundle.zip", "B.ONNX"])
def test_folder_is_not_written_under_the_name_of_a_file(name, folder):
    with pytest.raises(UsageError, match="is a folder, but it is named as a"):
        require_folder_name(Path(name), kind="bundle")


@pytest.mark.parametrize("name", ["page", "run-0.1", "2026.11.28", ".hidden"])
def test_folder_name_with_a_dot_is_accepted(name, folder):
    require_folder_name(Path(name), kind="run")
    (folder / "old.html").mkdir()
    require_folder_name(Path("old.html"), kind="report")  # an earlier version wrote it


@pytest.mark.parametrize(("given", "expected", "noted"), [(None, None, 0), (1, 1, 0), (4, 4, 0), (99, 4, 1)])
def test_threads_are_limited_to_the_cores(given, expected, noted, monkeypatch, capsys):
    """More threads than cores are limited, and the limit is printed."""
    monkeypatch.setattr(inputs, "available_cores", lambda: 4)
    assert limit_to_cores(given, option="--threads") == expected
    assert capsys.readouterr().err.count("--threads 99 is limited to 4") == noted
