"""From what was asked for to an engine that is open and has been checked here: choose, load, judge, step back.

`auto` steps back from an engine that yields (bfloat16) where its gates refuse it: at the export, at the first opening
on this machine, or at an earlier opening that is remembered. The next engine of the table answers then, and the record
says why. An engine that was asked for by name is never replaced, and a float32 engine whose gates fail is an error:
then the bundle does not answer like the validated model.
"""

from __future__ import annotations

from typing import Literal

from safetensors import SafetensorError

from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.graph_engine import available_cores
from tmi.runtime.engines.precision import rejected_at_export, validated_at_export
from tmi.runtime.engines.registry import ENGINES, Engine, engine_spec, installed, open_engine
from tmi.runtime.engines.selection import AUTO, EngineRecord, choose_engine, engine_record
from tmi.runtime.verification.self_test import SELF_TEST_SKIPPED, LogCallback, cached_result, run_self_test
from tmi.toolkit.errors import DamagedError


def open_selected_engine(
    asked: str,
    bundle: Bundle,
    *,
    precision: str = "auto",
    threads: int | None = None,
    verify: bool = True,
    log: LogCallback = lambda line: None,
) -> tuple[Engine, EngineRecord]:
    """An engine with the bundle open, judged on this machine, and what a prediction says of it.

    Args:
        asked: `auto` or a name in `ENGINES`.
        bundle: compared with its manifest.
        precision: a value of `tmi.runtime.engines.precision.ALLOWED_PRECISIONS`; anything but `auto` leaves only
        engines that compute in it.
        threads: threads of the engine; None takes all cores.
        verify: False skips the check at the first opening; engines that yield are then taken on the export's evidence
            or an earlier opening's only.
        log: told one line about a first opening, and when another engine is taken.

    Raises:
        UsageError: no such engine or precision.
        UnavailableError: the engine is not installed, the bundle has no graphs for it, or the machine lacks something.
        DamagedError: the engine cannot load its graphs.
        ParityError: a gate failed, and there is no other engine that may answer.
    """
    # with a precision asked for, an engine of that precision is as good as named: nothing else would be it
    may_step_back = asked == AUTO and precision == AUTO
    refused = _known_rejections(bundle, verify=verify)
    if not may_step_back:
        name, reason = choose_engine(asked, bundle, precision=precision)
        if (why := rejected_at_export(bundle.manifest, name)) is not None and verify:
            raise ParityError(
                f"engine {name} does not answer like the validated model with this bundle; it was {why}",
                fix="predict with --engine auto, which takes another engine",
            )
        engine, verified = _open_and_verify(name, bundle, threads, verify=verify, log=log)
    while may_step_back:
        name, reason = choose_engine(AUTO, bundle, rejected=refused)
        try:
            engine, verified = _open_and_verify(name, bundle, threads, verify=verify, log=log)
            break
        except ParityError as error:
            if not engine_spec(name).optional:
                raise
            refused[name] = error.what
            log(f"engine {name} is not taken: {error.what}")
    record = engine_record(
        name, bundle, asked=asked, reason=reason, threads=threads or available_cores(), verified=verified
    )
    return engine, record


def _known_rejections(bundle: Bundle, *, verify: bool) -> dict[str, str]:
    """Engines that yield and are refused without being asked again."""
    refused = {}
    for name, spec in ENGINES.items():
        if not (spec.optional and bundle.has(spec.artefact) and installed(name)):
            continue
        before, why_here = cached_result(bundle, name)
        why = rejected_at_export(bundle.manifest, name) or why_here
        if why is None and not verify and not before and not validated_at_export(bundle.manifest, name):
            why = "nobody has judged it on such a processor yet, and the check is skipped (--no-verify)"
        if why is not None:
            refused[name] = why
    return refused


def _open_and_verify(
    name: str, bundle: Bundle, threads: int | None, *, verify: bool, log: LogCallback
) -> tuple[Engine, Literal["now", "before", "no"]]:
    """The engine, open, and whether it was checked on this machine."""
    engine = _open_engine(name, bundle, threads)
    try:
        opening = run_self_test(bundle, engine, log=log) if verify else SELF_TEST_SKIPPED
    except BaseException:
        engine.close()
        raise
    return engine, opening.verified


def _open_engine(name: str, bundle: Bundle, threads: int | None) -> Engine:
    """The engine with the bundle open; a file that it cannot load is told as such."""
    try:
        return open_engine(name, bundle, threads=threads)
    except (RuntimeError, ValueError, SafetensorError) as error:
        text = " ".join(str(error).split())[:200]
        raise DamagedError(
            f"bundle {bundle.folder}: engine {name} cannot load its graphs: {text}",
            fix="verify it with `tmi verify`, take another --engine, or export it again",
        ) from error
