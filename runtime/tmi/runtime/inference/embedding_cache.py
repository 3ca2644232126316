"""Disk cache of encoder features of CTs and texts: `tmi predict --reuse`.

The key of an entry is a digest of all that the features depend on: the bytes of the prepared input, the graph's file,
the engine with its package version and precision, the processor. An entry holds float32 features only: no text, voxel
or id. `tmi.toolkit.storage.content_cache` handles damaged entries, killed writers and concurrent processes.
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
"""Folder of the entries in the cache."""
ENTRY_VERSION = 1
"""Version of the entry's format; part of the key."""


class EmbeddingCache:
    """Cached features of one bundle on one engine.

    Args:
        bundle: its graphs compute the features.
        record: the engine that runs the graphs.
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
        """Number of features read from the cache."""
        self.stored = 0
        """Number of features computed and stored."""

    def summary(self) -> str:
        """One line with hits and stored entries."""
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
        """The cached features; None if there is no complete entry."""
        data = self._entries.get(key)
        if data is None or len(data) != 4 * int(spec.outputs[0].shape[-1]):
            return None
        self.hits += 1
        return np.frombuffer(data, "<f4").astype(np.float32)

    def put(self, key: str, features_C: Float32[NDArray[np.float32], "C"]) -> None:
        """Store features that are finite; a failed write only means that they are computed again."""
        if np.isfinite(features_C).all():
            self.stored += self._entries.put(key, features_C.astype("<f4").tobytes())

    def _graph(self, spec: GraphSpec) -> dict[str, str]:
        """Digest of the graph's file, or of the bundle if the engine reads several files."""
        name = spec.artefacts.get(engine_spec(str(self._engine["engine"])).artefact)
        files = self._bundle.manifest.files
        if name is None or name not in files or not name.endswith((".onnx", ".plan", ".engine")):
            return {"graph": spec.name, "bundle": self._bundle.digest}
        return {"file": files[name].sha256}


def lookup_rows(
    cache: EmbeddingCache, spec: GraphSpec, inputs: Mapping[str, NDArray[np.generic]]
) -> tuple[list[str], list[Float32[NDArray[np.float32], "C"] | None]]:
    """Key of every row of a batch, and its cached features or None."""
    rows: Sequence[int] = range(next(iter(inputs.values())).shape[0])
    keys = [cache.key(spec, {name: array[row] for name, array in inputs.items()}) for row in rows]
    cached = [cache.get(spec, key) for key in keys]
    return keys, cached
