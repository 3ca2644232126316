"""The import-free table of what `tmi export --engine` writes, the place for what comes included."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tmi.toolkit.errors import UnavailableError, UsageError

GRAPHS = ("torch", "onnx", "onnxscript", "onnxruntime")
"""What writes ONNX graphs, which everything of TensorRT starts from."""


@dataclass(frozen=True, kw_only=True)
class ExporterSpec:
    """One row of the exporter table."""

    artefact: str
    """Artefact kind it writes; the key in `GraphSpec.artefacts`."""
    suffix: str
    """Suffix of its files."""
    extra: str
    """Extra that installs what it needs."""
    packages: tuple[str, ...]
    """Import names of the packages it needs."""
    engines: tuple[str, ...]
    """Engines that its artefact is judged on, those that are installed; the first one always."""
    writer: str | None = None
    """`module:function`, called as f(module, spec, example inputs, file); None: built from the typed graphs."""
    reader: str | None = None
    """`module:function` that reads a file back as `tmi.export.checks.graph_summary.GraphFacts`; None: it cannot be
    read."""
    plan: str | None = None
    """`module:function` that builds it from a bundle; None: written from the module."""
    builds_with: str | None = None
    """Import name of the package that builds it. Without it a bundle is written whose engine is pending."""


EXPORTERS: Mapping[str, ExporterSpec] = MappingProxyType(
    {
        "onnx": ExporterSpec(
            artefact="onnx",
            suffix=".onnx",
            extra="export",
            packages=GRAPHS,
            writer="tmi.export.graphs.onnx:write_onnx",
            reader="tmi.export.checks.onnx_summary:read_facts",
            engines=("onnx", "openvino", "openvino-bf16"),
        ),
        "torchscript": ExporterSpec(
            artefact="torchscript",
            suffix=".pt",
            extra="torch",
            packages=("torch",),
            writer="tmi.export.graphs.torchscript:write_torchscript",
            reader="tmi.export.checks.torchscript_summary:read_facts",
            engines=("torchscript",),
        ),
        "trt": ExporterSpec(
            artefact="trt",
            suffix=".engine",
            extra="trt",
            packages=GRAPHS,
            engines=("trt",),
            plan="tmi.export.tensorrt.builder:build_plan",
            builds_with="tensorrt",
        ),
        "trt-rtx": ExporterSpec(
            artefact="trt-rtx",
            suffix=".rtx.engine",
            extra="trt-rtx",
            packages=GRAPHS,
            engines=("trt-rtx",),
            plan="tmi.export.tensorrt.builder:build_plan",
            builds_with="tensorrt_rtx",
        ),
        "torch-trt": ExporterSpec(
            artefact="torch-trt",
            suffix=".torch-trt.engine",
            extra="trt",
            packages=GRAPHS,
            engines=("torch-trt",),
            plan="tmi.export.tensorrt.torch_tensorrt:build_torch_trt",
            builds_with="torch_tensorrt",
        ),
    }
)
"""Name for `--engine` -> what writes it."""


def exporter_spec(name: str) -> ExporterSpec:
    """The table's row.

    Raises:
        UsageError: no such exporter; the text lists the known ones.
    """
    if name not in EXPORTERS:
        raise UsageError(f"unknown engine {name!r} to export", fix=f"choose among {', '.join(EXPORTERS)}")
    return EXPORTERS[name]


def require_exporter(name: str) -> ExporterSpec:
    """The table's row of an exporter whose graphs can be written here and now. Imports nothing.

    Raises:
        UsageError: no such exporter.
        UnavailableError: a package is missing.
    """
    spec = exporter_spec(name)
    missing = [package for package in spec.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f"--engine {name} needs the package {missing[0]}, which is not installed",
            fix=f"pip install 'tmi-clnet[{spec.extra}]'",
        )
    return spec


def import_target(target: str | None) -> Any:
    """What `module:name` names, imported now."""
    assert target is not None
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
