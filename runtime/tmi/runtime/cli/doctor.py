"""`tmi doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tmi.toolkit.cli.console import echo, echo_json
from tmi.toolkit.cli.inputs import require_paths
from tmi.toolkit.errors import ExitCode, UnavailableError

if TYPE_CHECKING:
    from tmi.runtime.bundle.reader import Bundle

SCHEMA = "tmi-doctor/1"
DISTRIBUTION = "tmi-clnet"
READY = "ready"
NOT_SHOWN = frozenset({"all", "dev", "docs"})
"""Extras that no command needs."""


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Also show which engines have graphs in this bundle.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Show what is installed, which commands and engines run on this machine, and why the others do not.

    Exit code 5 if no engine runs here. Nothing is changed, installed or downloaded.

    Examples:

        tmi doctor
        tmi doctor --bundle ./bundle
        tmi doctor --json
    """
    require_paths(("bundle", bundle))
    opened = _open(bundle)
    document = {
        "schema": SCHEMA,
        **_machine(),
        "extras": _extras(),
        "engines": _engines(opened),
        "auto": _auto(opened),
    }
    if as_json:
        echo_json(json.dumps(document, indent=2))
    else:
        _print(document)
    if READY not in document["engines"].values():
        raise typer.Exit(int(ExitCode.UNAVAILABLE))


def _open(folder: Path | None) -> Bundle | None:
    """Return the bundle, whose files are not hashed; None without a folder."""
    if folder is None:
        return None
    from tmi.runtime.bundle.reader import inspect_bundle

    return inspect_bundle(folder)


def _machine() -> dict[str, Any]:
    """Return version, Python, processor, cores, GPU and the folder of the caches."""
    import platform
    from importlib.metadata import version

    from tmi.runtime.engines.host import hardware
    from tmi.runtime.engines.nvidia_driver import find_gpu
    from tmi.toolkit.compute.cpu import available_cores
    from tmi.toolkit.storage.user_folders import cache_root

    gpu = find_gpu()
    cache = cache_root()
    return {
        "version": version(DISTRIBUTION),
        "python": platform.python_version(),
        "hardware": hardware(),
        "cores": available_cores(),
        "gpu": None if gpu is None else gpu.name,
        "cache": None if cache is None else str(cache),
    }


def _extras() -> dict[str, dict[str, Any]]:
    """Map each extra to its commands and to the packages of it that are not installed."""
    import re
    from importlib.metadata import requires

    from tmi.toolkit.cli.main import COMMANDS

    needed: dict[str, list[str]] = {}
    for line in requires(DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra is not None and extra[1] not in NOT_SHOWN:
            needed.setdefault(extra[1], []).append(requirement.strip())
    return {
        name: {
            "commands": [command for command, spec in COMMANDS.items() if spec.extra == name],
            "missing": _missing(name, needed),
        }
        for name in sorted(needed)
    }


def _missing(extra: str, needed: dict[str, list[str]]) -> list[str]:
    """Return the packages of an extra, and of the extras that it names, that are not installed."""
    import re
    from importlib.metadata import PackageNotFoundError, version

    missing: list[str] = []
    for requirement in needed.get(extra, ()):
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match is not None
        name, inner = match.groups()
        if name == DISTRIBUTION:
            for other in (inner or "").split(","):
                missing += _missing(other, needed)
            continue
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return list(dict.fromkeys(missing))


def _engines(bundle: Bundle | None) -> dict[str, str]:
    """Map each engine, in the order of the table, to `ready` or to the reason why it does not run here."""
    from tmi.runtime.engines.registry import ENGINES, unavailable_here, unavailable_reason

    return {
        name: (unavailable_here(name) if bundle is None else unavailable_reason(name, bundle)) or READY
        for name in ENGINES
    }


def _auto(bundle: Bundle | None) -> dict[str, str] | None:
    """Return the engine that `auto` takes for a bundle with all cores, and why; None if none runs here."""
    if bundle is None:
        return None
    from tmi.runtime.serving.startup import chosen_by_auto

    try:
        name, reason, times = chosen_by_auto(bundle, may_time=False)
    except UnavailableError:
        return None
    untimed = "" if times is not None else "; the first prediction times the engines, if there are several"
    return {"engine": name, "reason": reason + untimed}


def _print(document: dict[str, Any]) -> None:
    from tmi.runtime.engines.host import package_version
    from tmi.runtime.engines.registry import engine_spec

    machine = document["hardware"]
    echo(f"tmi {document['version']}, Python {document['python']}, {machine['system']} on {machine['machine']}")
    echo(f"processor  {machine['cpu']}, {document['cores']} core(s) for this process")
    echo(f"GPU        {document['gpu'] or 'none with an NVIDIA driver'}")
    echo(f"caches     {document['cache'] or 'off (TMI_CACHE)'}")
    echo("engines, in the order of their table:")
    for name, state in document["engines"].items():
        package = engine_spec(name).package
        used = f" ({package} {package_version(package)})" if state == READY else ""
        echo(f"  {name:16} {state}{used}")
    if document["auto"] is not None:
        echo(f"--engine auto    {document['auto']['engine']} ({document['auto']['reason']})")
    echo("extras:")
    for name, row in document["extras"].items():
        state = "installed" if not row["missing"] else f"not installed: {', '.join(row['missing'])}"
        used = f" ({', '.join('tmi ' + command for command in row['commands'])})" if row["commands"] else ""
        echo(f"  {name:16} {state}{used}")
        if row["missing"]:
            echo(f"  {'':16} pip install '{DISTRIBUTION}[{name}]'")
