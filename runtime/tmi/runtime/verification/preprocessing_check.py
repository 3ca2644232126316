"""Check of the preprocessing: the golden case, prepared on this machine, is compared with stored reference arrays.

For the case that `tmi.runtime.verification.golden_case` writes, `golden-case.safetensors` holds::

    ct                       [1,D,H,W] float32
    text.sha256              [32] uint8, of the rendered record in UTF-8
    radiomics.fold<k>        [R] float32, scaled by that fold's scaler
    <text graph>.input_ids   [2,T] int64, the record and `SHORT_TEXT` by that graph's tokenizer
    <text graph>.attention_mask  [2,T] int64

Arrays of modalities that the bundle does not use are omitted. The export computes the arrays independently of the
runtime: with nibabel and torch's resampling, the scaler's formula from its JSON, and the `tokenizers` package. The
metadata of the file states the meaning of the outputs and what the manifest claims of the models: classes, positive
class, threshold, order of the folds, synthetic cohort, roles, scalers, config, run. This module needs numpy and nibabel
only.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.contents import bundled_scaler, bundled_schema, bundled_tokenizer
from tmi.runtime.bundle.manifest import GOLDEN_CASE_FILE, manifest_to_json, part_digests
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.inference.ensemble import encoder_graphs
from tmi.runtime.verification.golden_case import golden_config, write_golden_case
from tmi.runtime.verification.outputs import PIPELINE
from tmi.runtime.verification.parity import BOUNDS
from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.errors import DamagedError, TmiError
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.hashing import canonical_json, sha256_bytes

SHORT_TEXT = "Sex: female."
"""Second text of the batch, shorter than the golden record, so that one of the two is padded."""
FILES = "files"
"""Artefact kind of the results of this check."""


CLAIMS = ("synthetic", "roles", "modalities", "data", "config", "run", "trust")
"""Keys of `output_metadata` that a bundle of an earlier version does not have: such a bundle has none of them."""


def output_metadata(bundle: Bundle) -> dict[str, str]:
    """Meaning of the outputs and what else the manifest claims of the models, as the golden case's metadata.

    Long values are stored as SHA-256: scalers, tokenizers and schema (`data`), the config, and the description of the
    run with its metrics.
    """
    manifest = bundle.manifest
    parts = bundle.parts or part_digests(manifest_to_json(manifest))
    files = [name for fold in manifest.folds if (name := fold.scaler) is not None]
    files += [graph.tokenizer for graph in manifest.graphs if graph.tokenizer is not None]
    files += () if manifest.trust is None else manifest.trust.files
    meaning = {
        "classes": list(manifest.classes),
        "positive": manifest.positive,
        "threshold": manifest.threshold,
        "folds": [fold.fold for fold in manifest.folds],
        "synthetic": manifest.synthetic,
        "roles": {
            "graphs": {graph.name: graph.role for graph in manifest.graphs},
            "folds": [[fold.ct, fold.text, fold.scaler] for fold in manifest.folds],
        },
        "modalities": list(manifest.modalities),
        "data": {
            name: sha256_bytes(bundle.read(bundle.folder / name)) for name in sorted({*files, manifest.clinical.schema})
        },
        "config": parts.config,
        "run": parts.run,
    }
    if manifest.trust is not None:
        meaning["trust"] = [manifest.trust.level, manifest.trust.cases, list(manifest.trust.files)]
    return {name: canonical_json(value).strip() for name, value in meaning.items()}


def check_preprocessing(bundle: Bundle) -> list[CheckResult]:
    """Compare the golden case, prepared on this machine, and the meaning of the outputs with those of the export.

    Raises:
        DamagedError: the golden case is missing or cannot be read.
    """
    arrays, meaning = read_golden_case(bundle)
    return [*compare_metadata(bundle, meaning), *_compare_arrays(bundle, arrays)]


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
    config = golden_config(manifest.config)
    schema = bundled_schema(bundle)
    case = write_golden_case(folder, schema, seed=manifest.golden.seed)
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


def read_golden_case(bundle: Bundle) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """Arrays and metadata of the golden case.

    Raises:
        DamagedError: its file is missing or cannot be read.
    """
    try:
        data = bundle.read(bundle.folder / GOLDEN_CASE_FILE)
        arrays: dict[str, NDArray[np.generic]] = load(data)  # checks the header, which the next lines parse
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return arrays, header.get("__metadata__") or {}
    except (SafetensorError, OSError, DocumentError) as error:
        raise DamagedError(
            f"bundle {bundle.folder}: {GOLDEN_CASE_FILE} is missing or cannot be read", fix="export the bundle again"
        ) from error


def compare_metadata(bundle: Bundle, stored: Mapping[str, str]) -> Iterator[CheckResult]:
    """Compare what the manifest states now with the metadata of the golden case."""
    current = output_metadata(bundle)
    if not stored.keys() & set(CLAIMS):  # a bundle of an earlier version
        current = {name: value for name, value in current.items() if name not in CLAIMS}
    differences = [_difference(name, current[name], stored.get(name)) for name in current
                   if current[name] != stored.get(name)]  # fmt: skip
    classes = bundle.manifest.classes
    if classes != CLASSES:
        differences.append(f"classes are {', '.join(classes)}, this version's are {', '.join(CLASSES)}")
    detail = "classes, positive class, threshold and fold order match the export"
    if {*CLAIMS} - {"trust"} <= set(current):
        detail = "classes, positive class, threshold, folds, scalers, roles and notices match the export"
    yield _record("meaning", len(differences), 0, " ".join("; ".join(differences).split()) or detail)


def _difference(name: str, current: str, exported: str | None) -> str:
    if name == "data" and exported is not None:
        now, then = dict(_entries(current)), dict(_entries(exported))
        changed = sorted(file for file in {*now, *then} if now.get(file) != then.get(file))
        return f"{', '.join(changed)[:200]} changed after the export"
    if name in ("roles", "config", "run"):
        return f"{name} of the manifest changed after the export"
    return f"{name} is {current}, at the export it was {exported}"


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """File and digest of each line of `data`."""
    for line in text.splitlines():
        name, separator, digest = line.partition(": ")
        if separator:
            yield name.strip(' "'), digest.strip(' ",')


def _compare_arrays(bundle: Bundle, stored: Mapping[str, NDArray[np.generic]]) -> Iterator[CheckResult]:
    try:
        with tempfile.TemporaryDirectory(prefix="tmi-golden-") as folder:
            prepared = prepare_golden_case(bundle, Path(folder) / "golden")
    except DamagedError:
        raise
    except (TmiError, KeyError, TypeError, ValueError) as error:
        yield _record("preprocessing", None, 0, f"the golden case cannot be prepared: {' '.join(str(error).split())}")
        return
    low, high = bundle.manifest.config.ct.scale_to
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


def _record(check: str, measured: float | None, bound: float, detail: str) -> CheckResult:
    return CheckResult(
        check=check,
        artefact=FILES,
        graph=PIPELINE,
        passed=measured is not None and measured <= bound,
        measured=None if measured is None else float(measured),
        bound=float(bound),
        detail=detail,
    )
