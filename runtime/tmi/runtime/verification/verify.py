"""`tmi verify`: is a bundle what was exported, and do the engines of this machine answer like the validated model?

Nothing here imports torch unless an engine that needs it is installed and has graphs in the bundle: the golden inputs
are made again from their seed, and what the eager model said to them is in `golden.safetensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import GOLDEN_FILE, SIGNATURE_FILE
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.bundle.signing import SIGNED, UNCHECKED, UNSIGNED, check_signature
from tmi.runtime.engines.nvidia_driver import find_gpu
from tmi.runtime.engines.precision import engine_precision
from tmi.runtime.engines.registry import ENGINES, engine_spec, installed, missing_requirement, open_engine
from tmi.runtime.verification.golden_inputs import GoldenInputs, golden_from_manifest
from tmi.runtime.verification.parity import ENGINE_ERRORS, FLOAT64_PREFIX, PIPELINE, Outputs, check_engine
from tmi.runtime.verification.preprocessing_check import check_preprocessing
from tmi.toolkit.errors import DamagedError, UnavailableError

Progress = Callable[[str], None]
"""Told one line of what is being done."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found; the bundle's bytes are sound, or there would be an error instead."""

    bundle: Bundle
    """The bundle."""
    signature: str
    """One of the states in `tmi.runtime.bundle.signing`."""
    records: tuple[CheckResult, ...]
    """Every gate that ran."""
    engines: tuple[str, ...]
    """Engines that were judged."""
    skipped: dict[str, str]
    """Engine -> why it was not judged."""

    @property
    def passed(self) -> bool:
        """Whether every gate held."""
        return all(r.passed for r in self.records)


@dataclass(frozen=True, kw_only=True)
class References:
    """What the eager model said at the export."""

    float32: Outputs
    """The reference."""
    float64: Outputs | None
    """The arbiter, where it was affordable."""


def verify_bundle(
    folder: Path,
    *,
    engines: Sequence[str] = (),
    key: Path | None = None,
    threads: int | None = None,
    progress: Progress = lambda line: None,
) -> Verification:
    """Compare every byte, check the signature where a key is given, and put engines through every gate.

    Args:
        folder: the bundle.
        engines: names; none takes every engine that is installed and has graphs in the bundle.
        key: public key (PEM) that must have signed the bundle; None leaves a signature unchecked.
        threads: threads of each engine; None takes all cores.
        progress: told one line of what is being done.

    Raises:
        UsageError: no such bundle or engine.
        DamagedError: a byte differs, or the signature is not this key's.
        UnavailableError: an engine asked for, or every engine, is missing; or signatures cannot be checked here.
    """
    progress("comparing every file with the manifest")
    bundle = open_bundle(folder)
    signature = signature_state(bundle, key)
    names, skipped = _select_engines(bundle, engines)
    progress("preparing the golden case")
    records = check_preprocessing(bundle)
    progress("making the golden inputs")
    golden, references = golden_from_manifest(bundle.manifest), read_references(bundle)
    for name in list(names):
        progress(f"judging engine {name}")
        found = _validate_engine(name, bundle, golden, references, threads)
        if name not in engines and engine_spec(name).optional and (why := failure_summary(found)) is not None:
            # the bundle stands without it: predictions take the next engine
            skipped[name] = f"it does not hold here, and predictions do without it: {why}"
            names.remove(name)
        else:
            records += found
    return Verification(
        bundle=bundle,
        signature=signature,
        records=tuple(records),
        engines=tuple(names),
        skipped=skipped,
    )


def signature_state(bundle: Bundle, key: Path | None) -> str:
    """The state of a bundle's signature; with a key, anything but a good one is an error.

    Raises:
        DamagedError: a key is given and no signature is there, or not that key's.
        UnavailableError: the packages for it are missing.
    """
    if key is not None:
        check_signature(bundle.folder, key)
        return SIGNED
    return UNCHECKED if (bundle.folder / SIGNATURE_FILE).is_file() else UNSIGNED


def read_references(bundle: Bundle) -> References:
    """The eager model's stored answers.

    Raises:
        DamagedError: the file cannot be read.
    """
    try:
        tensors: dict[str, NDArray[np.float32]] = load_file(bundle.folder / GOLDEN_FILE)
        reference_float64 = any(name.startswith(FLOAT64_PREFIX) for name in tensors)
        return References(
            float32=Outputs.from_tensors(tensors),
            float64=Outputs.from_tensors(tensors, prefix=FLOAT64_PREFIX) if reference_float64 else None,
        )
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedError(
            f"bundle {bundle.folder}: {GOLDEN_FILE} is missing or cannot be read", fix="export the bundle again"
        ) from error


def _select_engines(bundle: Bundle, asked: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Engines to judge, and why the others are passed over."""
    if asked:
        return [name for name in dict.fromkeys(asked) if engine_spec(name)], {}
    names, skipped = [], {}
    for name, spec in ENGINES.items():
        if not bundle.has(spec.artefact):
            skipped[name] = f"the bundle holds no {spec.artefact} graphs"
        elif not installed(name):
            skipped[name] = f"{spec.package} is not installed"
        elif spec.gpu and find_gpu() is None:
            skipped[name] = "this machine has no NVIDIA GPU with its driver"
        elif (lack := missing_requirement(name)) is not None:
            skipped[name] = lack
        else:
            names.append(name)
    if not names:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UnavailableError(
            f"no engine can run bundle {bundle.folder} ({why})",
            fix="install an engine (pip install 'tmi-clnet[openvino]') or export the bundle again with --engine onnx",
        )
    return names, skipped


def _validate_engine(
    name: str, bundle: Bundle, golden: GoldenInputs, references: References, threads: int | None
) -> list[CheckResult]:
    artefact = engine_spec(name).artefact
    try:
        engine = open_engine(name, bundle, threads=threads)
    except (*ENGINE_ERRORS, SafetensorError) as error:
        return [load_failure(name, artefact, error)]
    with engine:
        return check_engine(
            engine,
            bundle.manifest,
            golden,
            references.float32,
            artefact=artefact,
            reference_float64=references.float64,
            precision=engine_precision(name, bundle.manifest),
        )


def failure_summary(records: Sequence[CheckResult]) -> str | None:
    """What failed, in one sentence; None where every gate held."""
    failed = [r for r in records if not r.passed]
    if not failed:
        return None
    first = failed[0]
    figure = "" if first.measured is None else f" ({first.measured:.2g}, allowed {first.bound:.2g})"
    return f"{len(failed)} of {len(records)} gates failed, first {first.gate} of {first.graph}: {first.detail}{figure}"


def load_failure(engine: str, artefact: str, error: Exception) -> CheckResult:
    """The failed record of an engine that cannot load the bundle's files."""
    return CheckResult(
        gate="loads",
        artefact=artefact,
        graph=PIPELINE,
        passed=False,
        measured=None,
        bound=None,
        detail=f"the engine cannot load it: {' '.join(str(error).split())[:300]}",
        engine=engine,
    )
