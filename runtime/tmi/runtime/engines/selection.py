"""Selection of the engine: by name, or by `auto` in the order of the engine table."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.precision import allowed_precisions, engine_precision
from tmi.runtime.engines.registry import ENGINES, engine_spec, is_out_of_scope, unavailable_reason
from tmi.toolkit.errors import UnavailableError, UsageError

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """Engine of a prediction, as the prediction records it."""

    name: str
    """Name in `ENGINES`."""
    asked: str
    """Requested engine: `auto` or a name."""
    reason: str
    """Reason for the selection, in a few words."""
    package: str
    """Package and version that computed it."""
    precision: str
    """Number format of the computation."""
    threads: int
    """Number of threads."""
    verified: Literal["now", "before", "no"]
    """Whether its outputs were checked on this machine: in this process, in an earlier one (cached result), or not, as
    requested.
    """


NO_REJECTIONS: Mapping[str, str] = MappingProxyType({})


def choose_engine(
    requested: str, bundle: Bundle, *, precision: str = "auto", rejected: Mapping[str, str] = NO_REJECTIONS
) -> tuple[str, str]:
    """Name of the engine and the reason for it.

    `auto` selects the first engine of the table that is installed, whose artefact the bundle has, whose requirements
    the machine meets, and that computes in the requested precision. The reason lists the skipped engines.

    Args:
        requested: `auto` or a name.
        bundle: the bundle to run.
        precision: a value of `tmi.runtime.engines.precision.ALLOWED_PRECISIONS`.
        rejected: engine -> why `auto` must not select it.

    Raises:
        UsageError: no such engine or precision, or the requested engine computes in another precision.
        UnavailableError: `auto`, and no engine is usable.
    """
    formats = allowed_precisions(precision)
    if requested != AUTO:
        if requested not in ENGINES:
            raise UsageError(f"unknown engine {requested!r}", fix=f"choose {AUTO} or one of {', '.join(ENGINES)}")
        if formats and (computed := engine_precision(requested, bundle.manifest)) not in formats:
            raise UsageError(
                f"engine {requested} computes in {computed}, not in {' or '.join(formats)}",
                fix=f"omit --precision, or use --engine {AUTO}",
            )
        return requested, "asked for"
    skipped: list[str] = []
    for name in ENGINES:
        if is_out_of_scope(name, bundle):
            continue
        # The precision of a plan is in the manifest of a bundle that has plans.
        if bundle.has(ENGINES[name].artefact) and formats and engine_precision(name, bundle.manifest) not in formats:
            skipped.append(f"{name}: computes in {engine_precision(name, bundle.manifest)}")
        elif (reason := unavailable_reason(name, bundle)) is not None:
            skipped.append(f"{name}: {reason}")
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
    """Record of an engine that is open on a bundle."""
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
