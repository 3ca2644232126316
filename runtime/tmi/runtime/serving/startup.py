"""Start-up of an engine: choose it, load the bundle's graphs, run the self-test, fall back if an optional one fails.

`auto` takes the engine that is quickest on this machine; at the first start the engines are timed
(`tmi.runtime.verification.engine_timing`). It falls back from an optional engine (bfloat16) to the next one if its
parity checks failed at the export, in the self-test on this machine, or in an earlier self-test whose result is cached.
The engine record states the reason. An engine that is requested by name is never replaced. A float32 engine that fails
its parity checks is an error: the bundle then does not match the validated model on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from safetensors import SafetensorError

from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.precision import rejected_at_export, validated_at_export
from tmi.runtime.engines.registry import ENGINES, Engine, engine_spec, installed, is_out_of_scope, open_engine
from tmi.runtime.engines.selection import (
    AUTO,
    EngineRecord,
    EngineTimes,
    choose_engine,
    engine_record,
    timed_engines,
)
from tmi.runtime.verification.engine_timing import Measure, engine_times, measure_engines
from tmi.runtime.verification.self_test import SELF_TEST_SKIPPED, LogCallback, cached_result, run_self_test
from tmi.runtime.verification.trial import require_survived_trial
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import DamagedError


def open_selected_engine(
    requested: str,
    bundle: Bundle,
    *,
    precision: str = "auto",
    threads: int | None = None,
    verify: bool = True,
    log: LogCallback = lambda line: None,
    measure: Measure | None = None,
) -> tuple[Engine, EngineRecord]:
    """Open a bundle on an engine and run the self-test.

    Args:
        requested: `auto` or a name in `ENGINES`.
        bundle: an opened bundle, already compared with its manifest.
        precision: a value of `tmi.runtime.engines.precision.ALLOWED_PRECISIONS`; any value but `auto` restricts the
            choice to engines that compute in it.
        threads: threads of the engine; None uses all cores.
        verify: False skips the self-test; an optional engine is then used only if it passed its checks at the export
            or in an earlier self-test, and engines that have not been timed here before are not timed.
        log: receives lines about a self-test and the timing of engines, and one for each engine that is skipped.
        measure: times engines; None: `tmi.runtime.verification.engine_timing.measure_engines`.

    Returns:
        The open engine, and the record of it that goes into every prediction.

    Raises:
        UsageError: unknown engine or precision.
        UnavailableError: the engine is not installed, the bundle has no graphs for it, or the machine does not meet a
            requirement.
        DamagedError: the engine cannot load its graphs.
        ParityError: a parity check failed, and no other engine may be used.
    """
    # A requested precision pins the engine like a name does: a fallback would compute in another precision.
    may_fall_back = requested == AUTO and precision == AUTO
    rejected = _known_rejections(bundle, verify=verify)
    times = None
    if requested == AUTO:
        measured = (measure or measure_engines) if verify else None
        times = _times(bundle, precision, threads, rejected, measure=measured, log=log)
    if not may_fall_back:
        name, reason = choose_engine(requested, bundle, precision=precision, times=times)
        if (why := rejected_at_export(bundle.manifest, name)) is not None and verify:
            raise ParityError(
                f"engine {name} does not match the validated model on this bundle; it was {why}",
                fix="predict with --engine auto, which selects another engine",
            )
        engine, verified = _open_and_verify(name, bundle, threads, verify=verify, log=log)
    # Each failure adds an optional engine to `rejected`, so the loop ends at the first mandatory engine at the latest.
    while may_fall_back:
        name, reason = choose_engine(AUTO, bundle, rejected=rejected, times=times)
        try:
            engine, verified = _open_and_verify(name, bundle, threads, verify=verify, log=log)
            break
        except ParityError as error:
            if not engine_spec(name).optional:
                raise
            rejected[name] = error.what
            log(f"engine {name} is skipped: {error.what}")
    record = engine_record(
        name, bundle, asked=requested, reason=reason, threads=threads or available_cores(), verified=verified
    )
    return engine, record


def chosen_by_auto(
    bundle: Bundle, *, threads: int | None = None, may_time: bool, log: LogCallback = lambda line: None
) -> tuple[str, str, EngineTimes | None]:
    """Name of the engine that `auto` takes here, the reason, and the times of the engines if they are known.

    Args:
        bundle: an opened bundle.
        threads: threads of an engine; None uses all cores.
        may_time: whether engines that have not been timed here are timed.
        log: receives lines about the timing.

    Raises:
        UnavailableError: no engine is usable.
    """
    rejected = _known_rejections(bundle, verify=True)
    measure = measure_engines if may_time else None
    times = _times(bundle, "auto", threads, rejected, measure=measure, log=log)
    return *choose_engine(AUTO, bundle, rejected=rejected, times=times), times


def _times(
    bundle: Bundle,
    precision: str,
    threads: int | None,
    rejected: Mapping[str, str],
    *,
    measure: Measure | None,
    log: LogCallback,
) -> EngineTimes | None:
    """Times of the engines that `auto` may select, from the cache or measured."""
    engines = timed_engines(bundle, precision=precision)
    return engine_times(bundle, engines, threads=threads, skipped=rejected, measure=measure, log=log)


def _known_rejections(bundle: Bundle, *, verify: bool) -> dict[str, str]:
    """Optional engines that are known to fail, each with the reason; they are not opened again."""
    rejected = {}
    for name, spec in ENGINES.items():
        if not spec.optional or is_out_of_scope(name, bundle) or not (bundle.has(spec.artefact) and installed(name)):
            continue
        tested, why_here = cached_result(bundle, name)
        why = rejected_at_export(bundle.manifest, name) or why_here
        if why is None and not verify and not tested and not validated_at_export(bundle.manifest, name):
            why = "it has not been validated on this processor, and the self-test is skipped (--no-verify)"
        if why is not None:
            rejected[name] = why
    return rejected


def _open_and_verify(
    name: str, bundle: Bundle, threads: int | None, *, verify: bool, log: LogCallback
) -> tuple[Engine, Literal["now", "before", "no"]]:
    """Open an engine and run the self-test; the second value is `verified` of the engine record."""
    if verify:
        require_survived_trial(bundle, name, threads=threads)
    engine = _open_engine(name, bundle, threads)
    try:
        result = run_self_test(bundle, engine, log=log) if verify else SELF_TEST_SKIPPED
    except BaseException:
        engine.close()
        raise
    return engine, result.verified


def _open_engine(name: str, bundle: Bundle, threads: int | None) -> Engine:
    """Open the bundle on an engine; an error of its loader becomes a `DamagedError`."""
    try:
        return open_engine(name, bundle, threads=threads)
    except (RuntimeError, ValueError, SafetensorError) as error:
        message = " ".join(str(error).split())[:200]
        raise DamagedError(
            f"bundle {bundle.folder}: engine {name} cannot load its graphs: {message}",
            fix="verify it with `tmi verify`, choose another --engine, or export it again",
        ) from error
