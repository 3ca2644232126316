"""What bare commands assume in a project folder, and what tmi.toml may say."""

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


def test_without_a_file_the_documented_defaults_hold(tmp_path):
    project = load_project(tmp_path)
    assert project == Project(root=tmp_path)
    paths = [project.path(name).relative_to(tmp_path).as_posix() for name in ("cohort", "runs", "bundle")]
    assert paths == ["cohort", "runs", "bundle"]
    assert (project.preset, project.engine, project.from_file) == ("paper", "onnx", frozenset())


def test_a_path_in_the_working_folder_is_printed_as_it_would_be_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(load_project().path("cohort")) == "cohort"


def test_a_file_sets_what_it_names_and_paths_start_from_its_folder(tmp_path):
    (tmp_path / "tmi.toml").write_text('cohort = "data/c1"\nbundle = "/srv/bundle"\npreset = "tiny"\n')
    project = load_project(tmp_path)
    assert project.path("cohort") == tmp_path / "data" / "c1"
    assert project.path("bundle") == Path("/srv/bundle")
    assert project.path("runs") == tmp_path / "runs"
    assert (project.preset, project.engine) == ("tiny", "onnx")
    assert project.from_file == {"cohort", "bundle", "preset"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('colour = "red"', "colour = 'red' is not known here"),
        ("preset = 3", "preset = 3 is not known here"),
        ('bundle = ""', "bundle = '' is not known here"),
        ('[cohort]\npath = "x"', "cohort = {'path': 'x'} is not known here"),
        ('root = "/"', "root = '/' is not known here"),
        ('from_file = "x"', "from_file = 'x' is not known here"),
        ("preset = tiny", "Invalid value"),
        ('preset = "tiny"\npreset = "paper"', "Cannot overwrite a value"),
    ],
)
def test_a_file_that_says_anything_else_is_refused(tmp_path, text, told):
    (tmp_path / "tmi.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        load_project(tmp_path)
    assert "tmi.toml: " in str(error.value)
    assert told in str(error.value)
    assert error.value.fix


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "tmi.toml").write_bytes(b'preset = "\xff"')
    with pytest.raises(UsageError, match=r"tmi\.toml: "):
        load_project(tmp_path)


def test_the_bundle_comes_from_the_variable_else_the_file_else_the_default(tmp_path, monkeypatch):
    monkeypatch.delenv("TMI_BUNDLE", raising=False)
    assert default_bundle(load_project(tmp_path)) == (tmp_path / "bundle", "the default")
    (tmp_path / "tmi.toml").write_text('bundle = "b2"')
    assert default_bundle(load_project(tmp_path)) == (tmp_path / "b2", "from tmi.toml")
    monkeypatch.setenv("TMI_BUNDLE", "/srv/b3")
    assert default_bundle(load_project(tmp_path)) == (Path("/srv/b3"), "from TMI_BUNDLE")
    monkeypatch.setenv("TMI_BUNDLE", "")
    assert default_bundle(load_project(tmp_path)) == (tmp_path / "b2", "from tmi.toml")


def test_a_new_run_is_named_by_date_and_never_takes_a_name_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(datetime, "date", FixedDate)
    project = Project(root=tmp_path)
    taken = []
    for _ in range(3):
        taken.append(new_run_folder(project, "tiny"))
        taken[-1].mkdir(parents=True)
    assert [p.name for p in taken] == ["2026-01-31-tiny", "2026-01-31-tiny-2", "2026-01-31-tiny-3"]
    assert {p.parent for p in taken} == {tmp_path / "runs"}


@pytest.mark.parametrize("name", ["", "a/b", "../x", "/x", "a/"])
def test_a_run_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="is no plain name"):
        new_run_folder(Project(root=tmp_path), name)


def test_the_newest_finished_run_is_the_one_finished_last_whatever_its_name(tmp_path):
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


def test_without_a_finished_run_one_is_told_how_to_get_one(tmp_path):
    write_run(tmp_path / "runs", "x", {"status": "running"})
    with pytest.raises(UsageError, match="no finished run in") as error:
        newest_finished_run(Project(root=tmp_path))
    assert "tmi train" in error.value.fix
    with pytest.raises(UsageError, match="no finished run in"):
        newest_finished_run(Project(root=tmp_path / "nowhere"))
