"""Consistency of a manifest with itself, before anything is sized or loaded by it.

A manifest states counts and shapes, and the runtime allocates and loops by them. Those that contradict the config, the
graphs or each other are rejected here, without any work that grows with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tmi.runtime.bundle.manifest import FUSION, GraphSpec, Manifest, Role, TensorSpec
from tmi.toolkit.cases.case import folder_key
from tmi.toolkit.config.schema import CLASSES, N_RADIOMICS, Config
from tmi.toolkit.errors import DamagedError
from tmi.toolkit.modality import GRAPH_NAMES
from tmi.toolkit.models.registry import active_modalities, feature_width
from tmi.toolkit.storage.serialization import to_json

MAX_FOLDS = 100
"""Largest number of folds of a bundle."""
GOLDEN_COUNTS = (2, 64)
"""Smallest and largest number of golden cases; an export writes 2 or 4."""
MAX_VOXELS = 2**27
"""Largest number of voxels of the network's volume: 512 MiB in float32. The paper's has 2^24."""
MAX_WIDTH = 2**20
"""Largest width, vocabulary or other size of a layer."""
MAX_LAYERS = 256
"""Largest number of layers of one stage."""
LAYER_COUNTS = ("layers", "blocks", "depth")
"""Keys of a config that count layers."""
SHARED_ARTEFACTS = ("trt", "trt-rtx", "torch-trt")
"""Artefact kinds of which one file may serve several graphs: plans without weights."""


def require_consistent(folder: Path, manifest: Manifest) -> None:
    """Require that counts, graphs, folds, shapes and sizes of a manifest agree.

    Raises:
        DamagedError: they do not; the message names the first contradiction.
    """
    for contradiction in _contradictions(manifest, manifest.config):
        raise DamagedError(f"bundle {folder}: its manifest contradicts itself: {contradiction}", fix="export it again")


def graph_spec(config: Config, role: Role, name: str, *, folds: int, tokenizer: str | None = None) -> GraphSpec:
    """Names, types and shapes of a graph's tensors by a config, without artefacts."""
    inputs: tuple[TensorSpec, ...]
    if role == "ct":
        inputs = (TensorSpec(name="ct", dtype="float32", shape=("B", 1, *config.ct.shape_DHW)),)
        outputs = (TensorSpec(name="ct_features", dtype="float32", shape=("B", feature_width(config, "image"))),)
    elif role == "text":
        inputs = (
            TensorSpec(name="input_ids", dtype="int64", shape=("B", "T")),
            TensorSpec(name="attention_mask", dtype="int64", shape=("B", "T")),
        )
        outputs = (TensorSpec(name="text_features", dtype="float32", shape=("B", feature_width(config, "clinical"))),)
    else:
        modalities = active_modalities(config)
        input_widths = {
            f"{name}_features": feature_width(config, m) for m, name in GRAPH_NAMES.items() if m in modalities
        }
        input_widths |= {"radiomics": N_RADIOMICS} if "radiomics" in modalities else {}
        inputs = tuple(
            TensorSpec(name=name, dtype="float32", shape=("B", folds, width)) for name, width in input_widths.items()
        )
        outputs = (TensorSpec(name="logits", dtype="float32", shape=("B", folds, 2)),)
    return GraphSpec(name=name, role=role, inputs=inputs, outputs=outputs, artefacts={}, tokenizer=tokenizer)


def _contradictions(manifest: Manifest, config: Config) -> Iterator[str]:
    # In this order: what comes later relies on the bounds before it.
    yield from _meaning(manifest)
    yield from _sizes(config)
    yield from _graphs(manifest)
    yield from _tensors(manifest, config)
    yield from _golden(manifest, config)


def _meaning(manifest: Manifest) -> Iterator[str]:
    if len(manifest.classes) != len(CLASSES):
        yield f"it names {len(manifest.classes)} classes, the network has {len(CLASSES)}"
    if not 0 <= manifest.positive < len(CLASSES):
        yield f"class {manifest.positive} is positive, but there are {len(CLASSES)}"
    if not 0.0 <= manifest.threshold <= 1.0:
        yield f"the threshold {manifest.threshold:g} is no probability"
    trust = manifest.trust
    if trust is not None and (
        not 0.0 < trust.level < 1.0 or trust.cases < 1 or len(trust.files) != len(manifest.folds)
    ):
        yield "its record of trust has an impossible level, no case, or not one file for each fold"
    if not 1 <= len(manifest.folds) <= MAX_FOLDS:
        yield f"it has {len(manifest.folds)} folds, {MAX_FOLDS} at most are possible"
    repeated = [fold for fold, count in Counter(f.fold for f in manifest.folds).items() if count > 1]
    if repeated:
        yield f"fold {repeated[0]} is listed twice"
    if not manifest.parity:
        yield "it has no record of a parity check, and every export writes some"
    failed = next((r for r in manifest.parity if not r.passed), None)
    if failed is not None:
        yield f"parity check {failed.check!r} of {failed.graph!r} failed, which no export accepts"
    names = Counter(map(folder_key, manifest.files))
    twin = next((name for name in manifest.files if names[folder_key(name)] > 1), None)
    if twin is not None:
        yield f"file {twin!r} has the name of another one on some systems"


