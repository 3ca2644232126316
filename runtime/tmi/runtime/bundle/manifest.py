"""Manifest of a bundle as frozen dataclasses, and its JSON form.

A bundle is a folder::

    manifest.json           this
    manifest.json.sha256    its digest, in the format of `sha256sum -c`
    graphs/<graph>.onnx     one file for each graph and artefact kind
    graphs/<graph>.pt
    graphs/<graph>.int8.onnx    quantised encoder, for the engines in INT8
    graphs/<graph>.fp16.onnx    source of the TensorRT engines, if it is not the float32 file
    graphs/<graph>.int8-signed.onnx    the same in INT8
    graphs/<graph>.engine       TensorRT; .rtx.engine: TensorRT-RTX
    weights/<graph>.safetensors
    tokenizers/<name>.json
    scalers/fold<k>.json
    trust/fold<k>.safetensors   statistics of the training cases, without patient data; not in earlier bundles
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
from tmi.runtime.bundle.earlier_schemas import upgraded
from tmi.runtime.bundle.frozen_values import FrozenValues
from tmi.runtime.bundle.int8_records import Int8Record
from tmi.runtime.bundle.manifest_records import (
    Addition,
    ClinicalSpec,
    FileSpec,
    GoldenRecord,
    Hardware,
    RunRecord,
    TrustRecord,
)
from tmi.runtime.bundle.tensorrt_records import TensorRtRecord
from tmi.toolkit.config.schema import CLASSES, POSITIVE, Config, Modality
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.model_registry import UnknownModelError
from tmi.toolkit.models.registry import active_modalities
from tmi.toolkit.storage.hashing import sha256_json
from tmi.toolkit.storage.serialization import from_json, to_json

SCHEMA = "tmi-bundle/3"
"""Schema that is written; `tmi.runtime.bundle.earlier_schemas` lists the earlier ones that are read too."""
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
LATER_ENTRIES = ("int8", "trust", "layers_in_int8", "nodes_in_int8")
"""Entries that the first version of this schema did not have."""
FUSION = "fusion"
SAME_VERSION_FIX = "use the tmi version that made the bundle, or export it again"

Role = Literal["ct", "text", "fusion"]
Artefact = Literal["onnx", "torchscript", "weights", "onnx-int8", "onnx-typed", "trt", "trt-rtx", "torch-trt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec(FrozenValues):
    """Input or output tensor of a graph."""

    name: str
    """Tensor name."""
    dtype: Literal["float32", "int64"]
    """Element type."""
    shape: tuple[int | str, ...]
    """Sizes. A dynamic axis is given by name (`B`, `T`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec(FrozenValues):
    """A graph and its files."""

    name: str
    """Unique name, for example `ct-0`."""
    role: Role
    """Part of the network that the graph computes."""
    inputs: tuple[TensorSpec, ...]
    """Inputs, in order."""
    outputs: tuple[TensorSpec, ...]
    """Outputs, in order."""
    artefacts: Mapping[str, str]
    """Artefact kind (`onnx`, `torchscript`, `weights`, `trt`, ...) -> file, relative to the bundle."""
    tokenizer: str | None = None
    """Tokenizer file of a text graph, relative to the bundle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSpec(FrozenValues):
    """Graphs and files of one fold. The position in `Manifest.folds` is the fold's index in the fusion graph."""

    fold: int
    """Fold number in the run."""
    ct: str | None
    """Name of its CT graph; null if the CT is not used."""
    text: str | None
    """Name of its text graph; null if the clinical record is not used."""
    scaler: str | None
    """Its radiomics scaler file; null if radiomics are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(FrozenValues):
    """Everything the runtime needs to run a bundle, and the evidence of its parity checks.

    It cannot be changed: `dataclasses.replace` gives another one.
    """

    preset: str
    """Preset of the training run."""
    config: Config
    """Complete config of the run."""
    graphs: tuple[GraphSpec, ...]
    """All graphs of the bundle."""
    folds: tuple[FoldSpec, ...]
    """All folds, in the order of the fusion graph's fold axis."""
    clinical: ClinicalSpec
    """Clinical schema and rendering."""
    files: Mapping[str, FileSpec]
    """Fingerprints of all files except the manifest, its digest and the signature."""
    golden: GoldenRecord
    """Seed, count and digests of the golden inputs."""
    parity: tuple[CheckResult, ...]
    """Results of the parity checks at the export."""
    versions: Mapping[str, str]
    """Tool and library versions at the export."""
    run: RunRecord
    """Description of the run: name, cohort fingerprint, cases, metrics. No patient data."""
    created: str
    """UTC time, ISO 8601."""
    modalities: tuple[Modality, ...]
    """Active modalities, which a case must have: `clinical`, `radiomics`, `image`."""
    hardware: Hardware | None = None
    """Machine of the export; null if it was not recorded."""
    temperatures: tuple[float, ...] = ()
    """Temperature that divides each fold's logits, in the order of `folds`; the fusion graph applies it."""
    engines_not_validated: Mapping[str, str] = field(default_factory=dict)
    """Engine that has its graphs -> why the export could not run its parity checks."""
    engines_rejected: Mapping[str, str] = field(default_factory=dict)
    """Optional engine -> why the export's parity checks rejected it."""
    tensorrt: TensorRtRecord | None = None
    """TensorRT; null without typed graphs."""
    int8: Int8Record | None = None
    """INT8; null without quantised graphs, and then left out of the document."""
    trust: TrustRecord | None = None
    """Statistics for out-of-distribution detection; null without them, and then left out of the document."""
    additions: tuple[Addition, ...] = ()
    """Artefacts that were added after the export, in order."""
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

    def uses(self, modality: Modality) -> bool:
        """Whether the network uses a modality."""
        return modality in self.modalities

    def referenced_files(self) -> tuple[str, ...]:
        """All files that a graph, a fold or the clinical spec names, sorted."""
        graphs = [name for g in self.graphs for name in (*g.artefacts.values(), g.tokenizer) if name is not None]
        scalers = [f.scaler for f in self.folds if f.scaler is not None]
        trust = () if self.trust is None else self.trust.files
        return tuple(sorted({*graphs, *scalers, *trust, self.clinical.schema}))

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
    """Convert a manifest to plain JSON values.

    `LATER_ENTRIES` are left out if they are null: a bundle without them is the same document for a reader that does not
    know them.
    """
    document = {k: v for k, v in to_json(manifest).items() if v is not None or k not in LATER_ENTRIES}
    return {**document, "tensorrt": _without_null_entries(document["tensorrt"])}


def _without_null_entries(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if v is not None or k not in LATER_ENTRIES}
        return {key: _without_null_entries(entry) for key, entry in kept.items()}
    return [_without_null_entries(entry) for entry in value] if isinstance(value, list) else value


def manifest_from_json(data: Mapping[str, Any]) -> Manifest:
    """Parse a manifest strictly; one of an earlier schema is read in the form of this one.

    Raises:
        DamagedError: unknown schema, unknown or missing keys, wrong types, an invalid config, or modalities that the
            config or the folds contradict.
    """
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if _schema_number(schema) > _schema_number(SCHEMA):
        raise _newer_version_error(data)
    try:
        document = upgraded(data, SCHEMA) if isinstance(data, Mapping) else {}
        if document.get("schema") != SCHEMA:
            raise DamagedError(
                f"bundle: manifest has schema {schema!r}, this version reads {SCHEMA!r}", fix=SAME_VERSION_FIX
            )
        manifest = from_json(Manifest, document, where="manifest")
    except UnknownModelError as error:
        fix = f"install the package that adds the model; or {SAME_VERSION_FIX}"
        raise DamagedError(f"bundle: {error.what}", fix=fix) from error
    except UsageError as error:
        raise DamagedError(f"bundle: {error.what}", fix=SAME_VERSION_FIX) from error
    _require_active_modalities(manifest)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDigests:
    """Digests of two parts of a manifest as its file states them, which the golden case holds too."""

    config: str
    """SHA-256 of the config's canonical JSON."""
    run: str
    """SHA-256 of the run's canonical JSON, with the preset."""


def part_digests(document: Mapping[str, Any]) -> PartDigests:
    """Digests of a manifest's JSON, of any schema: reading and writing it again may add entries and drop others."""
    return PartDigests(
        config=sha256_json(document["config"]), run=sha256_json({"preset": document["preset"], **document["run"]})
    )


def _require_active_modalities(manifest: Manifest) -> None:
    """Require the modalities of the config, and that every fold has graphs and files of these and of no other."""
    for fold in manifest.folds:
        for modality, name in (("image", fold.ct), ("clinical", fold.text), ("radiomics", fold.scaler)):
            if (name is not None) != (modality in manifest.modalities):
                uses, files = ("uses", "has nothing for it") if name is None else ("does not use", f"has {name}")
                raise DamagedError(
                    f"bundle: the network {uses} {modality}, but fold {fold.fold} {files}",
                    fix="export the bundle again",
                )
    if active_modalities(manifest.config) != manifest.modalities:
        raise DamagedError(
            f"bundle: its manifest lists the modalities {', '.join(manifest.modalities) or 'none'}, its config "
            f"{', '.join(active_modalities(manifest.config))}",
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
