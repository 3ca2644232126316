"""Defaults of `tmi train`, `tmi export` and `tmi predict` in a project folder, and the optional `tmi.toml`.

All keys of ``tmi.toml`` are optional; paths are relative to its folder::

    cohort = "./cohort"
    runs = "./runs"
    bundle = "./bundle"
    preset = "paper"
    engine = "onnx"          # engine that `tmi export` writes
    schema = "./pbc.json"    # clinical schema of `tmi check` and `tmi train`; default: the packaged liver schema
    require_signature = true             # no command opens a bundle without checking its signature
    trusted_keys = ["signer.pub.pem"]    # public keys of which one must have signed a bundle
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from tmi.toolkit.errors import UsageError
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES, SETTINGS_BYTES, read_bytes
from tmi.toolkit.storage.documents import DocumentError, parse_toml, read_document

PROJECT_FILE = "tmi.toml"
BUNDLE_VARIABLE = "TMI_BUNDLE"
"""Environment variable that overrides the default bundle."""
NOT_STRINGS = frozenset({"require_signature", "trusted_keys"})
"""Settings that are not strings."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """Defaults of a project folder."""

    root: Path
    """Folder that relative paths refer to."""
    cohort: str = "./cohort"
    """Cohort that `tmi train` reads."""
    runs: str = "./runs"
    """Folder that `tmi train` writes runs to."""
    bundle: str = "./bundle"
    """Bundle that `tmi export` writes and `tmi predict` reads."""
    preset: str = "paper"
    """Preset of `tmi train`."""
    engine: str = "onnx"
    """Engine that `tmi export` writes."""
    schema: str | None = None
    """Clinical schema of `tmi check` and `tmi train`; None: the packaged liver schema."""
    require_signature: bool = False
    """Whether a command without a key to check a bundle's signature ends with an error."""
    trusted_keys: tuple[str, ...] = ()
    """Public keys (PEM files), one of which must have signed every bundle that is opened without `--key`."""
    from_file: frozenset[str] = field(default_factory=frozenset)
    """Names of the settings that `tmi.toml` contains."""

    def path(self, name: str) -> Path:
        """Return a path setting, relative to the project folder unless absolute, in the form that a user would type."""
        return self._resolve(getattr(self, name))

    @property
    def schema_file(self) -> Path | None:
        """File of the clinical schema; None if none is set."""
        return None if self.schema is None else self._resolve(self.schema)

    @property
    def trusted_key_files(self) -> tuple[Path, ...]:
        """Files of the trusted keys."""
        return tuple(self._resolve(key) for key in self.trusted_keys)

    def _resolve(self, setting: str) -> Path:
        value = Path(setting)
        return value if value.is_absolute() or self.root == Path() else self.root / value


def load_project(root: Path = Path()) -> Project:
    """Load the project of a folder, with its `tmi.toml` if it exists.

    Raises:
        UsageError: the file is not TOML, or contains an unknown key or a value of another type.
    """
    file = root / PROJECT_FILE
    if not file.exists():
        return Project(root=root)
    try:
        data = parse_toml(read_bytes(file, max_bytes=SETTINGS_BYTES))
    except (OSError, DocumentError) as error:
        reason = error.detail if isinstance(error, DocumentError) else error.strerror
        raise UsageError(f"{file}: {reason}", fix='write it as TOML: name = "value"') from error
    known = {f.name for f in fields(Project)} - {"root", "from_file"}
    for name, value in data.items():
        if name not in known or not _is_valid(name, value):
            raise UsageError(
                f"{file}: {name} = {value!r} is not a valid setting",
                fix=f"set strings for {', '.join(sorted(known - NOT_STRINGS))}; require_signature = true or false; "
                'trusted_keys = ["FILE", ...]',
            )
    if "trusted_keys" in data:
        data["trusted_keys"] = tuple(data["trusted_keys"])
    return Project(root=root, from_file=frozenset(data), **data)


def _is_valid(name: str, value: object) -> bool:
    """Whether a setting has its type; strings are not empty."""
    if name == "require_signature":
        return isinstance(value, bool)
    if name == "trusted_keys":
        return isinstance(value, list) and bool(value) and all(isinstance(key, str) and key for key in value)
    return isinstance(value, str) and bool(value)


def default_bundle(project: Project) -> tuple[Path, str]:
    """Return the default bundle and its origin: `TMI_BUNDLE`, else the setting of the project."""
    variable = os.environ.get(BUNDLE_VARIABLE)
    if variable:
        return Path(variable), f"from {BUNDLE_VARIABLE}"
    return project.path("bundle"), f"from {PROJECT_FILE}" if "bundle" in project.from_file else "the default"


def new_run_folder(project: Project, name: str) -> Path:
    """Return the path `runs/<date>-<name>`, with the suffix `-2`, `-3`, ... if it exists already.

    Raises:
        UsageError: the name is empty or contains a path separator.
    """
    if not name or Path(name).name != name:
        raise UsageError(
            f"run name {name!r} is not a plain name", fix="give a name without slashes, or a folder as --out"
        )
    stem = f"{datetime.date.today().isoformat()}-{name}"
    runs = project.path("runs")
    candidates = [runs / stem, *(runs / f"{stem}-{n}" for n in range(2, 1000))]
    return next(c for c in candidates if not c.exists())


def newest_finished_run(project: Project) -> Path:
    """Return the run folder with status `finished` and the latest end time in its `run.json`.

    Raises:
        UsageError: there is no finished run.
    """
    runs = project.path("runs")
    finished: list[tuple[str, Path]] = []
    for file in sorted(runs.glob("*/run.json")):
        try:
            state = read_document(file, max_bytes=DOCUMENT_BYTES)
        except (OSError, ValueError):
            continue  # a damaged or incomplete file: opening the run by name reports the error
        if isinstance(state, dict) and state.get("status") == "finished":
            finished.append((str(state.get("finished_at", "")), file.parent))
    if not finished:
        raise UsageError(f"no finished run in {runs}", fix="train one with `tmi train`, or name a run folder")
    return max(finished)[1]