def _sizes(config: Config) -> Iterator[str]:
    """Sizes of the config that no network has, by the name of their key."""
    voxels = 1
    for size in config.ct.shape_DHW:
        voxels *= size
    if voxels > MAX_VOXELS:
        yield f"a volume of {config.ct.shape_DHW} voxels is too large"
    for section in ("network", "system"):
        for key, value in _integers(to_json(getattr(config, section))):
            limit = MAX_LAYERS if key in LAYER_COUNTS else MAX_WIDTH
            if not 0 <= value <= limit:
                yield f"{section}: {key} has the impossible size {value if abs(value) < 10**18 else 'of many digits'}"


def _integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every integer below a JSON value with the key that it belongs to; -1 for a list of more than `MAX_LAYERS`."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _integers(entry, name)
    elif isinstance(value, (list, tuple)):
        yield from ((key, number) for entry in value[:MAX_LAYERS] for _, number in _integers(entry, key))
        if len(value) > MAX_LAYERS:
            yield key, -1
    elif isinstance(value, int) and not isinstance(value, bool):
        yield key, value


def _graphs(manifest: Manifest) -> Iterator[str]:
    """Contradictions between graphs and folds: names, roles, and files that two graphs have in common."""
    if len(manifest.graphs) > 1 + 2 * len(manifest.folds):
        yield f"it has {len(manifest.graphs)} graphs for {len(manifest.folds)} folds"
        return
    names = [g.name for g in manifest.graphs]
    roles = {g.name: g.role for g in manifest.graphs}
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        yield f"graph {repeated[0]} is listed twice"
    used: dict[str, Role] = {FUSION: "fusion"}
    for fold in manifest.folds:
        expected: tuple[tuple[Role, str | None], ...] = (("ct", fold.ct), ("text", fold.text))
        for role, name in expected:
            if name is None:
                continue
            used.setdefault(name, role)
            if roles.get(name) != role or used[name] != role:
                yield f"the {role} graph of fold {fold.fold} is {name!r}, which is no {role} graph"
    if roles.get(FUSION) != "fusion":
        yield f"it has no graph {FUSION!r} of that role"
    unused = sorted(set(names) - set(used))
    if unused:
        yield f"no fold uses graph {unused[0]!r}"
    # One graph may have a file under two kinds: its typed graph may be the float32 one.
    files = Counter(
        name
        for g in manifest.graphs
        for name in {file for kind, file in g.artefacts.items() if kind not in SHARED_ARTEFACTS}
    )
    shared = sorted(name for name, count in files.items() if count > 1)
    if shared:
        yield f"two graphs are the same file {shared[0]}"


def _tensors(manifest: Manifest, config: Config) -> Iterator[str]:
    """Graphs whose tensors are not those of the network in the config."""
    for graph in manifest.graphs:
        expected = graph_spec(config, graph.role, graph.name, folds=len(manifest.folds))
        for what, stated, known in (
            ("inputs", graph.inputs, expected.inputs),
            ("outputs", graph.outputs, expected.outputs),
        ):
            if stated != known:
                yield f"the {what} of graph {graph.name!r} are not those of its {graph.role} network"
        if (graph.tokenizer is not None) != (graph.role == "text"):
            yield f"graph {graph.name!r} has {'no' if graph.tokenizer is None else 'a'} tokenizer"


def _golden(manifest: Manifest, config: Config) -> Iterator[str]:
    """Contradictions of the record from which golden inputs are generated."""
    record = manifest.golden
    low, high = GOLDEN_COUNTS
    if not low <= record.count <= high:
        yield f"its number of golden cases is not {low} to {high}"
    if not 0 <= record.seed <= np.iinfo(np.int64).max:
        yield "its seed of the golden inputs is no seed"
    if set(record.vocabularies) != {g.name for g in manifest.graphs if g.role == "text"}:
        yield "its golden inputs are not those of its text graphs"
    elif not all(1 <= size <= config.network.text_encoder.vocab_size for size in record.vocabularies.values()):
        yield "a vocabulary of its golden inputs is larger than the embedding table"
