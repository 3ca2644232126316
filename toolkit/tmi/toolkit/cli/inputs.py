"""Checks of a command's arguments that need no file to be read, so that a mistake is reported at once.

Commands call them before they import a heavy package, create an output or open a bundle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.suggestions import similar_path
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.config.project import default_bundle, load_project
from tmi.toolkit.errors import UsageError

if TYPE_CHECKING:
    import typer

    from tmi.toolkit.run_folder import RunFolder

FILE_ENDINGS = frozenset(
    {
        ".bin", ".csv", ".dcm", ".docx", ".engine", ".gz", ".htm", ".html", ".json", ".jsonl", ".md", ".nii", ".onnx",
        ".pdf", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".tar", ".tgz", ".toml", ".txt", ".xlsx", ".xml",
        ".yaml", ".yml", ".zip",
    }
)  # fmt: skip
"""Endings, in lower case, that name a kind of file; a folder is not written under such a name."""


def require_paths(*given: tuple[str, Path | Sequence[Path] | None]) -> None:
    """Check that given inputs exist.

    Args:
        given: what a path is (`run`, `--schema`) and the path, or several; None if the option is not given.

    Raises:
        UsageError: one does not exist; the fix names the existing path that is closest.
    """
    for what, paths in given:
        for path in [paths] if isinstance(paths, Path) else paths or ():
            if _is_missing(path):
                raise _missing_error(f"{what} {path}", path)


def require_case_paths(paths: Sequence[Path]) -> None:
    """Check that the paths of cases and cohorts are folders, at least one of them.

    A folder that is missing among others is a rejected case; when all are missing there is nothing to work on.

    Raises:
        UsageError: none of the paths exists, or one of them is a file.
    """
    for path in paths:
        if os.path.isfile(path):
            raise UsageError(f"{path} is a file; a case is a folder", fix=f"give the folder of the case: {path.parent}")
    if paths and all(map(_is_missing, paths)):
        raise _missing_error(f"case or cohort {paths[0]}", paths[0])


def _is_missing(path: Path) -> bool:
    """Whether nothing exists at a path. A path that cannot be looked up counts as existing: opening it reports why."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _missing_error(what: str, path: Path) -> UsageError:
    if path.is_symlink():  # `similar_path` would suggest the link itself
        return UsageError(
            f"{what} is a symbolic link to {os.readlink(path)}, which does not exist", fix="correct the link"
        )
    similar = similar_path(path)
    fix = "correct the path" if similar is None else f"did you mean {similar}?"
    return UsageError(f"{what} does not exist", fix=fix)


def resolve_bundle(given: Path | None) -> Path:
    """Return the bundle of a command: the given one, which must exist, else the default, which is printed.

    Raises:
        UsageError: the given bundle does not exist, or tmi.toml is malformed.
    """
    if given is not None:
        require_paths(("bundle", given))
        return given
    bundle, reason = default_bundle(load_project())
    echo(f"bundle {bundle} ({reason})", err=True)
    return bundle


def require_run(path: Path, *, what: str = "run") -> RunFolder:
    """Return a finished run after reading its record; its other files are not compared with it.

    Raises:
        UsageError: the path does not exist, or is not a finished run.
        DamagedError: the record is damaged.
    """
    from tmi.toolkit.run_folder import RunFolder  # and the clinical schema

    require_paths((what, path))
    run = RunFolder.open(path)
    run.require_status()
    return run


def require_folder_name(out: Path, *, kind: str) -> None:
    """Check that the name of an output folder is not that of a file: `tmi report -o page.html` would write a folder.

    Raises:
        UsageError: the name has an ending of `FILE_ENDINGS`.
    """
    if out.suffix.lower() in FILE_ENDINGS and not out.is_dir():
        raise UsageError(
            f"{kind} {out} is a folder, but it is named as a {out.suffix} file",
            fix=f"name a folder: {out.with_suffix('')}",
        )


def split_names(given: Sequence[str] | None) -> list[str]:
    """Names of an option that may be repeated and takes several names with commas: each once, in the given order."""
    names = (name.strip() for value in given or () for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


def require_used_key(context: typer.Context, reason: str, *, fix: str) -> None:
    """Reject a `--key` that the command would ignore. A variable of the environment holds for other commands too.

    Args:
        context: of the command, whose parameter is `key`.
        reason: why no key is used.
        fix: as in `TmiError`.

    Raises:
        UsageError: the command line has the option.
    """
    source = context.get_parameter_source("key")
    if source is not None and source.name == "COMMANDLINE":
        raise UsageError(f"--key has no effect here: {reason}", fix=fix)


def limit_to_cores(given: int | None, *, option: str) -> int | None:
    """Return a number of threads or processes, limited to the cores of this process; a limit is reported."""
    cores = available_cores()
    if given is None or given <= cores:
        return given
    echo(f"{option} {given} is limited to {cores}: this process may use {cores} core(s)", err=True)
    return cores
