"""A bundle with a valid manifest and a few bytes in each file; it opens but cannot compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tmi.runtime.bundle.check_result import CheckResult
from tmi.runtime.bundle.consistency import graph_spec
from tmi.runtime.bundle.manifest import FoldSpec, Manifest, Role
from tmi.runtime.bundle.manifest_records import ClinicalSpec, GoldenRecord, RunRecord
from tmi.runtime.bundle.reader import fingerprint, write_manifest
from tmi.toolkit.config.presets import tiny
from tmi.toolkit.config.schema import MODALITIES

FILES = {
    "graphs/ct-0.onnx": b"ct",
    "graphs/text-0.onnx": b"text",
    "graphs/fusion.onnx": b"fusion",
    "tokenizers/text-0.json": b"{}",
    "scalers/fold0.json": b"{}",
    "clinical_schema.json": b"{}",
    "golden.safetensors": b"golden",
}


def small_manifest() -> Manifest:
    """A manifest of one fold without fingerprints; `write_small_bundle` adds them."""
    tokenizers = {"text-0": "tokenizers/text-0.json"}
    roles: dict[str, Role] = {"ct-0": "ct", "text-0": "text", "fusion": "fusion"}
    graphs = (graph_spec(tiny(), role, name, folds=1, tokenizer=tokenizers.get(name)) for name, role in roles.items())
    return Manifest(
        preset="tiny",
        config=tiny(),
        graphs=tuple(replace(g, artefacts={"onnx": f"graphs/{g.name}.onnx"}) for g in graphs),
        folds=(FoldSpec(fold=0, ct="ct-0", text="text-0", scaler="scalers/fold0.json"),),
        clinical=ClinicalSpec(schema="clinical_schema.json", rendering="values", rendering_version=1),
        files={},
        golden=GoldenRecord(seed=0, count=3, vocabularies={"text-0": 96}, digests={}),
        parity=(
            CheckResult(
                check="logits", artefact="onnx", graph="ct-0", passed=True, measured=1e-6, bound=1e-4, detail="close"
            ),
        ),
        versions={"tmi": "0.1.0"},
        run=RunRecord(name="r"),
        created="2026-01-31T00:00:00Z",
        modalities=MODALITIES,
    )


def write_small_bundle(folder: Path, **changes: Any) -> Manifest:
    """Write the bundle and return its manifest; `changes` replace fields of the manifest."""
    for name, data in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    manifest = replace(small_manifest(), **({"files": fingerprint(folder)} | changes))
    write_manifest(folder, manifest)
    return manifest
