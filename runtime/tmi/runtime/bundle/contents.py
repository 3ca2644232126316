"""Readers of a bundle's small files: clinical schema, radiomics scalers, tokenizers, trust statistics.

Each is parsed from the bytes whose digest is compared with the manifest (`Bundle.read`).
"""

from __future__ import annotations

from collections.abc import Mapping

from tmi.runtime.bundle.reader import Bundle
from tmi.toolkit.clinical.schema import SCHEMA_FILE, Schema, stored_schema
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.config.schema import N_RADIOMICS
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.models.registry import feature_width
from tmi.toolkit.radiomics.scaler import RadiomicsScaler
from tmi.toolkit.storage.bounded_files import DOCUMENT_BYTES
from tmi.toolkit.trust.statistics import FoldTrust


def bundled_schema(bundle: Bundle) -> Schema:
    """The clinical schema.

    Raises:
        DamagedError: the file is missing, malformed, or differs from the manifest.
    """
    return stored_schema(
        bundle.folder, kind="bundle", data=bundle.read(bundle.folder / SCHEMA_FILE, max_bytes=DOCUMENT_BYTES)
    )


def bundled_scaler(bundle: Bundle, name: str) -> RadiomicsScaler:
    """The scaler in file `name`, relative to the bundle.

    Raises:
        DamagedError: the file is missing, malformed, or differs from the manifest.
    """
    path = bundle.folder / name
    return RadiomicsScaler.load(path, data=bundle.read(path, max_bytes=DOCUMENT_BYTES))


def bundled_tokenizer(bundle: Bundle, name: str) -> Tokenizer:
    """The tokenizer in file `name`, relative to the bundle.

    Raises:
        DamagedError: the file is missing, is no tokenizer, or differs from the manifest.
    """
    path = bundle.folder / name
    return Tokenizer.load(path, data=bundle.read(path, max_bytes=DOCUMENT_BYTES))


def bundled_trust(bundle: Bundle) -> tuple[FoldTrust, ...]:
    """Trust statistics of each fold, in the order of the manifest; empty for a bundle without them.

    Raises:
        DamagedError: a file is missing, malformed, differs from the manifest, or belongs to another fold or network.
    """
    manifest = bundle.manifest
    if manifest.trust is None:
        return ()
    widths: dict[str, int] = {}
    if manifest.uses("image"):
        widths["image.encoder"] = feature_width(manifest.config, "image")
    if manifest.uses("clinical"):
        widths["clinical.encoder"] = feature_width(manifest.config, "clinical")
        widths["clinical.values"] = widths["clinical.pattern"] = len(bundled_schema(bundle).fields)
    if manifest.uses("radiomics"):
        widths["radiomics.features"] = N_RADIOMICS
    folds = []
    for fold, name in zip(manifest.folds, manifest.trust.files, strict=True):
        path = bundle.folder / name
        found = FoldTrust.load(path, fold=fold.fold, data=bundle.read(path, max_bytes=DOCUMENT_BYTES))
        _require_network(found, widths, name)
        folds.append(found)
    if any({*fold.conformal} not in (set(), {*manifest.classes}) for fold in folds):
        raise DamagedError("bundle: its calibration scores are of other classes", fix="export it again")
    if sum(fold.held_out for fold in folds) != manifest.trust.cases:
        raise DamagedError("bundle: its trust statistics are of another number of cases", fix="export it again")
    return tuple(folds)


def _require_network(found: FoldTrust, widths: Mapping[str, int], name: str) -> None:
    """Require that the statistics are those of the bundle's network.

    Raises:
        DamagedError: a part has another width, or its modality is not used.
    """
    used = {part.partition(".")[0] for part in widths}
    for part, statistics in found.parts.items():
        if part.partition(".")[0] not in used or widths.get(part, len(statistics.mean_D)) != len(statistics.mean_D):
            raise DamagedError(f"bundle: {name} is not of its network: {part[:40]}", fix="export the bundle again")
