"""`--engine torch-trt`: TensorRT plans that torch-tensorrt compiles from the eager modules instead of ONNX graphs.

The result is stored as a plain TensorRT plan and run by `tmi.runtime.engines.tensorrt` like the other plans;
torch-tensorrt's own container would need unpickling. FP16 comes from torch's autocast, so torch's list decides which
operators stay in float32, not `tmi.export.tensorrt.fp16_conversion`. The parity checks of the engine are the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmi.export.graphs.partition import MultiFoldFusion, example_inputs
from tmi.export.graphs.registry import EXPORTERS
from tmi.export.tensorrt.builder import BuildOptions, shape_ranges
from tmi.runtime.bundle.manifest import GraphSpec, Manifest
from tmi.runtime.bundle.manifest_records import FileSpec
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.bundle.tensorrt_records import EnginePlans, PlanFeatures, PlanRecord, TensorRtRecord
from tmi.runtime.engines.eager import EagerEngine
from tmi.runtime.engines.nvidia_driver import require_gpu
from tmi.runtime.engines.precision import FLOAT16, TF32, graph_precisions
from tmi.toolkit.errors import UnavailableError
from tmi.toolkit.storage.hashing import sha256_bytes

KIND = "torch-trt"


class AutocastModule(nn.Module):
    """A module with float32 inputs and outputs that optionally computes under autocast to FP16."""

    def __init__(self, module: nn.Module, half: bool) -> None:
        super().__init__()
        self.module, self.half_precision = module, half

    def forward(self, *inputs: Tensor) -> Tensor:
        """The module's output in float32."""
        autocast = torch.autocast("cuda", dtype=torch.float16) if self.half_precision else nullcontext()
        with autocast:
            output: Tensor = self.module(*inputs)
        return output.float()


def build_torch_trt(
    folder: Path, manifest: Manifest, options: BuildOptions, progress: Callable[[str], None]
) -> Manifest:
    """Compile every graph of a bundle that has eager weights.

    Args:
        folder: the bundle's folder. Plans are written into it.
        manifest: its manifest.
        options: only batch and text length are used; the others are torch-tensorrt's defaults.
        progress: called with one line for each step.

    Raises:
        UnavailableError: no GPU, no eager weights in the bundle, or torch-tensorrt rejects a graph.
    """
    gpu = require_gpu("--engine torch-trt")
    bundle = Bundle(folder=folder, manifest=manifest, digest="")
    if not bundle.has("weights"):
        raise UnavailableError(
            f"bundle {folder} has no eager weights, which torch-trt needs", fix="export it without --no-weights"
        )
    torch_tensorrt = importlib.import_module("torch_tensorrt")
    version = importlib.import_module("tensorrt").__version__
    precisions = graph_precisions(manifest)
    graphs, records = [], {}
    with EagerEngine() as eager:
        eager.open(bundle, threads=None)
        for spec in manifest.graphs:
            file = f"graphs/{spec.name}{EXPORTERS[KIND].suffix}"
            progress(f"compiling {file}")
            # The eager engine keeps the fusion as one module for each fold.
            loaded = eager.module(spec.name)
            module = MultiFoldFusion(loaded) if isinstance(loaded, list) else loaded
            wrapped = AutocastModule(module, precisions[spec.name] == FLOAT16).eval().cuda()
            data = _compile(torch_tensorrt, wrapped, spec, options, tf32=precisions[spec.name] == TF32)
            (folder / file).write_bytes(data)
            graphs.append(replace(spec, artefacts={**spec.artefacts, KIND: file}))
            ranges = shape_ranges(spec, options, batch=(1, options.max_batch, options.max_batch))
            records[spec.name] = PlanRecord(
                builder=f"tensorrt {version}",
                compiler=f"torch_tensorrt {torch_tensorrt.__version__}",
                built_on=gpu.target,
                features=PlanFeatures(),
                profiles=(ranges,),
                plan=FileSpec(sha256=sha256_bytes(data), bytes=len(data)),
            )
    tensorrt = manifest.tensorrt or TensorRtRecord()
    tensorrt = replace(tensorrt, plans={**tensorrt.plans, KIND: EnginePlans(graphs=records)})
    return replace(manifest, graphs=tuple(graphs), tensorrt=tensorrt)


def _compile(torch_tensorrt: Any, module: nn.Module, spec: GraphSpec, options: BuildOptions, *, tf32: bool) -> bytes:
    axes = {"B": torch.export.Dim("B", min=1, max=options.max_batch), "T": torch.export.Dim("T", min=1)}
    dynamic = (tuple({i: axes[a] for i, a in enumerate(t.shape) if isinstance(a, str)} for t in spec.inputs),)
    example = tuple(t.cuda() for t in example_inputs(spec))
    ranges = shape_ranges(spec, options, batch=(1, options.max_batch, options.max_batch))
    inputs = [
        torch_tensorrt.Input(
            min_shape=ranges[t.name][0],
            opt_shape=ranges[t.name][1],
            max_shape=ranges[t.name][2],
            dtype=getattr(torch, t.dtype),
        )
        for t in spec.inputs
    ]
    try:
        program = torch.export.export(module, example, dynamic_shapes=dynamic)
        engine = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, arg_inputs=inputs, use_explicit_typing=True, disable_tf32=not tf32
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnavailableError(
            f"torch_tensorrt {torch_tensorrt.__version__} does not compile graph {spec.name}: "
            f"{' '.join(str(error).split())[:300]}",
            fix="build the engine trt instead, which uses the checked ONNX graph",
        ) from error
    return bytes(engine)
