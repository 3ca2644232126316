"""Verification of a bundle (`tmi verify`): files are unchanged, and this machine's engines match the validated model.

torch is imported only if an installed engine needs it and has graphs in the bundle: golden inputs are regenerated from
their seed, and the eager model's outputs for them are stored in `golden.safetensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.contents import bundled_trust
from tmi.runtime.bundle.manifest import GOLDEN_FILE, SIGNATURE_FILE
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.bundle.signing import SIGNED, UNCHECKED, UNSIGNED, Keys, require_signature, required_keys
from tmi.runtime.engines.precision import engine_precision
from tmi.runtime.engines.registry import ENGINES, engine_spec, open_engine, unavailable_reason
from tmi.runtime.verification.golden_inputs import GoldenInputs, golden_from_manifest
from tmi.runtime.verification.outputs import FLOAT64_PREFIX, PIPELINE, Outputs
from tmi.runtime.verification.parity import ENGINE_ERRORS, check_engine
from tmi.runtime.verification.preprocessing_check import check_preprocessing
from tmi.runtime.verification.trial import require_survived_trial
from tmi.toolkit.errors import DamagedError, UnavailableError

Progress = Callable[[str], None]
"""Callback that receives one line about the current step."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of a verification. Changed files raise an error instead."""

    bundle: Bundle
    """The bundle."""
    signature: str
    """State of the signature, one of those in `tmi.runtime.bundle.signing`."""
    records: tuple[CheckResult, ...]
    """Result of every check that ran."""
    engines: tuple[str, ...]
    """Engines that were validated."""
    skipped: dict[str, str]
    """Engine -> reason why it was not validated."""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(r.passed for r in self.records)


@dataclass(frozen=True, kw_only=True)
class References:
    """Outputs of the eager model at the export."""

    float32: Outputs
    """Reference of the checks."""
    float64: Outputs | None
    """The float64 reference; None if it was too expensive to compute."""


def verify_bundle(
    folder: Path,
    *,
    engines: Sequence[str] = (),
    key: Keys = None,
    threads: int | None = None,
    progress: Progress = lambda line: None,
) -> Verification:
    """Compare every byte of a bundle, check its signature if a key is given, and run every parity check on engines.

    Args:
        folder: folder of the bundle.
        engines: names of engines; empty means every engine that is installed and has graphs in the bundle.
        key: public keys (PEM) of which one must have signed the bundle; None: those of `tmi.toml`, if any, else a
            signature is left unchecked.
        threads: threads of each engine; None uses all cores.
        progress: receives one line about the current step.

    Returns:
        The results. Failed parity checks do not raise here; see `Verification.passed`.

    Raises:
        UsageError: no such bundle or engine.
        DamagedError: a byte differs, or the signature is not by the key.
        UnavailableError: a requested engine, or every engine, is missing; or signatures cannot be checked here.
    """
    progress("comparing every file with the manifest")
    bundle = open_bundle(folder)
    signature = signature_state(bundle, key)
    names, skipped = _select_engines(bundle, engines)
    progress("preparing the golden case")
    records = check_preprocessing(bundle)
    progress("generating the golden inputs")
    golden, references = golden_from_manifest(bundle.manifest), read_references(bundle)
    for name in list(names):
        progress(f"validating engine {name}")
        results = _validate_engine(name, bundle, golden, references, threads)
        if name not in engines and engine_spec(name).optional and (why := failure_summary(results)) is not None:
            # The bundle stays valid: predictions fall back to the next engine of the table.
            skipped[name] = f"it fails here, and predictions use another engine: {why}"
            names.remove(name)
        else:
            records += results
    return Verification(
        bundle=bundle,
        signature=signature,
        records=tuple(records),
        engines=tuple(names),
        skipped=skipped,
    )


def signature_state(bundle: Bundle, key: Keys) -> str:
    """State of a bundle's signature. With keys of the caller or of `tmi.toml`, it must be by one of them.

    Raises:
        UsageError: no such key, or `tmi.toml` requires a signature and no key is known.
        DamagedError: the required signature is missing or not by a key, or a newer bundle of the run was used before.
        UnavailableError: packages for checking signatures are missing.
    """
    if require_signature(bundle, required_keys(key)):
        return SIGNED
    return UNCHECKED if (bundle.folder / SIGNATURE_FILE).is_file() else UNSIGNED


def read_references(bundle: Bundle) -> References:
    """Read the stored outputs of the eager model.

    Raises:
        DamagedError: the file cannot be read.
    """
    try:
        tensors: dict[str, NDArray[np.float32]] = load(bundle.read(bundle.folder / GOLDEN_FILE))
        has_float64 = any(name.startswith(FLOAT64_PREFIX) for name in tensors)
        return References(
            float32=Outputs.from_tensors(tensors),
            float64=Outputs.from_tensors(tensors, prefix=FLOAT64_PREFIX) if has_float64 else None,
        )
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedError(
            f"bundle {bundle.folder}: {GOLDEN_FILE} is missing or cannot be read", fix="export the bundle again"
        ) from error


def _select_engines(bundle: Bundle, requested: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names of the engines to validate, and the reason for each one that is skipped."""
    if requested:
        # engine_spec raises for an unknown name
        return [name for name in dict.fromkeys(requested) if engine_spec(name)], {}
    names, skipped = [], {}
    for name in ENGINES:
        if (reason := unavailable_reason(name, bundle)) is not None:
            skipped[name] = reason
        else:
            names.append(name)
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UnavailableError(
            f"no engine can run bundle {bundle.folder} ({reasons})",
            fix="install an engine (pip install 'tmi-clnet[openvino]') or export the bundle again with --engine onnx",
        )
    return names, skipped


def _validate_engine(
    name: str, bundle: Bundle, golden: GoldenInputs, references: References, threads: int | None
) -> list[CheckResult]:
    artefact = engine_spec(name).artefact
    require_survived_trial(bundle, name, threads=threads)
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
            trust=bundled_trust(bundle),
        )


def failure_summary(records: Sequence[CheckResult]) -> str | None:
    """One sentence about the failed checks; None if all passed."""
    failed = [r for r in records if not r.passed]
    if not failed:
        return None
    first = failed[0]
    value = "" if first.measured is None else f" ({first.measured:.2g}, allowed {first.bound:.2g})"
    return (
        f"{len(failed)} of {len(records)} parity checks failed, first {first.check} of {first.graph}: "
        f"{first.detail}{value}"
    )


def load_failure(engine: str, artefact: str, error: Exception) -> CheckResult:
    """Failed check result of an engine that cannot load the bundle's files."""
    return CheckResult(
        check="loads",
        artefact=artefact,
        graph=PIPELINE,
        passed=False,
        measured=None,
        bound=None,
        detail=f"the engine cannot load it: {' '.join(str(error).split())[:300]}",
        engine=engine,
    )
