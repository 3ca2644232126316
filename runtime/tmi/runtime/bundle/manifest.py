"""Manifest of a bundle as frozen dataclasses, and its JSON form.

A bundle is a folder::

    manifest.json           this
    manifest.json.sha256    its digest, in the format of `sha256sum -c`
    graphs/<graph>.onnx     one file for each graph and artefact kind
    graphs/<graph>.pt
    graphs/<graph>.fp16.onnx    source of the TensorRT engines, if it is not the float32 file
    graphs/<graph>.engine       TensorRT; .rtx.engine: TensorRT-RTX
    weights/<graph>.safetensors
    tokenizers/<name>.json
    scalers/fold<k>.json
    clinical_schema.json    the clinical fields and their units
    golden.safetensors      eager outputs on the golden inputs, float32 and, if affordable, float64
    golden-case.safetensors expected network inputs of the golden case
    evidence/*.safetensors  outputs of each engine at the export
    evidence/real-cases.json  outputs on real cases and the hashes of their inputs, if `tmi export --cases` was used
    MODEL_CARD.md           description for people
    sbom.cdx.json           packages installed at the export, CycloneDX
    signature.sig           from `tmi sign`; the only file beside the manifest and its digest that the manifest omits

Graphs: one `ct-<n>` and one `text-<n>` for each distinct encoder, and one `fusion` that holds radiomics encoder,
interaction and head of every fold. B batch, T tokens, F folds, K classes:

    ct-<n>    ct [B,1,D,H,W] float32                        -> ct_features [B,C]
    text-<n>  input_ids [B,T] int64, attention_mask [B,T] int64 -> text_features [B,C]
    fusion    ct_features [B,F,C], text_features [B,F,C], radiomics [B,F,1781] (scaled, float32) -> logits [B,F,K]

`Manifest.modalities` lists the active modalities. A bundle has no graphs and no files of the others, the fusion graph
has no inputs for them, and a case needs no files of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from tmi.runtime.bundle.check_result import CheckResult
from tmi.toolkit.config.schema import CLASSES, MODALITIES, POSITIVE, Config, Modality
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-bundle/2"
PREVIOUS_SCHEMA = "tmi-bundle/1"
"""Also readable. Every bundle of this schema uses all modalities."""
MANIFEST_FILE = "manifest.json"
DIGEST_FILE = "manifest.json.sha256"
GOLDEN_FILE = "golden.safetensors"
GOLDEN_CASE_FILE = "golden-case.safetensors"
EVIDENCE_FOLDER = "evidence"
REAL_CASES_FILE = f"{EVIDENCE_FOLDER}/real-cases.json"
MODEL_CARD_FILE = "MODEL_CARD.md"
SBOM_FILE = "sbom.cdx.json"
SIGNATURE_FILE = "signature.sig"
UNFINGERPRINTED_FILES = (MANIFEST_FILE, DIGEST_FILE, SIGNATURE_FILE)
"""Files of a bundle without a fingerprint in its manifest: the manifest, its digest, and the signature."""
FUSION = "fusion"

Role = Literal["ct", "text", "fusion"]
Artefact = Literal["onnx", "torchscript", "weights", "onnx-typed", "trt", "trt-rtx", "torch-trt"]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Input or output tensor of a graph."""

    name: str
    """Tensor name."""
    dtype: Literal["float32", "int64"]
    """Element type."""
    shape: tuple[int | str, ...]
    """Sizes. A dynamic axis is given by name (`B`, `T`)."""


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """A graph and its files."""

    name: str
    """Unique name, for example `ct-0`."""
    role: Role
    """Part of the network that the graph computes."""
    inputs: tuple[TensorSpec, ...]
    """Inputs, in order."""
    outputs: tuple[TensorSpec, ...]
    """Outputs, in order."""
    artefacts: dict[str, str]
    """Artefact kind (`onnx`, `torchscript`, `weights`, `trt`, ...) -> file, relative to the bundle."""
    tokenizer: str | None = None
    """Tokenizer file of a text graph, relative to the bundle."""


@dataclass(frozen=True, kw_only=True)
class FoldSpec:
    """Graphs and files of one fold. The position in `Manifest.folds` is the fold's index in the fusion graph."""

    fold: int
    """Fold number in the run."""
    ct: str | None
    """Name of its CT graph; null if the CT is not used."""
    text: str | None
    """Name of its text graph; null if the clinical record is not used."""
    scaler: str | None
    """Its radiomics scaler file; null if radiomics are not used."""


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """Fingerprint of a file."""

    sha256: str
    """SHA-256, hexadecimal."""
    bytes: int
    """Size in bytes."""


