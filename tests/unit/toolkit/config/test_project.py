"""Defaults of a project folder, and the validation of tmi.toml."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from tmi.toolkit.config.project import Project, default_bundle, load_project, new_run_folder, newest_finished_run
from tmi.toolkit.errors import UsageError

TODAY = datetime.date(2026, 1, 31)


class FixedDate(datetime.date):
    @classmethod
    def today(cls) -> datetime.date:
        return TODAY


def write_run(runs: Path, name: str, content: object) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_defaults_without_project_file(tmp_path):
    """Without tmi.toml the documented defaults apply."""
    project = load_project(tmp_path)
    assert project == Project(root=tmp_path)
    paths = [project.path(name).relative_to(tmp_path).as_posix() for name in ("cohort", "runs", "bundle")]
    assert paths == ["cohort", "runs", "bundle"]
    assert (project.preset, project.engine, project.from_file) == ("paper", "onnx", frozenset())


def test_default_path_is_relative_to_working_directory(monkeypatch, tmp_path):
    """A default in the working directory is printed without a prefix."""
    monkeypatch.chdir(tmp_path)
    assert str(load_project().path("cohort")) == "cohort"


def test_project_file_overrides_defaults(tmp_path):
    """tmi.toml overrides the settings that it names; its paths are relative to its folder."""
    (tmp_path / "tmi.toml").write_text('cohort = "data/c1"\nbundle = "/srv/bundle"\npreset = "tiny"\n')
    project = load_project(tmp_path)
    assert project.path("cohort") == tmp_path / "data" / "c1"
    assert project.path("bundle") == Path("/srv/bundle")
    assert project.path("runs") == tmp_path / "runs"
    assert (project.preset, project.engine) == ("tiny", "onnx")
    assert project.from_file == {"cohort", "bundle", "preset"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('colour = "red"', "colour = 'red' is not a valid setting"),
        ("preset = 3", "preset = 3 is not a valid setting"),
        ('bundle = ""', "bundle = '' is not a valid setting"),
        ('[cohort]\npath = "x"', "cohort = {'path': 'x'} is not a valid setting"),
        ('root = "/"', "root = '/' is not a valid setting"),
        ('from_file = "x"', "from_file = 'x' is not a valid setting"),
        ('require_signature = "true"', "require_signature = 'true' is not a valid setting"),
        ("require_signature = 1", "require_signature = 1 is not a valid setting"),
        ('trusted_keys = "a.pem"', "trusted_keys = 'a.pem' is not a valid setting"),
        ("trusted_keys = []", "trusted_keys = [] is not a valid setting"),
        ('trusted_keys = ["a.pem", 3]', "trusted_keys = ['a.pem', 3] is not a valid setting"),
        ("preset = tiny", "Invalid value"),
        ('preset = "tiny"\npreset = "paper"', "Cannot overwrite a value"),
    ],
)
def test_invalid_project_file_is_a_usage_error(tmp_path, text, message):
    """Unknown keys, values of another type, and invalid TOML are usage errors: no policy is silently off."""
    (tmp_path / "tmi.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        load_project(tmp_path)
    assert "tmi.toml: " in str(error.value)
    assert message in str(error.value)
    assert error.value.fix


def test_project_file_in_other_encoding(tmp_path):
    """A file that is not UTF-8 is a usage error."""
    (tmp_path / "tmi.toml").write_bytes(b'preset = "\xff"')
    with pytest.raises(UsageError, match=r"tmi\.toml: "):
        load_project(tmp_path)


def test_default_bundle_precedence(tmp_path, monkeypatch):
    """TMI_BUNDLE precedes tmi.toml, which precedes the default; an empty variable is ignored."""
    monkeypatch.delenv("TMI_BUNDLE", raising=False)
    assert default_bundle(load_project(tmp_path)) == (tmp_path / "bundle", "the default")
    (tmp_path / "tmi.toml").write_text('bundle = "b2"')
    assert default_bundle(load_project(tmp_path)) == (tmp_path / "b2", "from tmi.toml")
    monkeypatch.setenv("TMI_BUNDLE", "/srv/b3")
    assert default_bundle(load_project(tmp_path)) == (Path("/srv/b3"), "from TMI_BUNDLE")
    monkeypatch.setenv("TMI_BUNDLE", "")
    assert default_bundle(load_project(tmp_path)) == (tmp_path / "b2", "from tmi.toml")


def test_new_run_folder_has_date_and_unique_name(tmp_path, monkeypatch):
    """A run folder is named by date and name, with a counter if it exists."""
    monkeypatch.setattr(datetime, "date", FixedDate)
    project = Project(root=tmp_path)
    folders = []
    for _ in range(3):
        folders.append(new_run_folder(project, "tiny"))
        folders[-1].mkdir(parents=True)
    assert [p.name for p in folders] == ["2026-01-31-tiny", "2026-01-31-tiny-2", "2026-01-31-tiny-3"]
    assert {p.parent for p in folders} == {tmp_path / "runs"}


@pytest.mark.parametrize("name", ["", "a/b", "../x", "/x", "a/"])
def test_run_name_must_not_be_a_path(tmp_path, name):
    """An empty name and a name with slashes are usage errors."""
    with pytest.raises(UsageError, match="is not a plain name"):
        new_run_folder(Project(root=tmp_path), name)


def test_newest_finished_run_by_end_time(tmp_path):
    """The run with the latest end time is selected; unfinished and damaged runs are skipped."""
    runs = tmp_path / "runs"
    write_run(runs, "z-old", {"status": "finished", "finished_at": "2026-01-01T10:00:00.000000+00:00"})
    newest = write_run(runs, "a-new", {"status": "finished", "finished_at": "2026-01-01T10:00:00.000001+00:00"})
    write_run(runs, "z-running", {"status": "running", "started_at": "2026-02-01T00:00:00+00:00"})
    write_run(runs, "z-damaged", '{"status": "finished", "finished_at": "2027')
    write_run(runs, "z-list", [])
    write_run(runs, "z-undated", {"status": "finished"})
    (runs / "z-empty").mkdir()
    (runs / "run.json").write_text('{"status": "finished", "finished_at": "2028"}')
    assert newest_finished_run(Project(root=tmp_path)) == newest


def test_no_finished_run_is_a_usage_error(tmp_path):
    """Without a finished run the error names `tmi train`."""
    write_run(tmp_path / "runs", "x", {"status": "running"})
    with pytest.raises(UsageError, match="no finished run in") as error:
        newest_finished_run(Project(root=tmp_path))
    assert "tmi train" in error.value.fix
    with pytest.raises(UsageError, match="no finished run in"):
        newest_finished_run(Project(root=tmp_path / "nowhere"))
