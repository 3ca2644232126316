"""The bundle's manifest: what the bundle is, as frozen dataclasses, and its one JSON form.

A bundle is a folder::

    manifest.json           this
    manifest.json.sha256    its digest, in the form `sha256sum -c` reads
    graphs/<graph>.onnx     one file a graph and artefact kind
    graphs/<graph>.pt
    graphs/<graph>.fp16.onnx    what TensorRT engines are built from, where it is not the float32 file
    graphs/<graph>.engine       TensorRT; .rtx.engine: TensorRT-RTX
    weights/<graph>.safetensors
    tokenizers/<name>.json
    scalers/fold<k>.json
    clinical_schema.json    which clinical fields there are, in which units
    golden.safetensors      eager outputs on the golden inputs, float32 and, where affordable, float64
    golden-case.safetensors what a case's files must become before the network sees them
    evidence/*.safetensors  what each engine answered at the export
    evidence/real-cases.json  outputs on real cases and the hashes of their inputs, where `tmi export --cases` was used
    MODEL_CARD.md           for people
    sbom.cdx.json           what was installed at the export, CycloneDX
    signature.sig           from `tmi sign`; the only file beside the manifest's pair that the manifest does not name

Graphs: one `ct-<n>` and one `text-<n>` for each distinct encoder, and one `fusion` that holds radiomics encoder,
interaction and head of every fold. B batch, T tokens, F folds, K classes:

    ct-<n>    ct [B,1,D,H,W] float32                        -> ct_features [B,C]
    text-<n>  input_ids [B,T] int64, attention_mask [B,T] int64 -> text_features [B,C]
    fusion    ct_features [B,F,C], text_features [B,F,C], radiomics [B,F,1781] (scaled, float32) -> logits [B,F,K]

A bundle whose network does not see a modality has no graphs and no files of it, its fusion takes no input of it, and a
case needs none of its files: `Manifest.modalities` says which ones are seen.
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
"""Read too, as one of today: every bundle of it sees all modalities."""
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
"""The files of a bundle that its manifest does not fingerprint: itself, its digest, and the signature over all."""
FUSION = "fusion"

Role = Literal["ct", "text", "fusion"]
Artefact = Literal["onnx", "torchscript", "weights", "onnx-typed", "trt", "trt-rtx", "torch-trt"]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A graph's input or output."""

    name: str
    """Tensor name."""
    dtype: Literal["float32", "int64"]
    """Element type."""
    shape: tuple[int | str, ...]
    """Sizes; a dynamic axis by its name (`B`, `T`)."""


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One graph and the files that hold it."""

    name: str
    """Unique name, for example `ct-0`."""
    role: Role
    """What it computes."""
    inputs: tuple[TensorSpec, ...]
    """Inputs in order."""
    outputs: tuple[TensorSpec, ...]
    """Outputs in order."""
    artefacts: dict[str, str]
    """Artefact kind (`onnx`, `torchscript`, `weights`, `trt`, ...) -> file, relative to the bundle."""
    tokenizer: str | None = None
    """Tokenizer file of a text graph, relative to the bundle."""


@dataclass(frozen=True, kw_only=True)
class FoldSpec:
    """Which graphs and files one fold uses; the position in `Manifest.folds` is its index in the fusion graph."""

    fold: int
    """Fold number in the run."""
    ct: str | None
    """Name of its CT graph; null where the CT is not seen."""
    text: str | None
    """Name of its text graph; null where the clinical record is not seen."""
    scaler: str | None
    """Its radiomics scaler file; null where radiomics are not seen."""


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """A file's fingerprint."""

    sha256: str
    """Hex digest."""
    bytes: int
    """Size."""


