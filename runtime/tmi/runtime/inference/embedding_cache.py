"""What the encoders made of a CT or a text, kept for the next time: `tmi predict --reuse`.

An entry is found by all that the features depend on: the bytes of the prepared input, the files of the graph, the
engine with its package's version and its precision, the processor. It holds float32 features and nothing else: no
text, no voxel, no id. Damage, kills and other processes are `tmi.toolkit.storage.content_cache`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.host import cpu_name
from tmi.runtime.engines.registry import engine_spec
from tmi.runtime.engines.selection import EngineRecord
from tmi.toolkit.storage.content_cache import ContentCache
from tmi.toolkit.storage.hashing import sha256_bytes, sha256_json

KIND = "embeddings"
"""Folder of these entries in the cache."""
ENTRY_VERSION = 1
"""Form of an entry; another form is another key."""


class EmbeddingCache:
    """Features by content, of one bundle on one engine.

    Args:
        bundle: whose graphs run.
        record: the engine that runs them.
    """

    def __init__(self, bundle: Bundle, record: EngineRecord) -> None:
        self._entries = ContentCache(KIND)
        self._bundle = bundle
        self._engine = {
            "engine": record.name,
            "package": record.package,
            "precision": record.precision,
            "cpu": cpu_name(),
        }
        self.hits = 0
        """Features that were found."""
        self.stored = 0
        """Features that were made and stored."""
        self.row_hits: dict[str, list[bool]] = {}
        """Graph -> whether the features of each row of its latest batch were kept."""

    def summary(self) -> str:
        """One line on what it did, for people."""
        if self._entries.folder is None:
            return "cache of embeddings: off"
        return f"cache of embeddings: {self.hits} found, {self.stored} stored in {self._entries.folder}"

    def key(self, spec: GraphSpec, inputs: Mapping[str, NDArray[np.generic]]) -> str:
        """Digest of all that the features of one case depend on."""
        arrays = {
            name: [str(a.dtype), list(a.shape), sha256_bytes(np.ascontiguousarray(a).data.cast("B"))]
            for name, a in inputs.items()
        }
        return sha256_json({"form": ENTRY_VERSION, "graph": self._graph(spec), "inputs": arrays, **self._engine})

    def get(self, spec: GraphSpec, key: str) -> Float32[NDArray[np.float32], "C"] | None:
        """The features; None where there is no entry that is whole."""
        data = self._entries.get(key)
        if data is None or len(data) != 4 * int(spec.outputs[0].shape[-1]):
            return None
        self.hits += 1
        return np.frombuffer(data, "<f4").astype(np.float32)

    def put(self, key: str, features_C: Float32[NDArray[np.float32], "C"]) -> None:
        """Store them; where that cannot be done they are made again the next time."""
        if np.isfinite(features_C).all():
            self.stored += self._entries.put(key, features_C.astype("<f4").tobytes())

    def _graph(self, spec: GraphSpec) -> dict[str, str]:
        """Digests of the graph's file, or of the whole bundle where the engine reads more than one."""
        name = spec.artefacts.get(engine_spec(str(self._engine["engine"])).artefact)
        files = self._bundle.manifest.files
        if name is None or name not in files or not name.endswith((".onnx", ".plan", ".engine")):
            return {"graph": spec.name, "bundle": self._bundle.digest}
        return {"file": files[name].sha256}


def lookup_rows(
    cache: EmbeddingCache, spec: GraphSpec, inputs: Mapping[str, NDArray[np.generic]]
) -> tuple[list[str], list[Float32[NDArray[np.float32], "C"] | None]]:
    """Key of every row of a batch, and its features where they are kept."""
    rows: Sequence[int] = range(next(iter(inputs.values())).shape[0])
    keys = [cache.key(spec, {name: array[row] for name, array in inputs.items()}) for row in rows]
    kept = [cache.get(spec, key) for key in keys]
    cache.row_hits[spec.name] = [features is not None for features in kept]
    return keys, kept


def reused_branches(
    branch: str, features: Mapping[str, object], cache: EmbeddingCache | None, *, row: int
) -> tuple[str, ...]:
    """The branch, where there is one and every one of its encoders' features of this row was kept from before.

    Args:
        branch: name of the branch.
        features: what its encoders gave in the latest batch, by graph.
        cache: that they were looked for in.
        row: of the batch.
    """
    if cache is None or not features:
        return ()
    return (branch,) if all(cache.row_hits[graph][row] for graph in features) else ()
