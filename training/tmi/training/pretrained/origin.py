"""Where given weights and vocabularies come from, as far as their files show; recorded in the run for `tmi audit`.

A record has the key `kind`:

    run       a file inside a run of ours: `run`, `cohort` (fingerprint) and the `cases` that it was fitted on
    bundle    a file inside a bundle of ours: `run` and `cohort`; a bundle names no cases
    synthetic `tmi pretrain-text` wrote it from synthetic records
    public    a published vocabulary, recognised by its tokens: `name`
    unknown   anything else, a copy of one of our files included
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tmi.runtime.bundle.manifest import MANIFEST_FILE, manifest_from_json
from tmi.toolkit.clinical.tokenizer import Tokenizer
from tmi.toolkit.errors import TmiError
from tmi.toolkit.run_folder import RUN_FILE, RunFolder
from tmi.toolkit.storage.atomic_files import read_json
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_file
from tmi.training.pretrained.pretraining_record import PRETRAINING_FILE

UNKNOWN: Mapping[str, Any] = MappingProxyType({"kind": "unknown"})
PUBLIC_VOCABULARIES: Mapping[str, str] = MappingProxyType(
    {"9dd1dce5943e4cdda015102aa80afbf7df7b09cb6902ea212276a853acae9789": "bert-base-cased"}
)
"""`vocabulary_digest` -> name of the published vocabulary; BioBERT v1.1 uses bert-base-cased's."""
LEVELS = 3
"""Number of folders above a file in which a run or a bundle is searched."""


def file_origin(path: Path) -> dict[str, Any]:
    """Origin of a weight file, a BERT folder or a vocabulary file."""
    place = path.resolve()
    folders = [*([place] if place.is_dir() else []), *list(place.parents)[:LEVELS]]
    if _is_pretraining(place):
        return {"kind": "synthetic"}
    for folder in folders:
        try:
            if (folder / RUN_FILE).is_file():
                return _run_origin(RunFolder.open(folder), place)
            if (folder / MANIFEST_FILE).is_file():
                run = manifest_from_json(read_json(folder / MANIFEST_FILE, kind="bundle")).run
                if run.cohort.fingerprint is None:
                    return dict(UNKNOWN)
                return {"kind": "bundle", "run": run.name, "cohort": run.cohort.fingerprint}
        except (TmiError, KeyError, TypeError):
            return dict(UNKNOWN)
    return dict(UNKNOWN)


def _is_pretraining(place: Path) -> bool:
    """Whether `tmi pretrain-text` wrote the folder, or this file in it, and nothing was changed since."""
    folder = place if place.is_dir() else place.parent
    if not (folder / PRETRAINING_FILE).is_file():
        return False
    try:
        files = read_json(folder / PRETRAINING_FILE, kind="text weights")["files"]
        names = list(files) if place.is_dir() else [place.name]
        return bool(names) and all(sha256_file(folder / name) == files[name] for name in names)
    except (TmiError, OSError, KeyError, TypeError):
        return False


def _run_origin(run: RunFolder, place: Path) -> dict[str, Any]:
    """A fold's file was fitted on its training and validation part; any other file on all cases of the run."""
    inside = place.relative_to(run.path.resolve()).parts
    folds = [s for s in run.folds if inside and inside[0] == f"fold{s.fold}"]
    cases = {i for s in folds or run.folds for i in (*s.train, *s.validation, *(() if folds else s.test))}
    state = run.state
    return {
        "kind": "run",
        "run": state["name"],
        "cohort": state["cohort"]["fingerprint"],
        "cases": sorted(cases),
    }


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokens in the order of their ids, one a line; equal for a vocab.txt and its tokenizer.json."""
    return sha256_bytes("\n".join(tokenizer.tokens).encode())


def vocabulary_record(tokenizer: Tokenizer, path: Path | None) -> dict[str, Any]:
    """Record of a given vocabulary in the run; `path` is None if it was not read from a file."""
    digest = vocabulary_digest(tokenizer)
    origin = dict(UNKNOWN) if path is None else file_origin(path)
    if digest in PUBLIC_VOCABULARIES:
        origin = {"kind": "public", "name": PUBLIC_VOCABULARIES[digest]}
    return {"source": "given", "sha256": digest, "origin": origin}