@dataclass(frozen=True, kw_only=True)
class ClinicalSpec:
    """How clinical records become the text that the models were trained on."""

    schema: str
    """File of the clinical schema, relative to the bundle."""
    rendering: str
    """Name of the rendering."""
    rendering_version: int
    """Its version at the training; another one here is refused."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the runtime needs to know, and the evidence that it may be believed."""

    preset: str
    """Preset the run was trained with."""
    config: dict[str, Any]
    """The run's whole config; `Manifest.parsed_config` gives it typed."""
    graphs: tuple[GraphSpec, ...]
    """All graphs."""
    folds: tuple[FoldSpec, ...]
    """All folds, in the order of the fusion graph's fold axis."""
    clinical: ClinicalSpec
    """Clinical schema and rendering."""
    files: dict[str, FileSpec]
    """Every file of the bundle except the manifest and its digest."""
    golden: dict[str, Any]
    """Seed, count and input digests of the golden inputs."""
    parity: tuple[CheckResult, ...]
    """Evidence."""
    versions: dict[str, str]
    """Tool and library versions at export."""
    run: dict[str, Any]
    """What the run says of itself: name, cohort fingerprint, cases, metrics. No patient data."""
    created: str
    """UTC time, ISO 8601."""
    modalities: tuple[Modality, ...]
    """What a case must have, because the network sees it: `clinical`, `radiomics`, `image`."""
    threshold: float = 0.5
    """Probability of the positive class from which the decision is `bad`."""
    classes: tuple[str, ...] = CLASSES
    """Class names by index."""
    positive: int = POSITIVE
    """Index of the positive class."""
    synthetic: bool = False
    """Whether the cohort was a synthetic one."""
    schema: str = SCHEMA
    """Schema of this file; a newer one is refused."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Room for engines that add their own metadata."""

    def parsed_config(self) -> Config:
        """The config, typed and validated.

        Raises:
            DamagedError: it is no config of this version.
        """
        try:
            config = from_json(Config, self.config, where="manifest.config")
        except UsageError as error:
            raise DamagedError(
                f"bundle: {error.what}", fix="use the tmi version that made the bundle, or export it again"
            ) from error
        if active_modalities(config) != self.modalities:
            raise DamagedError(
                f"bundle: its manifest says that {', '.join(self.modalities) or 'nothing'} is seen, its config says "
                f"{', '.join(active_modalities(config))}",
                fix="export the bundle again",
            )
        return config

    def uses(self, modality: Modality) -> bool:
        """Whether the network looks at a modality."""
        return modality in self.modalities

    def referenced_files(self) -> tuple[str, ...]:
        """Every file that a graph or a fold names."""
        graphs = [name for g in self.graphs for name in (*g.artefacts.values(), g.tokenizer) if name is not None]
        scalers = [f.scaler for f in self.folds if f.scaler is not None]
        return tuple(sorted({*graphs, *scalers, self.clinical.schema}))

    def graph(self, name: str) -> GraphSpec:
        """The graph of that name.

        Raises:
            DamagedError: the manifest has none.
        """
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise DamagedError(f"bundle: manifest names no graph {name!r}", fix="export the bundle again")


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Plain JSON values."""
    return to_json(manifest)


def manifest_from_json(data: Mapping[str, Any]) -> Manifest:
    """The manifest, strictly.

    Raises:
        DamagedError: another schema, unknown or missing keys, wrong types.
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
    """Every fold has the graphs and files of the modalities that are seen, and of no other."""
    for fold in manifest.folds:
        for modality, name in (("image", fold.ct), ("clinical", fold.text), ("radiomics", fold.scaler)):
            if (name is not None) != (modality in manifest.modalities):
                told = "nothing for it" if name is None else name
                raise DamagedError(
                    f"bundle: {modality} is {'' if name is None else 'not '}seen, and fold {fold.fold} has {told}",
                    fix="export the bundle again",
                )


def _newer_version_error(data: Mapping[str, Any]) -> DamagedError:
    versions = data.get("versions")
    version = versions.get("tmi-clnet") if isinstance(versions, Mapping) else None
    known = isinstance(version, str)
    return DamagedError(
        f"bundle: a newer tmi{f' ({version})' if known else ''} made it: its manifest has schema {data['schema']!r}, "
        f"this version reads {SCHEMA!r}",
        fix=f"install the version that made it: pip install 'tmi-clnet{f'>={version}' if known else ''}'",
    )


def _schema_number(schema: Any) -> int:
    """N of `tmi-bundle/N`; -1 for anything else."""
    stem, _, number = schema.rpartition("/") if isinstance(schema, str) else ("", "", "")
    return int(number) if stem == SCHEMA.rpartition("/")[0] and number.isascii() and number.isdigit() else -1


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of `manifest.json`; `tmi.runtime.bundle.manifest_schema` writes it from the dataclasses here."""
    file = resources.files("tmi.runtime.bundle") / "data" / f"{SCHEMA.replace('/', '-')}.schema.json"
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
