"""What bare `tmi train`, `tmi export` and `tmi predict` assume in a project folder, and the optional `tmi.toml`.

``tmi.toml`` may set, each optional and relative to its own folder::

    cohort = "./cohort"
    runs = "./runs"
    bundle = "./bundle"
    preset = "paper"
    engine = "onnx"          # what `tmi export` writes
    schema = "./pbc.json"    # clinical schema of `tmi check` and `tmi train`; else the packaged one of the liver
"""

from __future__ import annotations

import datetime
import json
import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from tmi.toolkit.errors import UsageError

PROJECT_FILE = "tmi.toml"
BUNDLE_VARIABLE = "TMI_BUNDLE"


@dataclass(frozen=True, kw_only=True)
class Project:
    """Defaults of a project folder."""

    root: Path
    """The folder that relative defaults start from."""
    cohort: str = "./cohort"
    """Cohort that `tmi train` reads."""
    runs: str = "./runs"
    """Folder that runs are written to."""
    bundle: str = "./bundle"
    """Bundle that `tmi export` writes and `tmi predict` reads."""
    preset: str = "paper"
    """Preset of `tmi train`."""
    engine: str = "onnx"
    """What `tmi export` writes."""
    schema: str | None = None
    """Clinical schema of `tmi check` and `tmi train`; None: the packaged one."""
    from_file: frozenset[str] = field(default_factory=frozenset)
    """Names of the settings that `tmi.toml` gave."""

    def path(self, name: str) -> Path:
        """A path setting, relative to the project folder unless absolute; printed as the user would type it."""
        return self._placed(getattr(self, name))

    @property
    def schema_file(self) -> Path | None:
        """The clinical schema's file, where one is set."""
        return None if self.schema is None else self._placed(self.schema)

    def _placed(self, setting: str) -> Path:
        value = Path(setting)
        return value if value.is_absolute() or self.root == Path() else self.root / value


def load_project(root: Path = Path()) -> Project:
    """The project in `root`, with its `tmi.toml` where there is one.

    Raises:
        UsageError: the file is not TOML, or sets something unknown.
    """
    file = root / PROJECT_FILE
    if not file.is_file():
        return Project(root=root)
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: {error}", fix='write it as TOML: name = "value"') from error
    known = {f.name for f in fields(Project)} - {"root", "from_file"}
    for name, value in data.items():
        if name not in known or not isinstance(value, str) or not value:
            raise UsageError(
                f"{file}: {name} = {value!r} is not known here", fix=f"set strings for {', '.join(sorted(known))}"
            )
    return Project(root=root, from_file=frozenset(data), **data)


def default_bundle(project: Project) -> tuple[Path, str]:
    """The bundle to predict with, and why: `TMI_BUNDLE`, else the project's."""
    named = os.environ.get(BUNDLE_VARIABLE)
    if named:
        return Path(named), f"from {BUNDLE_VARIABLE}"
    return project.path("bundle"), f"from {PROJECT_FILE}" if "bundle" in project.from_file else "the default"


def new_run_folder(project: Project, name: str) -> Path:
    """`runs/<date>-<name>`, with `-2`, `-3` ... appended where it exists already.

    Raises:
        UsageError: the name is empty or no plain name.
    """
    if not name or Path(name).name != name:
        raise UsageError(f"run name {name!r} is no plain name", fix="give a name without slashes, or a folder as --out")
    stem = f"{datetime.date.today().isoformat()}-{name}"
    runs = project.path("runs")
    candidates = [runs / stem, *(runs / f"{stem}-{n}" for n in range(2, 1000))]
    return next(c for c in candidates if not c.exists())


def newest_finished_run(project: Project) -> Path:
    """The run whose `run.json` says finished and was finished last.

    Raises:
        UsageError: there is none.
    """
    runs = project.path("runs")
    finished: list[tuple[str, Path]] = []
    for file in sorted(runs.glob("*/run.json")):
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a run that is being written or is damaged is no candidate; opening it by name says why
        if isinstance(state, dict) and state.get("status") == "finished":
            finished.append((str(state.get("finished_at", "")), file.parent))
    if not finished:
        raise UsageError(f"no finished run in {runs}", fix="train one with `tmi train`, or name a run folder")
    return max(finished)[1]
