"""The gate on the road from files to the network's inputs: the golden case, prepared here and now, against what it
must become.

`golden-case.safetensors` holds, for the case that `tmi.runtime.verification.golden_case` writes::

    ct                       [1,D,H,W] float32
    text.sha256              [32] uint8, of the rendered record in UTF-8
    radiomics.fold<k>        [R] float32, scaled by that fold's scaler
    <text graph>.input_ids   [2,T] int64, the record and `SHORT_TEXT` by that graph's tokenizer
    <text graph>.attention_mask  [2,T] int64

of these what the bundle sees, written at the export by other means than the runtime's: nibabel and torch's own
resampling, a scaler's formula from its JSON, the `tokenizers` package itself. Its safetensors metadata holds what the
outputs mean: classes, the positive one, the threshold, the order of the folds. Light: numpy and nibabel.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.manifest import GOLDEN_CASE_FILE, Manifest
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.inference.ensemble import encoder_graphs
from tmi.runtime.verification.golden_case import golden_config, write_golden_case
from tmi.runtime.verification.parity import BOUNDS, PIPELINE
from tmi.toolkit.clinical.schema import stored_schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import CLASSES
from tmi.toolkit.errors import DamagedError, TmiError
from tmi.toolkit.preprocessing.pipeline import prepare_case
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.storage.hashing import canonical_json

SHORT_TEXT = "Sex: female."
"""Stands beside the golden record, so that one of the two is padded."""
FILES = "files"
"""Artefact kind of the records of this gate."""


def output_metadata(manifest: Manifest) -> dict[str, str]:
    """What the outputs mean, as the metadata of the golden case states it."""
    meaning = {
        "classes": list(manifest.classes),
        "positive": manifest.positive,
        "threshold": manifest.threshold,
        "folds": [fold.fold for fold in manifest.folds],
    }
    return {name: canonical_json(value).strip() for name, value in meaning.items()}


def check_preprocessing(bundle: Bundle) -> list[CheckResult]:
    """The golden case on this machine's road against the stored arrays, and the meaning of the outputs.

    Raises:
        DamagedError: the bundle holds no golden case, or one that cannot be read.
    """
    arrays, meaning = _read_golden_case(bundle)
    return [*_compare_metadata(bundle.manifest, meaning), *_compare_arrays(bundle, arrays)]


def prepare_golden_case(bundle: Bundle, folder: Path) -> dict[str, NDArray[np.generic]]:
    """What the runtime makes of the golden case, under the names of the file; `folder` is written to.

    Raises:
        TmiError: it cannot be prepared here.
    """
    manifest = bundle.manifest
    config = golden_config(manifest.parsed_config())
    schema = stored_schema(bundle.folder, kind="bundle")
    case = write_golden_case(folder, schema, seed=int(manifest.golden["seed"]))
    prepared = prepare_case(case, config, schema, modalities=manifest.modalities)
    arrays: dict[str, NDArray[np.generic]] = {}
    if manifest.uses("image"):
        arrays["ct"] = prepared.ct_1DHW
    if manifest.uses("clinical"):
        arrays["text.sha256"] = text_digest(prepared.text)
    for fold in manifest.folds:
        if fold.scaler is not None:
            scaler = RadiomicsScaler.load(bundle.folder / fold.scaler)
            arrays[f"radiomics.fold{fold.fold}"] = scaler.transform(prepared.radiomics_F[None]).values_NF[0]
    for spec in encoder_graphs(manifest, "text"):
        if spec.tokenizer is not None:
            encoded = Tokenizer.load(bundle.folder / spec.tokenizer).encode(
                [prepared.text, SHORT_TEXT],
                max_length=config.clinical.max_length,
                pad_to_max=config.clinical.pad_to_max,
            )
            arrays[f"{spec.name}.input_ids"] = encoded.input_ids_BT
            arrays[f"{spec.name}.attention_mask"] = encoded.attention_mask_BT
    return arrays


def text_digest(text: str) -> NDArray[np.uint8]:
    """SHA-256 of a text's UTF-8 bytes, as 32 numbers."""
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8).copy()


def _read_golden_case(bundle: Bundle) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    path = bundle.folder / GOLDEN_CASE_FILE
    try:
        with safe_open(path, framework="np") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, dict(stream.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(
            f"bundle {bundle.folder}: {GOLDEN_CASE_FILE} is missing or cannot be read", fix="export the bundle again"
        ) from error


def _compare_metadata(manifest: Manifest, stored: Mapping[str, str]) -> Iterator[CheckResult]:
    said = output_metadata(manifest)
    wrong = [f"{name} is {said[name]}, at the export it was {stored.get(name)}" for name in said
             if said[name] != stored.get(name)]  # fmt: skip
    if manifest.classes != CLASSES:
        wrong.append(f"classes are {', '.join(manifest.classes)}, this version's are {', '.join(CLASSES)}")
    detail = " ".join("; ".join(wrong).split()) or "classes, positive class, threshold and fold order are the export's"
    yield _record("meaning", len(wrong), 0, detail)


def _compare_arrays(bundle: Bundle, stored: Mapping[str, NDArray[np.generic]]) -> Iterator[CheckResult]:
    try:
        with tempfile.TemporaryDirectory(prefix="tmi-golden-") as folder:
            mine = prepare_golden_case(bundle, Path(folder) / "golden")
    except DamagedError:
        raise
    except (TmiError, KeyError, TypeError, ValueError) as error:
        yield _record("preprocessing", None, 0, f"the golden case cannot be prepared: {' '.join(str(error).split())}")
        return
    low, high = bundle.manifest.parsed_config().ct.scale_to
    bound = BOUNDS["float32"].relative
    for name in sorted({*mine, *stored}):
        kind, _, which = name.partition(".") if name.startswith("radiomics.") else (name, "", "")
        have, want = mine.get(name), stored.get(name)
        if have is None or want is None or have.shape != want.shape or have.dtype != want.dtype:
            yield _record("preprocessing", None, 0, f"{name}: {_shape(have)} here, {_shape(want)} at the export")
        elif have.dtype.kind == "f":
            size = high - low if kind == "ct" else max(1.0, float(np.abs(want).max()))
            difference = np.abs(have.astype(np.float64) - want.astype(np.float64)).max()
            relative = float(difference) / size if np.isfinite(difference) else float("inf")
            what = f"{kind} by the scaler of {which}" if which else f"{kind}, of the range that it is scaled to"
            yield _record("preprocessing", relative, bound, what)
        else:
            wrong = int((have != want).sum())
            yield _record("preprocessing", wrong, 0, f"{name}: {wrong} of {want.size} values differ")


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
