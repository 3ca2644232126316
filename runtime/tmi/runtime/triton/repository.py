"""Writer of a Triton model repository from a bundle; it needs neither torch nor Triton.

    REPOSITORY/tmi/config.pbtxt          inputs, outputs, batching, queue, engine
    REPOSITORY/tmi/1/model.py            loads the bundle beside it with `TritonPythonModel`
    REPOSITORY/tmi/1/bundle/             copy of the bundle, byte by byte
    REPOSITORY/tmi-<graph>/              each graph, for a backend of Triton, if one is chosen

Each model is a folder that appears when it is complete; other models of the repository stay as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tmi.runtime.bundle.manifest import UNFINGERPRINTED_FILES, GraphSpec
from tmi.runtime.bundle.reader import Bundle, open_bundle
from tmi.runtime.bundle.signing import Keys, open_trusted_bundle
from tmi.runtime.service.outputs import MODEL, MODEL_VERSION, input_metadata, output_metadata
from tmi.runtime.triton.model_config import CONFIG_FILE, Word, config_text, tensor_entry
from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.storage.atomic_files import require_absent, staged_folder, write_text

BUNDLE_FOLDER = "bundle"
"""Folder of the bundle in the folder of the model's version."""
MODEL_FILE = '''"""Model of Triton's Python backend, written by `tmi triton`."""

import os
import site
import sys

# The backend ignores PYTHONPATH: the packages of an environment come first, before anything is imported.
for folder in reversed(list(filter(None, os.environ.get("TMI_SITE_PACKAGES", "").split(os.pathsep)))):
    sys.path.insert(0, folder)
    site.addsitedir(folder)

from tmi.runtime.triton.backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class GraphBackend:
    """A backend of Triton that runs the graphs of a bundle."""

    artefact: str
    """Kind of the files that it reads."""
    file: str
    """Name of the file in a version's folder."""
    fields: Mapping[str, Any]
    """How a configuration names it."""


GRAPH_BACKENDS: Mapping[str, GraphBackend] = MappingProxyType(
    {
        "onnxruntime": GraphBackend("onnx", "model.onnx", {"platform": "onnxruntime_onnx"}),
        "openvino": GraphBackend("onnx", "model.onnx", {"backend": "openvino"}),
        "tensorrt": GraphBackend("trt", "model.plan", {"platform": "tensorrt_plan"}),
    }
)
"""Value of `--graphs` -> backend."""


@dataclass(frozen=True, kw_only=True)
class RepositorySettings:
    """Batching, queue and engine of the models."""

    max_batch: int = 4
    """Largest number of requests that are taken together."""
    max_delay_ms: float = 0.0
    """Milliseconds that the first of them waits for more."""
    queue: int = 16
    """Number of requests that may wait; 0: any."""
    timeout_s: float = 300.0
    """Seconds after which a request that waits is rejected."""
    engine: str = "auto"
    """Engine of the predictor."""
    precision: str = "auto"
    """Its precision."""
    threads: int | None = None
    """Its threads; None: all cores."""
    trust_level: float | None = None
    """Largest p-value at which a case is not trusted; None: the bundle's."""


def write_repository(
    bundle: Path,
    repository: Path,
    *,
    settings: RepositorySettings,
    graphs: str | None = None,
    key: Keys = None,
    force: bool = False,
) -> list[str]:
    """Write the models of a bundle into a repository.

    Args:
        bundle: folder of the bundle.
        repository: folder of the repository; it need not exist.
        settings: batching, queue and engine.
        graphs: key of `GRAPH_BACKENDS` for which each graph is a model too; None: none.
        key: public keys of which one must have signed the bundle.
        force: whether models of the same names are replaced.

    Returns:
        Names of the models.

    Raises:
        UsageError: no such bundle, a model exists and `force` is not set, or a folder cannot be written.
        DamagedError: the bundle is damaged or not signed.
        UnavailableError: the bundle has no graphs for the backend.
    """
    opened = open_trusted_bundle(bundle, key)
    if bundle.resolve().is_relative_to((repository / MODEL).resolve()):
        raise UsageError("the bundle lies in the model that would be replaced", fix="name another repository")
    configs = {MODEL: _predictor_config(opened, settings)}
    if graphs is not None:
        backend = GRAPH_BACKENDS[graphs]
        largest = _require_graphs(opened, graphs, settings.max_batch)
        for graph in opened.manifest.graphs:
            configs[f"{MODEL}-{graph.name}"] = _graph_config(graph, backend, settings, largest)
    for name in configs:
        require_absent(repository / name, force=force, kind="model")
    repository.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # a model takes its place after every one of them has been written
        for name, config in configs.items():
            stage = stack.enter_context(staged_folder(repository / name))
            version = stage / MODEL_VERSION
            version.mkdir()
            write_text(stage / CONFIG_FILE, config_text(config))
            if name == MODEL:
                write_text(version / "model.py", MODEL_FILE)
                _copy_bundle(opened, version / BUNDLE_FOLDER)
            else:
                graph = opened.manifest.graph(name.removeprefix(f"{MODEL}-"))
                (version / backend.file).write_bytes(opened.read(opened.folder / graph.artefacts[backend.artefact]))
    return list(configs)


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    """Copy a bundle, and compare every byte of the copy with its manifest."""
    optional = [name for name in UNFINGERPRINTED_FILES if (bundle.folder / name).exists()]
    for name in (*bundle.manifest.files, *optional):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, target / name)
    if open_bundle(target).digest != bundle.digest:
        raise UsageError(f"bundle {bundle.folder} was changed while it was copied", fix="write the repository again")


def _predictor_config(bundle: Bundle, settings: RepositorySettings) -> dict[str, Any]:
    """Configuration of the model with the predictor inside.

    Every input is optional: the checks of a case say what is missing, with their codes.
    """
    options = {
        "engine": settings.engine,
        "precision": settings.precision,
        "threads": settings.threads,
        "trust_level": settings.trust_level,
    }
    return {
        "name": MODEL,
        "backend": "python",
        "max_batch_size": settings.max_batch,
        "input": [tensor_entry(e["name"], e["datatype"], e["shape"][1:], is_optional=True) for e in input_metadata()],
        "output": [tensor_entry(e["name"], e["datatype"], e["shape"][1:]) for e in output_metadata(bundle.manifest)],
        "dynamic_batching": _batching(settings),
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
        "parameters": [
            {"key": name, "value": {"string_value": str(value)}} for name, value in options.items() if value is not None
        ],
    }


def _graph_config(
    graph: GraphSpec, backend: GraphBackend, settings: RepositorySettings, largest: int
) -> dict[str, Any]:
    """Configuration of a graph: its first axis is the batch, which Triton names by itself."""
    return {
        "name": f"{MODEL}-{graph.name}",
        **backend.fields,
        "default_model_filename": backend.file,
        "max_batch_size": largest,
        "input": [tensor_entry(t.name, t.dtype, t.shape[1:]) for t in graph.inputs],
        "output": [tensor_entry(t.name, t.dtype, t.shape[1:]) for t in graph.outputs],
        "dynamic_batching": _batching(settings),
    }


def _batching(settings: RepositorySettings) -> dict[str, Any]:
    return {
        "max_queue_delay_microseconds": round(settings.max_delay_ms * 1000),
        "default_queue_policy": {
            "timeout_action": Word("REJECT"),
            "default_timeout_microseconds": round(settings.timeout_s * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": settings.queue,
        },
    }


def _require_graphs(bundle: Bundle, graphs: str, max_batch: int) -> int:
    """Require that the bundle has graphs for a backend; return the largest batch of its models.

    Raises:
        UnavailableError: it has none, or plans without weights.
    """
    backend, manifest = GRAPH_BACKENDS[graphs], bundle.manifest
    if not bundle.has(backend.artefact):
        raise UnavailableError(
            f"bundle {bundle.folder} has no {backend.artefact} files, which Triton's {graphs} backend runs",
            fix=f"add them: tmi export RUN --engine {backend.artefact}, or choose another --graphs",
        )
    if graphs != "tensorrt":
        return max_batch
    plans = None if manifest.tensorrt is None else manifest.tensorrt.plans.get(backend.artefact)
    if plans is None or any(plan.features.weights not in (None, "inside") for plan in plans.graphs.values()):
        raise UnavailableError(
            f"bundle {bundle.folder} has TensorRT plans without their weights, which Triton cannot load",
            fix="build it with --weights inside, or choose another --graphs",
        )
    return min(max_batch, plans.options.max_batch or max_batch)
