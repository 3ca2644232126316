"""Table of the exporters that `tmi export --engine` can name. Importing it imports no exporter."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tmi.toolkit.errors import UnavailableError, UsageError
from tmi.toolkit.model_registry import import_target

GRAPHS = ("torch", "onnx", "onnxscript", "onnxruntime")
"""Packages that the ONNX writer needs. Every TensorRT engine starts from ONNX graphs."""
INT8 = "onnx-int8"
"""Artefact kind of the quantised graphs, and the name of its exporter."""
TORCH_TRT = "torch-trt"
"""Engine that is compiled from modules instead of graphs."""
TYPED = "onnx-typed"
"""Artefact kind of the strongly typed graphs that TensorRT engines are built from."""


@dataclass(frozen=True, kw_only=True)
class ExporterSpec:
    """One row of the exporter table."""

    artefact: str
    """Artefact kind that the exporter writes; the key in `GraphSpec.artefacts`."""
    suffix: str
    """Suffix of its files."""
    extra: str
    """Extra of `tmi-clnet` that installs its packages."""
    packages: tuple[str, ...]
    """Import names of the packages that it needs."""
    engines: tuple[str, ...]
    """Engines that validate the artefact. The first one is required, the others run where they are installed."""
    writer: str | None = None
    """`module:function`, called as f(module, spec, example inputs, file); None: built from other files."""
    reader: str | None = None
    """`module:function` that reads a file as `tmi.export.checks.graph_summary.GraphSummary`; None: not readable."""
    plan: str | None = None
    """`module:function` that builds the engine from a bundle; None: the artefact is written from the module."""
    builds_with: str | None = None
    """Import name of the package that builds the engine. If it is not installed, the engine is pending in the
    bundle."""

    def function(self, field: Literal["writer", "reader", "plan"]) -> Any:
        """Import the function that a field of this row names; the field must not be None."""
        target: str | None = getattr(self, field)
        assert target is not None, f"{self.artefact} has no {field}"
        return import_target(target)


EXPORTERS: Mapping[str, ExporterSpec] = MappingProxyType(
    {
        "onnx": ExporterSpec(
            artefact="onnx",
            suffix=".onnx",
            extra="export",
            packages=GRAPHS,
            writer="tmi.export.graphs.onnx:write_onnx",
            reader="tmi.export.checks.onnx_summary:read_summary",
            engines=("onnx", "openvino", "openvino-bf16", "onnx-cuda"),
        ),
        "torchscript": ExporterSpec(
            artefact="torchscript",
            suffix=".pt",
            extra="torch",
            packages=("torch",),
            writer="tmi.export.graphs.torchscript:write_torchscript",
            reader="tmi.export.checks.torchscript_summary:read_summary",
            engines=("torchscript", "torchscript-cuda"),
        ),
        INT8: ExporterSpec(
            artefact=INT8,
            suffix=".int8.onnx",
            extra="export",
            packages=GRAPHS,
            engines=("openvino-int8", "onnx-int8"),
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
        TORCH_TRT: ExporterSpec(
            artefact=TORCH_TRT,
            suffix=".torch-trt.engine",
            extra="trt",
            packages=GRAPHS,
            engines=("torch-trt",),
            plan="tmi.export.tensorrt.torch_tensorrt:build_torch_trt",
            builds_with="torch_tensorrt",
        ),
    }
)
"""Value of `--engine` -> its exporter."""


def exporter_spec(name: str) -> ExporterSpec:
    """Return the table's row of an exporter.

    Raises:
        UsageError: no such exporter; the message lists the known ones.
    """
    if name not in EXPORTERS:
        raise UsageError(f"unknown engine {name!r} to export", fix=f"choose among {', '.join(EXPORTERS)}")
    return EXPORTERS[name]


def require_exporter(name: str) -> ExporterSpec:
    """Return the table's row of an exporter whose packages are installed. Imports none of them.

    Raises:
        UsageError: no such exporter.
        UnavailableError: a package is not installed.
    """
    spec = exporter_spec(name)
    missing = [package for package in spec.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f"--engine {name} needs the package {missing[0]}, which is not installed",
            fix=f"pip install 'tmi-clnet[{spec.extra}]'",
        )
    return spec
