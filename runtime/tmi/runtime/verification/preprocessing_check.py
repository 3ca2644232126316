"""Check of the preprocessing: the golden case, prepared on this machine, is compared with stored reference arrays.

For the case that `tmi.runtime.verification.golden_case` writes, `golden-case.safetensors` holds::

    ct                       [1,D,H,W] float32
    text.sha256              [32] uint8, of the rendered record in UTF-8
    radiomics.fold<k>        [R] float32, scaled by that fold's scaler
    <text graph>.input_ids   [2,T] int64, the record and `SHORT_TEXT` by that graph's tokenizer
    <text graph>.attention_mask  [2,T] int64

Arrays of modalities that the bundle does not use are omitted. The export computes the arrays independently of the
runtime: with nibabel and torch's resampling, the scaler's formula from its JSON, and the `tokenizers` package. The
metadata of the file states the meaning of the outputs: classes, positive class, threshold, order of the folds. This
module needs numpy and nibabel only.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.contents import bundled_scaler, bundled_schema, bundled_tokenizer
from tmi.runtime.bundle.manifest import GOLDEN_CASE_FILE, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.inference.ensemble import encoder_graphs
from tmi.runtime.verification.golden_case import golden_config, write_golden_case
from tmi.runtime.verification.outputs import PIPELINE
from tmi.runtime.verification.parity import BOUNDS
from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.errors import DamagedError, TmiError
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.storage.hashing import canonical_json

SHORT_TEXT = "Sex: female."
"""Second text of the batch, shorter than the golden record, so that one of the two is padded."""
FILES = "files"
"""Artefact kind of the results of this check."""


def output_metadata(manifest: Manifest) -> dict[str, str]:
    """Meaning of the outputs, in the form of the golden case's metadata."""
    meaning = {
        "classes": list(manifest.classes),
        "positive": manifest.positive,
        "threshold": manifest.threshold,
        "folds": [fold.fold for fold in manifest.folds],
    }
    return {name: canonical_json(value).strip() for name, value in meaning.items()}


def check_preprocessing(bundle: Bundle) -> list[CheckResult]:
    """Compare the golden case, prepared on this machine, and the meaning of the outputs with those of the export.

    Raises:
        DamagedError: the golden case is missing or cannot be read.
    """
    arrays, meaning = _read_golden_case(bundle)
    return [*_compare_metadata(bundle.manifest, meaning), *_compare_arrays(bundle, arrays)]


def prepare_golden_case(bundle: Bundle, folder: Path) -> dict[str, NDArray[np.generic]]:
    """Prepare the golden case with the runtime's preprocessing.

    Args:
        bundle: the bundle.
        folder: empty or missing folder to which the case is written.

    Returns:
        Arrays under the names of `golden-case.safetensors`.

    Raises:
        TmiError: the case cannot be prepared here.
    """
    manifest = bundle.manifest
    config = golden_config(manifest.parsed_config())
    schema = bundled_schema(bundle)
    case = write_golden_case(folder, schema, seed=int(manifest.golden["seed"]))
    prepared = prepare_case(case, config, schema, modalities=manifest.modalities)
    arrays: dict[str, NDArray[np.generic]] = {}
    if manifest.uses("image"):
        arrays["ct"] = prepared.ct_1DHW
    if manifest.uses("clinical"):
        arrays["text.sha256"] = text_digest(prepared.text)
    for fold in manifest.folds:
        if fold.scaler is not None:
            scaler = bundled_scaler(bundle, fold.scaler)
            arrays[f"radiomics.fold{fold.fold}"] = scaler.transform(prepared.radiomics_F[None]).values_NF[0]
    for spec in encoder_graphs(manifest, "text"):
        if spec.tokenizer is not None:
            encoded = bundled_tokenizer(bundle, spec.tokenizer).encode(
                [prepared.text, SHORT_TEXT],
                max_length=config.clinical.max_length,
                pad_to_max=config.clinical.pad_to_max,
            )
            arrays[f"{spec.name}.input_ids"] = encoded.input_ids_BT
            arrays[f"{spec.name}.attention_mask"] = encoded.attention_mask_BT
    return arrays


def text_digest(text: str) -> NDArray[np.uint8]:
    """SHA-256 of a text's UTF-8 bytes as 32 bytes."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8).copy()


def _read_golden_case(bundle: Bundle) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    try:
        data = bundle.read(bundle.folder / GOLDEN_CASE_FILE)
        arrays: dict[str, NDArray[np.generic]] = load(data)  # checks the header, which the next lines parse
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return arrays, header.get("__metadata__") or {}
    except (SafetensorError, OSError) as error:
        raise DamagedError(
            f"bundle {bundle.folder}: {GOLDEN_CASE_FILE} is missing or cannot be read", fix="export the bundle again"
        ) from error


def _compare_metadata(manifest: Manifest, stored: Mapping[str, str]) -> Iterator[CheckResult]:
    current = output_metadata(manifest)
    differences = [f"{name} is {current[name]}, at the export it was {stored.get(name)}" for name in current
                   if current[name] != stored.get(name)]  # fmt: skip
    if manifest.classes != CLASSES:
        differences.append(f"classes are {', '.join(manifest.classes)}, this version's are {', '.join(CLASSES)}")
    detail = "classes, positive class, threshold and fold order match the export"
    yield _record("meaning", len(differences), 0, " ".join("; ".join(differences).split()) or detail)


def _compare_arrays(bundle: Bundle, stored: Mapping[str, NDArray[np.generic]]) -> Iterator[CheckResult]:
    try:
        with tempfile.TemporaryDirectory(prefix="tmi-golden-") as folder:
            prepared = prepare_golden_case(bundle, Path(folder) / "golden")
    except DamagedError:
        raise
    except (TmiError, KeyError, TypeError, ValueError) as error:
        yield _record("preprocessing", None, 0, f"the golden case cannot be prepared: {' '.join(str(error).split())}")
        return
    low, high = bundle.manifest.parsed_config().ct.scale_to
    bound = BOUNDS["float32"].relative
    for name in sorted({*prepared, *stored}):
        kind, _, which = name.partition(".") if name.startswith("radiomics.") else (name, "", "")
        output, expected = prepared.get(name), stored.get(name)
        if output is None or expected is None or output.shape != expected.shape or output.dtype != expected.dtype:
            yield _record("preprocessing", None, 0, f"{name}: {_shape(output)} here, {_shape(expected)} at the export")
        elif output.dtype.kind == "f":
            # Relative to the range of the values: an absolute bound would depend on the preset's scaling.
            scale = high - low if kind == "ct" else max(1.0, float(np.abs(expected).max()))
            difference = np.abs(output.astype(np.float64) - expected.astype(np.float64)).max()
            relative = float(difference) / scale if np.isfinite(difference) else float("inf")
            what = f"{kind} by the scaler of {which}" if which else f"{kind}, relative to its scaled range"
            yield _record("preprocessing", relative, bound, what)
        else:
            differing = int((output != expected).sum())
            yield _record("preprocessing", differing, 0, f"{name}: {differing} of {expected.size} values differ")


def _shape(array: NDArray[np.generic] | None) -> str:
    return "nothing" if array is None else f"{array.dtype}{list(array.shape)}"


def _record(gate: str, measured: float | None, bound: float, detail: str) -> CheckResult:
    return CheckResult(
        gate=gate,
        artefact=FILES,
        graph=PIPELINE,
        passed=measured is not None and measured <= bound,
        measured=None if measured is None else float(measured),
        bound=float(bound),
        detail=detail,
    )
