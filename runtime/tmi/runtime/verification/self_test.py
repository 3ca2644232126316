"""The first time a machine opens a bundle: do this bundle and this engine answer here as they did at the export?

An engine chooses its arithmetic by the processor it finds, and a library's next version may choose otherwise. So the
short form of the gates runs once for each combination of bundle, engine, versions and machine: the first golden case
through the whole pipeline against the eager model's stored answer, and the golden case's files through preparation.
One case, because at full size one costs seconds and the whole set costs many; `tmi verify` runs everything.

An engine that yields (bfloat16) may have been judged on no machine before, because the export's had no such units. It
then answers all golden cases. Where it fails, that is remembered too, because another engine takes its place and the
next start should not wait to learn the same again; any other failure is looked at anew each time.

Success is remembered in the user's cache (`tmi.toolkit.storage.disk_cache` says where), never in the bundle: one small
JSON file a combination, which states all of it and is compared in full when it is read. Without a cache every opening
is checked.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from tmi.runtime.bundle.check_result import ParityError
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.host import cpu_name, package_version
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.precision import engine_precision, validated_at_export
from tmi.runtime.engines.registry import Engine, engine_spec
from tmi.toolkit.storage.atomic_files import write_json
from tmi.toolkit.storage.disk_cache import cache_root
from tmi.toolkit.storage.hashing import sha256_json

LogCallback = Callable[[str], None]
"""Told one line for the user."""
REJECTED_KEY = "refused"
"""Key under which a file of memory says why an engine that yields was refused."""


@dataclass(frozen=True, kw_only=True)
class SelfTestResult:
    """What is known of this bundle and engine on this machine."""

    verified: Literal["now", "before", "no"]
    """Checked now, checked before and remembered, or not at all because it was asked for."""
    seconds: float
    """What it cost."""


SELF_TEST_SKIPPED = SelfTestResult(verified="no", seconds=0.0)
"""Of a bundle that was opened without a check, as asked."""


def self_test_key(bundle: Bundle, engine: str) -> dict[str, Any]:
    """What the answers depend on: bundle, engine, versions, processor and, for an engine that uses one, the GPU."""
    package = engine_spec(engine).package
    gpu = find_gpu() if engine_spec(engine).gpu else None
    return {
        "bundle": bundle.digest,
        "engine": engine,
        "versions": {
            "tmi-clnet": version("tmi-clnet"),
            "python": platform.python_version(),
            package: package_version(package),
            "numpy": package_version("numpy"),
            "tokenizers": package_version("tokenizers"),
        },
        "machine": {"machine": platform.machine(), "cpu": cpu_name(), **({} if gpu is None else {"gpu": vars(gpu)})},
    }


def run_self_test(bundle: Bundle, engine: Engine, *, log: LogCallback = lambda line: None) -> SelfTestResult:
    """Run the short gates unless this combination has passed them before.

    Args:
        bundle: compared with its manifest.
        engine: opened on it.
        log: told before the wait, and when success cannot be remembered.

    Raises:
        ParityError: a gate failed; nothing is remembered.
        DamagedError: the bundle's references cannot be read.
    """
    key = self_test_key(bundle, engine.name)
    file, before = _cached_entry(key)
    if before is not None and before.get(REJECTED_KEY) is None:
        return SelfTestResult(verified="before", seconds=0.0)
    log(f"first opening of this bundle with {engine.name} on this machine: checking its answers")
    start = perf_counter()
    try:
        _require_quick_checks(bundle, engine)
    except ParityError as error:
        if file is not None and engine_spec(engine.name).optional:
            with suppress(OSError):
                write_json(file, {"combination": key, "created": _now(), REJECTED_KEY: error.what})
        raise
    seconds = perf_counter() - start
    if file is None:
        log(f"it answers like the validated model ({seconds:.1f} s; not remembered, caching is off)")
        return SelfTestResult(verified="now", seconds=seconds)
    try:
        write_json(file, {"combination": key, "created": _now(), "seconds": round(seconds, 3)})
    except OSError as error:
        log(f"that it held cannot be remembered in {file.parent} ({error.strerror}); set TMI_CACHE")
    else:
        log(f"it answers like the validated model ({seconds:.1f} s, remembered in {file.parent})")
    return SelfTestResult(verified="now", seconds=seconds)


def cached_result(bundle: Bundle, engine: str) -> tuple[bool, str | None]:
    """Whether this combination has been judged here before, and the reason where it was refused."""
    _, before = _cached_entry(self_test_key(bundle, engine))
    return before is not None, None if before is None else before.get(REJECTED_KEY)


def _cached_entry(key: dict[str, Any]) -> tuple[Path | None, dict[str, Any] | None]:
    """Where a combination is remembered, None where caching is off, and what stands there if it is of just this one."""
    root = cache_root()
    if root is None:
        return None, None
    file = root / "opened" / f"{sha256_json(key)}.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return file, data if sha256_json(data["combination"]) == sha256_json(key) else None
    except (OSError, ValueError, TypeError, KeyError):
        return file, None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _require_quick_checks(bundle: Bundle, engine: Engine) -> None:
    from tmi.runtime.verification.golden_inputs import first_golden_input, golden_from_manifest
    from tmi.runtime.verification.parity import check_outputs
    from tmi.runtime.verification.preprocessing_check import check_preprocessing
    from tmi.runtime.verification.verify import read_references

    reference = read_references(bundle).float32
    artefact = engine_spec(engine.name).artefact
    if engine_spec(engine.name).optional and not validated_at_export(bundle.manifest, engine.name):
        golden = golden_from_manifest(bundle.manifest)
    else:
        golden, reference = first_golden_input(bundle.manifest), reference.rows([0])
    precision = engine_precision(engine.name, bundle.manifest)
    records = check_preprocessing(bundle) + check_outputs(
        engine, bundle.manifest, golden, reference, artefact=artefact, precision=precision
    )
    failed = [r for r in records if not r.passed]
    if failed:
        first = failed[0]
        raise ParityError(
            f"on this machine engine {engine.name} does not answer like the validated model: {len(failed)} of "
            f"{len(records)} gates failed, first {first.gate} of {first.graph}: {first.detail}",
            fix=f"see all of it with `tmi verify {bundle.folder}`; take another --engine, or the versions that the "
            "manifest names",
            records=records,
        )
