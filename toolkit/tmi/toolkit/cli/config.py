"""Command `tmi config`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.config.project import BUNDLE_VARIABLE, PROJECT_FILE, load_project

SCHEMA = "tmi-config/1"
DEFAULT = "the default"
SETTINGS: Mapping[str, str] = {
    "cohort": "cohort that `tmi train`, `tmi compare` and `tmi audit` read",
    "runs": "folder that `tmi train` writes runs to and `tmi export` takes the newest from",
    "bundle": "bundle that `tmi export` writes and every command of a bundle reads",
    "preset": "preset of `tmi train`, `tmi compare` and `tmi pretrain-text`: paper, released or tiny",
    "engine": "engine that `tmi export` writes",
    "schema": "clinical schema; without one the cohort's own, else the packaged liver schema",
    "require_signature": "whether a bundle without a trusted signature is rejected",
    "trusted_keys": "public keys (PEM), one of which must have signed a bundle",
}
"""Key of tmi.toml -> what it is."""
VARIABLES: Mapping[str, str] = {
    BUNDLE_VARIABLE: "bundle, instead of the key `bundle`",
    "TMI_KEY": "public keys that must have signed a bundle, instead of `trusted_keys`",
    "TMI_CACHE": "folder of the caches, or off; default: ~/.cache/tmi",
    "TMI_STATE": "folder of the record of signed bundles that were used; default: ~/.local/state/tmi",
    "TMI_ALLOW_OLDER": "1: a signed bundle that is older than one that was used is opened",
    "TMI_KEY_PASSWORD": "password of the private key of `tmi sign`",
}
"""Environment variable -> what it sets."""
SECRET = frozenset({"TMI_KEY_PASSWORD"})
"""Variables whose value is not shown."""


def config(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Show every setting of this folder's tmi.toml with its value, its default and where the value comes from.

    A setting comes from tmi.toml, from an environment variable, or is the default; an option of a command overrides it.
    The output is a valid tmi.toml.

    Examples:

        tmi config
        tmi config --json
    """
    rows = _rows()
    variables = {name: _variable(name) for name in VARIABLES}
    if as_json:
        document = {"schema": SCHEMA, "settings": rows, "variables": variables}
        echo_json(json.dumps(document, indent=2))
        return
    found = "read" if os.path.exists(PROJECT_FILE) else "none in this folder"
    echo(f"# {PROJECT_FILE}: {found}; every key is optional, and paths are relative to its folder")
    for name, row in rows.items():
        setting = f"{name} = {_toml(row['value'])}"
        default = "" if row["origin"] == DEFAULT else f", the default is {_toml(row['default'])}"
        if row["value"] in (None, ()):  # there is no such value in TOML
            setting = f"# {setting}"
        echo(f"# {row['meaning']}", f"{setting}  # {row['origin']}{default}")
    echo("# environment variables")
    for name, meaning in VARIABLES.items():
        echo(f"# {name}: {variables[name] or 'not set'} ({meaning})")


def _rows() -> dict[str, dict[str, Any]]:
    """One row for each key: value, default, origin and meaning."""
    project = load_project()
    defaults = type(project)(root=project.root)
    rows: dict[str, dict[str, Any]] = {}
    for name, meaning in SETTINGS.items():
        value, default = getattr(project, name), getattr(defaults, name)
        origin = f"from {PROJECT_FILE}" if name in project.from_file else DEFAULT
        if name == "bundle" and os.environ.get(BUNDLE_VARIABLE):
            value, origin = os.environ[BUNDLE_VARIABLE], f"from {BUNDLE_VARIABLE}"
        rows[name] = {"value": value, "default": default, "origin": origin, "meaning": meaning}
    return rows


def _variable(name: str) -> str | None:
    """Return the value of an environment variable, `set` for a secret one, None if it is not set or empty."""
    value = os.environ.get(name) or None
    return "set" if value is not None and name in SECRET else value


def _toml(value: object) -> str:
    """Write a value as TOML does; an empty string stands for none."""
    return json.dumps(list(value) if isinstance(value, tuple) else "" if value is None else value, ensure_ascii=False)
