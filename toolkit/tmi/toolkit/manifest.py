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
    golden.safetensors      eager float32 outputs on the golden inputs

Graphs: one `ct-<n>` and one `text-<n>` for each distinct encoder, and one `fusion` that holds radiomics encoder,
interaction and head of every fold. B batch, T tokens, F folds, K classes:

    ct-<n>    ct [B,1,D,H,W] float32                        -> ct_features [B,C]
    text-<n>  input_ids [B,T] int64, attention_mask [B,T] int64 -> text_features [B,C]
    fusion    ct_features [B,F,C], text_features [B,F,C], radiomics [B,F,1781] (scaled, float32) -> logits [B,F,K]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tmi.toolkit.config import CLASSES, POSITIVE, Config
from tmi.toolkit.config_io import from_json, to_json
from tmi.toolkit.errors import DamagedError, UsageError

SCHEMA = "tmi-bundle/1"
MANIFEST_FILE = "manifest.json"
DIGEST_FILE = "manifest.json.sha256"
GOLDEN_FILE = "golden.safetensors"
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
    ct: str
    """Name of its CT graph."""
    text: str
    """Name of its text graph."""
    scaler: str
    """Its radiomics scaler file."""


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """A file's fingerprint."""

    sha256: str
    """Hex digest."""
    bytes: int
    """Size."""


@dataclass(frozen=True, kw_only=True)
class GateRecord:
    """Outcome of one parity gate on one artefact."""

    gate: str
    """Name of the gate."""
    artefact: str
    """Artefact kind it ran on."""
    graph: str
    """Graph name, or `pipeline` for all graphs together."""
    passed: bool
    """Whether it held."""
    measured: float | None
    """The figure, where the gate has one."""
    bound: float | None
    """What the figure must not exceed."""
    detail: str
    """One sentence."""
    engine: str | None = None
    """Engine that ran the artefact; None where the file itself was audited."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the runtime needs to know, and the evidence that it may be believed."""

    preset: str
    """Preset the run was trained with."""
    config: dict[str, Any]
    """The run's whole config; `Manifest.settings` gives it typed."""
    graphs: tuple[GraphSpec, ...]
    """All graphs."""
    folds: tuple[FoldSpec, ...]
    """All folds, in the order of the fusion graph's fold axis."""
    files: dict[str, FileSpec]
    """Every file of the bundle except the manifest and its digest."""
    golden: dict[str, Any]
    """Seed, count and input digests of the golden inputs."""
    parity: tuple[GateRecord, ...]
    """Evidence."""
    versions: dict[str, str]
    """Tool and library versions at export."""
    run: dict[str, Any]
    """What the run says of itself: name, cohort fingerprint, cases, metrics. No patient data."""
    created: str
    """UTC time, ISO 8601."""
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

    def settings(self) -> Config:
        """The config, typed and validated.

        Raises:
            DamagedError: it is no config of this version.
        """
        try:
            return from_json(Config, self.config, where="manifest.config")
        except UsageError as error:
            raise DamagedError(
                f"bundle: {error.what}", fix="use the tmi version that made the bundle, or export it again"
            ) from error

    def referenced(self) -> tuple[str, ...]:
        """Every file that a graph or a fold names."""
        graphs = [name for g in self.graphs for name in (*g.artefacts.values(), g.tokenizer) if name is not None]
        return tuple(sorted({*graphs, *(f.scaler for f in self.folds)}))

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
    if schema != SCHEMA:
        raise DamagedError(
            f"bundle: manifest has schema {schema!r}, this version reads {SCHEMA!r}",
            fix="use the tmi version that made the bundle, or export it again",
        )
    try:
        return from_json(Manifest, data, where="manifest")
    except UsageError as error:
        raise DamagedError(f"bundle: {error.what}", fix="export the bundle again") from error
