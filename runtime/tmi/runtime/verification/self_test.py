"""Startup self-test: the first time a machine opens a bundle with an engine, compare its outputs with the export's.

An engine selects its arithmetic by the processor, and another version of its library may select differently. A short
form of the parity checks therefore runs once for each combination of bundle, engine, versions and machine. It runs the
first golden case through the complete pipeline against the stored output of the eager model, and the files of the
golden case through preprocessing. It uses one case because a case takes seconds at full size; `tmi verify` runs all.

An optional engine (bfloat16) may not have been validated at the export, if the exporting machine has no instructions
for it. It then runs all golden cases. Its failure is cached too, because another engine replaces it and the next start
should not repeat the test. After any other failure the test runs again at each start.

Results are cached in the user's cache folder (`tmi.runtime.verification.machine_records`), never in the bundle. Without
a cache folder every start runs the self-test.
"""

from __future__ import annotations

import datetime
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
from tmi.runtime.verification.machine_records import read_record, record_file, write_record

LogCallback = Callable[[str], None]
"""Callback that receives one line of text for the user."""
REJECTED_KEY = "refused"
"""Key of a cache file that holds the reason why an optional engine failed."""
KIND = "opened"
"""Name of the folder below the cache root."""


@dataclass(frozen=True, kw_only=True)
class SelfTestResult:
    """Result of the self-test of a bundle and engine on this machine."""

    verified: Literal["now", "before", "no"]
    """`now`: run by this call; `before`: cached from an earlier run; `no`: skipped on request."""
    seconds: float
    """Seconds that the test took."""


SELF_TEST_SKIPPED = SelfTestResult(verified="no", seconds=0.0)
"""Result for a bundle that was opened without a self-test."""


def self_test_key(bundle: Bundle, engine: str) -> dict[str, Any]:
    """Everything that outputs depend on: bundle, engine, versions, processor and, for GPU engines, the GPU."""
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
    """Run the self-test unless this combination has passed it before.

    Args:
        bundle: an opened bundle, already compared with its manifest.
        engine: an engine that has the bundle open.
        log: receives one line before the test and one after it.

    Returns:
        The result of the test, or the cached one.

    Raises:
        ParityError: a check failed. The failure is cached only for an optional engine.
        DamagedError: the bundle's references cannot be read.
    """
    key = self_test_key(bundle, engine.name)
    file, entry = _cached_entry(key)
    if entry is not None and entry.get(REJECTED_KEY) is None:
        return SelfTestResult(verified="before", seconds=0.0)
    log(f"first use of this bundle with {engine.name} on this machine: running the self-test")
    start = perf_counter()
    try:
        _require_short_checks(bundle, engine)
    except ParityError as error:
        if file is not None and engine_spec(engine.name).optional:
            with suppress(OSError):
                write_record(file, key, {"created": _now(), REJECTED_KEY: error.what})
        raise
    seconds = perf_counter() - start
    if file is None:
        log(f"self-test passed ({seconds:.1f} s; not cached, caching is off)")
        return SelfTestResult(verified="now", seconds=seconds)
    try:
        write_record(file, key, {"created": _now(), "seconds": round(seconds, 3)})
    except OSError as error:
        log(f"self-test passed, but it cannot be cached in {file.parent} ({error.strerror}); set TMI_CACHE")
    else:
        log(f"self-test passed ({seconds:.1f} s, cached in {file.parent})")
    return SelfTestResult(verified="now", seconds=seconds)


def cached_result(bundle: Bundle, engine: str) -> tuple[bool, str | None]:
    """Whether this combination was tested here before, and the reason if it failed."""
    _, entry = _cached_entry(self_test_key(bundle, engine))
    return entry is not None, None if entry is None else entry.get(REJECTED_KEY)


def _cached_entry(key: dict[str, Any]) -> tuple[Path | None, dict[str, Any] | None]:
    """Path of a combination's cache file (None if caching is off), and its content if it is of that combination."""
    file = record_file(KIND, key)
    return file, read_record(file, key)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _require_short_checks(bundle: Bundle, engine: Engine) -> None:
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
            f"on this machine engine {engine.name} does not match the validated model: {len(failed)} of "
            f"{len(records)} parity checks failed, first {first.check} of {first.graph}: {first.detail}",
            fix=f"list all checks with `tmi verify {bundle.folder}`; choose another --engine, or the package versions "
            "named in the manifest",
            records=records,
        )
