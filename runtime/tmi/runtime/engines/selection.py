"""Selection of the engine: by name, or by `auto`: the quickest as timed on this machine, else the first of the table.

`tmi.runtime.verification.engine_timing` times the engines. A processor's flags do not say which one is quickest.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from types import MappingProxyType
from typing import Literal

from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.precision import allowed_precisions, engine_precision, rejected_at_export
from tmi.runtime.engines.registry import ENGINES, engine_spec, is_out_of_scope, unavailable_reason
from tmi.toolkit.errors import UnavailableError, UsageError

AUTO = "auto"
TORCH = "torch"
"""Package of the engines that take seconds to start and gigabytes of memory."""


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


@dataclass(frozen=True, kw_only=True)
class EngineTimes:
    """How long a bundle's engines take on this machine for the graph that takes most of a prediction's time."""

    passes: str
    """What was timed, for people: `CT encoder` or another role of a graph."""
    seconds: Mapping[str, float]
    """Engine -> seconds of one pass with a batch of one."""
    untimed: Mapping[str, str]
    """Engine -> why it has no time: it was stopped because it is slower, or it failed."""
    created: str
    """Day of the measurement, ISO 8601."""

    def order(self, engines: Sequence[str]) -> list[str]:
        """Engines from the quickest to the slowest; those without a time follow in the order given."""
        return sorted(engines, key=lambda name: (self.seconds.get(name, inf), name if name in self.seconds else ""))

    def summary(self, chosen: str) -> str:
        """One line: the time of the chosen engine, and the others."""
        others = [f"{n} {self.seconds[n]:.3g} s" for n in self.order(tuple(self.seconds)) if n != chosen]
        others += [f"{name} {why}" for name, why in sorted(self.untimed.items()) if name != chosen]
        took = f"{self.seconds[chosen]:.3g} s a {self.passes} pass" if chosen in self.seconds else "not timed"
        return "; ".join([took, *([", ".join(others)] if others else []), f"measured {self.created}"])


def timed_engines(bundle: Bundle, *, precision: str = "auto") -> tuple[str, ...]:
    """Engines among which `auto` selects by their time, in the order of the table; empty if none can run.

    They run on one kind of device: that of the first engine of the table that can run here, which is a GPU if there is
    one. Engines that import torch are left out if another one can run: torch takes seconds and gigabytes of a service.
    Those that the export's checks rejected are left out.

    Raises:
        UsageError: unknown precision.
    """
    formats, names = allowed_precisions(precision), list[str]()
    for name, spec in ENGINES.items():
        if names and spec.gpu != engine_spec(names[0]).gpu:
            continue
        if spec.package == TORCH and any(engine_spec(other).package != TORCH for other in names):
            continue
        if rejected_at_export(bundle.manifest, name) is None and _skip_reason(name, bundle, formats) is None:
            names.append(name)
    return tuple(names)


def choose_engine(
    requested: str,
    bundle: Bundle,
    *,
    precision: str = "auto",
    rejected: Mapping[str, str] = NO_REJECTIONS,
    times: EngineTimes | None = None,
) -> tuple[str, str]:
    """Name of the engine and the reason for it.

    `auto` selects among the engines that are installed, whose artefact the bundle has, whose requirements the machine
    meets, and that compute in the requested precision: the quickest, or the first of the table if none was timed. The
    reason lists the others.

    Args:
        requested: `auto` or a name.
        bundle: the bundle to run.
        precision: a value of `tmi.runtime.engines.precision.ALLOWED_PRECISIONS`.
        rejected: engine -> why `auto` must not select it.
        times: seconds of the engines on this machine, if they were timed.

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
    skipped: dict[str, str] = {}
    for name in ENGINES if times is None else times.order(tuple(ENGINES)):
        if is_out_of_scope(name, bundle):
            continue
        if (why := _skip_reason(name, bundle, formats) or rejected.get(name)) is not None:
            skipped[name] = why
            continue
        if times is None:
            reason = "the first that is installed and has graphs in the bundle"
        else:
            reason = times.summary(name)
            skipped |= _skipped_before(name, bundle, formats, rejected)
        return name, "; ".join([f"auto: {reason}", *(f"{other}: {why}" for other, why in skipped.items())])
    listed = "; ".join(f"{name}: {why}" for name, why in skipped.items())
    raise UnavailableError(
        f"no engine can run bundle {bundle.folder} ({listed})",
        fix="install an engine (pip install 'tmi-clnet[openvino]') or export the bundle again with --engine onnx",
    )


def _skip_reason(name: str, bundle: Bundle, formats: tuple[str, ...]) -> str | None:
    """Why `auto` does not consider an engine; None if it does."""
    # The precision of a plan is in the manifest of a bundle that has plans.
    if bundle.has(ENGINES[name].artefact) and formats and engine_precision(name, bundle.manifest) not in formats:
        return f"computes in {engine_precision(name, bundle.manifest)}"
    return unavailable_reason(name, bundle)


def _skipped_before(
    chosen: str, bundle: Bundle, formats: tuple[str, ...], rejected: Mapping[str, str]
) -> dict[str, str]:
    """Engines that the table prefers to the chosen one and that cannot run, each with the reason."""
    reasons = {}
    for name in takewhile(lambda name: name != chosen, ENGINES):
        if not is_out_of_scope(name, bundle) and (why := _skip_reason(name, bundle, formats) or rejected.get(name)):
            reasons[name] = why
    return reasons


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
