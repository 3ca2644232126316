"""One graph as one ONNX file (opset 20), with every parameter under its own name.

The exporter's optimiser is left off and only shape arithmetic is folded. It would merge batch norms into convolutions,
transpose weights and drop their names, and then no one could tell whether the weights in the file are the model's.
Engines do the same work when they load the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, nn

from tmi.runtime.bundle.manifest import GraphSpec
from tmi.toolkit.compute.quiet import Ignored, quiet

OPSET = 20
"""Opset of every graph; IR version 9 of the file goes with it."""
FOLD_LIMIT = 4096
"""Elements up to which a constant expression is replaced by its value; no parameter is ever part of one."""


def write_onnx(module: nn.Module, spec: GraphSpec, example: tuple[Tensor, ...], path: Path) -> None:
    """Export, fold shape arithmetic, check, write.

    Args:
        module: in evaluation mode.
        spec: names of the tensors, and which axes are dynamic.
        example: small inputs that fit `spec`.
        path: file to write; weights are inside it.

    Raises:
        RuntimeError: the module cannot be exported, or not with these dynamic axes (torch's own text).
    """
    axes = {a: torch.export.Dim(a, min=1) for t in spec.inputs for a in t.shape if isinstance(a, str)}
    dynamic = tuple({i: axes[a] for i, a in enumerate(t.shape) if isinstance(a, str)} for t in spec.inputs)
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            dynamic_shapes=dynamic,
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            verbose=False,
        )
    assert program is not None
    _fold_shape_arithmetic(program.model)
    _drop_traces(program.model)
    program.save(path, external_data=False)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise RuntimeError(f"the ONNX file is not valid: {error}") from error


def _fold_shape_arithmetic(model: ir.Model) -> None:
    parameters = frozenset(model.graph.initializers)

    def touches_no_parameter(node: ir.Node) -> bool | None:
        return False if any(v is not None and v.name in parameters for v in node.inputs) else None

    passes.InlinePass()(model)
    fold_constants_ir(
        model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, should_fold=touches_no_parameter
    )
    _drop_zero_biases(model, parameters)
    for tidy in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.OutputFixPass(),
        passes.TopologicalSortPass(),
    ):
        tidy(model)


def _drop_zero_biases(model: ir.Model, parameters: frozenset[str]) -> None:
    """A convolution without bias is exported with zeros for one, of a shape [channels, 2] that ONNX does not allow."""
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3:
            bias = node.inputs[2]
            if bias is not None and bias.name not in parameters and bias.const_value is not None:
                assert not bias.const_value.numpy().any(), f"{bias.name} is a bias that is no parameter"
                node.resize_inputs(2)


def _drop_traces(model: ir.Model) -> None:
    """Take out the stack traces that the exporter leaves at every node: they hold paths of this machine."""
    for node in model.graph:
        for key in [k for k in node.metadata_props if k.startswith(("pkg.torch", "namespace"))]:
            del node.metadata_props[key]
    for value in [*model.graph.inputs, *model.graph.outputs, *(v for n in model.graph for v in n.outputs)]:
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's notes on torchvision, on axis names shared by several inputs, and on its own pytree."""
    with quiet(
        [
            Ignored("# The axis name: . will not be used", UserWarning),
            Ignored(r".*isinstance\(treespec, LeafSpec\)", FutureWarning),
        ],
        loggers=["torch.onnx._internal.exporter._registration"],
        level=logging.ERROR,
    ):
        yield
