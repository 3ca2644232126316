"""Which engine answers, and why: asked for by name, or picked by `auto` in the order of the engine table."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.precision import allowed_precisions, engine_precision
from tmi.runtime.engines.registry import ENGINES, engine_spec, installed, missing_requirement
from tmi.toolkit.errors import UnavailableError, UsageError

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What a prediction says of the engine that made it."""

    name: str
    """Name in `ENGINES`."""
    asked: str
    """What was asked for; `auto` or a name."""
    reason: str
    """Why this one, in a few words."""
    package: str
    """Package and version that did the work."""
    precision: str
    """Number format of the computation."""
    threads: int
    """Threads it may use."""
    verified: Literal["now", "before", "no"]
    """Whether its answers were checked on this machine: now, before and remembered, or not, as asked."""


NO_REJECTIONS: Mapping[str, str] = MappingProxyType({})


def choose_engine(
    asked: str, bundle: Bundle, *, precision: str = "auto", rejected: Mapping[str, str] = NO_REJECTIONS
) -> tuple[str, str]:
    """Name of the engine and the reason.

    `auto` takes the first engine of the table that is installed, whose artefact the bundle holds, for which the machine
    has what it needs, and that computes in what was asked for; the reason names those that were passed over.

    Args:
        asked: `auto` or a name.
        bundle: to be run.
        precision: a value of `tmi.runtime.engines.precision.ALLOWED_PRECISIONS`.
        rejected: engine -> why `auto` must not take it.

    Raises:
        UsageError: no such engine or precision, or the engine asked for computes in another one.
        UnavailableError: `auto`, and no engine fits.
    """
    formats = allowed_precisions(precision)
    if asked != AUTO:
        if asked not in ENGINES:
            raise UsageError(f"unknown engine {asked!r}", fix=f"choose {AUTO} or one of {', '.join(ENGINES)}")
        if formats and engine_precision(asked, bundle.manifest) not in formats:
            raise UsageError(
                f"engine {asked} computes in {engine_precision(asked, bundle.manifest)}, not in {' or '.join(formats)}",
                fix=f"leave out --precision, or take --engine {AUTO}",
            )
        return asked, "asked for"
    skipped: list[str] = []
    for name, spec in ENGINES.items():
        if spec.gpu and not bundle.has(spec.artefact):
            continue  # most bundles have none, and then nobody asks why it was not taken
        if not bundle.has(spec.artefact):
            skipped.append(f"{name}: the bundle holds no {spec.artefact} graphs")
        elif not installed(name):
            skipped.append(f"{name}: {spec.package} is not installed")
        elif spec.gpu and find_gpu() is None:
            skipped.append(f"{name}: no NVIDIA GPU with its driver")
        elif formats and engine_precision(name, bundle.manifest) not in formats:
            skipped.append(f"{name}: computes in {engine_precision(name, bundle.manifest)}")
        elif (lack := missing_requirement(name)) is not None:
            skipped.append(f"{name}: {lack}")
        elif name in rejected:
            skipped.append(f"{name}: {rejected[name]}")
        else:
            return name, "; ".join(["auto: the first that is installed and has graphs in the bundle", *skipped])
    raise UnavailableError(
        f"no engine can run bundle {bundle.folder} ({'; '.join(skipped)})",
        fix="install an engine (pip install 'tmi-clnet[openvino]') or export the bundle again with --engine onnx",
    )


def engine_record(
    name: str, bundle: Bundle, *, asked: str, reason: str, threads: int, verified: Literal["now", "before", "no"]
) -> EngineRecord:
    """The record of an engine that is open on a bundle."""
    package = engine_spec(name).package
    version = importlib.import_module(package).__version__.partition("-")[0]  # OpenVINO appends its build and commit
    return EngineRecord(
        name=name,
        asked=asked,
        reason=reason,
        package=f"{package} {version}",
        precision=engine_precision(name, bundle.manifest),
        threads=threads,
        verified=verified,
    )
