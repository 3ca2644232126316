"""The import-free table of what `tmi export --engine` writes, the place for what comes included."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tmi.toolkit.errors import UnavailableError, UsageError

NEEDS_GPU = "an NVIDIA GPU with its driver"


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
    writer: str | None
    """`module:function`, called as f(module, spec, example inputs, file); None: not built yet."""
    reader: str | None
    """`module:function` that reads a file back as `tmi.export.graph_facts.GraphFacts`."""
    engines: tuple[str, ...]
    """Engines that its artefact is judged on, those that are installed; the first one always."""
    needs: str | None = None
    """What it needs beside packages."""


EXPORTERS: Mapping[str, ExporterSpec] = MappingProxyType(
    {
        "onnx": ExporterSpec(
            artefact="onnx",
            suffix=".onnx",
            extra="export",
            packages=("torch", "onnx", "onnxscript", "onnxruntime"),
            writer="tmi.export.onnx_export:write_onnx",
            reader="tmi.export.onnx_facts:read_facts",
            engines=("onnx", "openvino"),
        ),
        "torchscript": ExporterSpec(
            artefact="torchscript",
            suffix=".pt",
            extra="torch",
            packages=("torch",),
            writer="tmi.export.torchscript_export:write_torchscript",
            reader="tmi.export.torchscript_facts:read_facts",
            engines=("torchscript",),
        ),
        "trt": ExporterSpec(
            artefact="trt",
            suffix=".engine",
            extra="trt",
            packages=("tensorrt",),
            writer=None,
            reader=None,
            engines=("trt",),
            needs=NEEDS_GPU,
        ),
        "trt-rtx": ExporterSpec(
            artefact="trt-rtx",
            suffix=".rtx.engine",
            extra="trt",
            packages=("tensorrt_rtx",),
            writer=None,
            reader=None,
            engines=("trt-rtx",),
            needs=NEEDS_GPU,
        ),
        "torch-trt": ExporterSpec(
            artefact="torch-trt",
            suffix=".torch-trt.pt",
            extra="trt",
            packages=("torch_tensorrt",),
            writer=None,
            reader=None,
            engines=("torch-trt",),
            needs=NEEDS_GPU,
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
    """The table's row of an exporter that can work here and now. Imports nothing.

    Raises:
        UsageError: no such exporter.
        UnavailableError: it is not built yet, or a package is missing.
    """
    spec = exporter_spec(name)
    if spec.writer is None:
        raise UnavailableError(
            f"this version of tmi writes no {name} engine yet; it will need the package {spec.packages[0]} "
            f"and {spec.needs}",
            fix="export with --engine onnx meanwhile: that bundle runs on OpenVINO and ONNX Runtime, and is what "
            f"{name} engines will be built from",
        )
    missing = [package for package in spec.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UnavailableError(
            f"--engine {name} needs the package {missing[0]}, which is not installed",
            fix=f"pip install 'tmi-clnet[{spec.extra}]'",
        )
    return spec


def load(target: str | None) -> Any:
    """What `module:name` names, imported now."""
    assert target is not None
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