@dataclass(frozen=True, kw_only=True)
class ClinicalSpec:
    """Conversion of clinical records to the text the models were trained on."""

    schema: str
    """File of the clinical schema, relative to the bundle."""
    rendering: str
    """Name of the rendering."""
    rendering_version: int
    """Version of the rendering at training; a reader with another version rejects the bundle."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the runtime needs to run a bundle, and the evidence of its parity checks."""

    preset: str
    """Preset of the training run."""
    config: dict[str, Any]
    """Complete config of the run; `Manifest.parsed_config` returns it typed."""
    graphs: tuple[GraphSpec, ...]
    """All graphs of the bundle."""
    folds: tuple[FoldSpec, ...]
    """All folds, in the order of the fusion graph's fold axis."""
    clinical: ClinicalSpec
    """Clinical schema and rendering."""
    files: dict[str, FileSpec]
    """Fingerprints of all files except the manifest, its digest and the signature."""
    golden: dict[str, Any]
    """Seed, count and input digests of the golden inputs."""
    parity: tuple[CheckResult, ...]
    """Results of the parity checks at the export."""
    versions: dict[str, str]
    """Tool and library versions at the export."""
    run: dict[str, Any]
    """Description of the run: name, cohort fingerprint, cases, metrics. No patient data."""
    created: str
    """UTC time, ISO 8601."""
    modalities: tuple[Modality, ...]
    """Active modalities, which a case must have: `clinical`, `radiomics`, `image`."""
    threshold: float = 0.5
    """Smallest probability of the positive class at which the decision is `bad`."""
    classes: tuple[str, ...] = CLASSES
    """Class names by index."""
    positive: int = POSITIVE
    """Index of the positive class."""
    synthetic: bool = False
    """Whether the cohort is synthetic."""
    schema: str = SCHEMA
    """Schema of this file; newer ones are rejected."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Metadata of engines, by key."""

    def parsed_config(self) -> Config:
        """The config, typed and validated.

        Raises:
            DamagedError: not a valid config of this version, or its modalities differ from the manifest's.
        """
        try:
            config = from_json(Config, self.config, where="manifest.config")
        except UsageError as error:
            raise DamagedError(
                f"bundle: {error.what}", fix="use the tmi version that made the bundle, or export it again"
            ) from error
        if active_modalities(config) != self.modalities:
            raise DamagedError(
                f"bundle: its manifest lists the modalities {', '.join(self.modalities) or 'none'}, its config "
                f"{', '.join(active_modalities(config))}",
                fix="export the bundle again",
            )
        return config

    def uses(self, modality: Modality) -> bool:
        """Whether the network uses a modality."""
        return modality in self.modalities

    def referenced_files(self) -> tuple[str, ...]:
        """All files that a graph, a fold or the clinical spec names, sorted."""
        graphs = [name for g in self.graphs for name in (*g.artefacts.values(), g.tokenizer) if name is not None]
        scalers = [f.scaler for f in self.folds if f.scaler is not None]
        return tuple(sorted({*graphs, *scalers, self.clinical.schema}))

    def graph(self, name: str) -> GraphSpec:
        """The graph with a name.

        Raises:
            DamagedError: no such graph.
        """
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise DamagedError(f"bundle: the manifest has no graph {name!r}", fix="export the bundle again")


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Convert a manifest to plain JSON values."""
    return to_json(manifest)


def manifest_from_json(data: Mapping[str, Any]) -> Manifest:
    """Parse a manifest strictly.

    A manifest of `PREVIOUS_SCHEMA` is read as one that uses all modalities.

    Raises:
        DamagedError: unknown schema, unknown or missing keys, or wrong types.
    """
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if schema == PREVIOUS_SCHEMA and "modalities" not in data:
        data, schema = {**data, "schema": SCHEMA, "modalities": list(MODALITIES)}, SCHEMA
    if schema != SCHEMA:
        if _schema_number(schema) > _schema_number(SCHEMA):
            raise _newer_version_error(data)
        raise DamagedError(
            f"bundle: manifest has schema {schema!r}, this version reads {SCHEMA!r}",
            fix="use the tmi version that made the bundle, or export it again",
        )
    try:
        manifest = from_json(Manifest, data, where="manifest")
    except UsageError as error:
        raise DamagedError(f"bundle: {error.what}", fix="export the bundle again") from error
    _require_active_modalities(manifest)
    return manifest


def _require_active_modalities(manifest: Manifest) -> None:
    """Require that every fold has the graphs and files of the active modalities and of no other."""
    for fold in manifest.folds:
        for modality, name in (("image", fold.ct), ("clinical", fold.text), ("radiomics", fold.scaler)):
            if (name is not None) != (modality in manifest.modalities):
                uses, files = ("uses", "has nothing for it") if name is None else ("does not use", f"has {name}")
                raise DamagedError(
                    f"bundle: the network {uses} {modality}, but fold {fold.fold} {files}",
                    fix="export the bundle again",
                )


def _newer_version_error(data: Mapping[str, Any]) -> DamagedError:
    versions = data.get("versions")
    version = versions.get("tmi-clnet") if isinstance(versions, Mapping) else None
    known = isinstance(version, str)
    return DamagedError(
        f"bundle: a newer tmi{f' ({version})' if known else ''} made it: its manifest has schema {data['schema']!r}, "
        f"this version reads {SCHEMA!r}",
        fix="install the version that made it, from its wheel: "
        f"pip install 'tmi_clnet-{version if known else 'VERSION'}-py3-none-any.whl'",
    )


def _schema_number(schema: Any) -> int:
    """N of `tmi-bundle/N`; -1 for any other value."""
    stem, _, number = schema.rpartition("/") if isinstance(schema, str) else ("", "", "")
    return int(number) if stem == SCHEMA.rpartition("/")[0] and number.isascii() and number.isdigit() else -1


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of `manifest.json`; `tmi.runtime.bundle.manifest_schema` generates it."""
    file = resources.files("tmi.runtime.bundle") / "data" / f"{SCHEMA.replace('/', '-')}.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
